"""Each token's loss without the logits of a whole window.

Shapes: B windows in a batch, T tokens, S scored tokens, c tokens of one chunk, H hidden size, V vocabulary, R rows that
go through the head together.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from lengthen._compat import without_cudnn_attention
from lengthen.attention.layout import Shard
from lengthen.attention.peers import Peers
from lengthen.decoding.prefill import default_chunk, hidden_chunks
from lengthen.decoding.shards import gather_tokens, read_shard
from lengthen.evaluation.windows import Window, batches, stack
from lengthen.head import causal_lm, hidden_states, logits_from

__all__ = ["token_losses", "window_losses"]

# The logits that are held at once: at most this many tokens, and at most this many numbers.
_ROWS = 1024
_NUMBERS, _NUMBERS_ON_CPU = 2**26, 2**24  # GPUs need more rows to be busy


@torch.inference_mode()
def token_losses(
    model: Any,
    input_ids: torch.Tensor,
    score_from: int = 1,
    chunk: int | None = None,
    on_chunk: Callable[[int], None] = lambda _tokens: None,
    peers: Peers | None = None,
) -> torch.Tensor:
    """Compute each token's negative log-likelihood without ever holding the logits of a whole window.

    The decoder reads the window once, long ones chunk by chunk with a key/value cache, or a shard in each of several
    processes; the output head and the cross entropy follow on at most 1024 scored tokens at a time. The head works in
    the model's dtype, all after it in float32.

    Args:
        model: a causal language model of transformers, or a PEFT model around one, in the mode it is to be run in.
        input_ids: (B, T) token ids, full windows without padding.
        score_from: the first scored token's place in the window, at least 1: the first token is predicted by nothing.
        chunk: tokens that the decoder reads at once; default `default_chunk`.
        on_chunk: called after each chunk with its tokens, over all B.
        peers: processes that read the window together, the same in all of them; None for this one alone. Each reads its
            shard at once, whatever `chunk` is, and a window of fewer tokens than there are processes as if alone.

    Returns:
        (B, T - score_from) losses in nats, float32, on the device of the logits; of all processes.

    Raises:
        LengthenError: `chunk` is below 1.
        ModelError: the model has no decoder or no output head, or can't be read in chunks.
    """
    assert 1 <= score_from < input_ids.shape[1], (score_from, input_ids.shape)
    input_ids_BT = input_ids.long()
    # The last token is a target only. Not reading it also keeps a model that is not causal from seeing it.
    read_BT = input_ids_BT[:, :-1]
    if peers is not None and read_BT.shape[1] >= peers.shortest:
        losses_BS = _of_shards(model, input_ids_BT, score_from, peers.shard(read_BT.shape[1]))
        on_chunk(read_BT.numel())
        return losses_BS
    losses, begin = [], 0
    chunk = default_chunk(model, read_BT.shape[1], len(read_BT)) if chunk is None else chunk
    for hidden_BcH in _hidden(model, read_BT, chunk):
        end = begin + hidden_BcH.shape[1]
        scored = max(score_from - 1, begin)
        if scored < end:
            losses.append(_losses(model, hidden_BcH[:, scored - begin :], input_ids_BT[:, scored + 1 : end + 1]))
        on_chunk(hidden_BcH.shape[:2].numel())
        begin = end
    return torch.cat(losses, dim=1)


def window_losses(
    model: Any,
    documents: Sequence[np.ndarray],
    windows: Sequence[Window],
    context: int,
    batch_size: int = 1,
    begin: int | None = None,
    chunk: int | None = None,
    on_chunk: Callable[[int], None] = lambda _tokens: None,
    peers: Peers | None = None,
) -> Iterator[tuple[Window, np.ndarray]]:
    """Yield each window with the losses of its scored tokens, float64 (S,), in nats; the longest windows first.

    Args:
        model: as in `token_losses`.
        documents: token ids of each.
        windows: of the documents.
        context: tokens of most windows.
        batch_size: windows of equal length that are run together.
        begin: token before each window; None for none.
        chunk, on_chunk, peers: as in `token_losses`.
    """
    for batch in batches(windows, batch_size):
        length, score_from = batch[0].end - batch[0].begin, batch[0].score - batch[0].begin
        # The last windows of documents have lengths of their own, for each of which cuDNN would build a plan.
        with nullcontext() if length == context else without_cudnn_attention():
            losses_BS = token_losses(model, stack(documents, batch, begin), score_from, chunk, on_chunk, peers)
        yield from zip(batch, losses_BS.double().cpu().numpy(), strict=True)


def _hidden(model: Any, read_BT: torch.Tensor, chunk: int) -> Iterator[torch.Tensor]:
    if chunk >= read_BT.shape[1]:
        yield hidden_states(model, read_BT)  # without a cache
    else:
        yield from hidden_chunks(model, read_BT, chunk)


def _of_shards(model: Any, input_ids_BT: torch.Tensor, score_from: int, shard: Shard) -> torch.Tensor:
    """The losses of a window that several processes read; `shard` is of the tokens that are read."""
    hidden_BtH = read_shard(model, input_ids_BT[:, :-1], shard)
    bounds = [max(score_from - 1, bound) for bound in shard.bounds]
    first, stop = bounds[shard.rank], bounds[shard.rank + 1]
    own_Bt = hidden_BtH.new_zeros(len(hidden_BtH), stop - first, dtype=torch.float32)
    if first < stop:
        own_Bt = _losses(model, hidden_BtH[:, first - shard.start :], input_ids_BT[:, first + 1 : stop + 1])
    return gather_tokens(own_Bt, shard, bounds)


def _losses(model: Any, hidden_BSH: torch.Tensor, targets_BS: torch.Tensor) -> torch.Tensor:
    """The losses of predicting `targets_BS` from `hidden_BSH`, (B, S)."""
    numbers = _NUMBERS_ON_CPU if hidden_BSH.device.type == "cpu" else _NUMBERS
    rows = max(1, min(_ROWS, numbers // causal_lm(model).get_input_embeddings().weight.shape[0]))
    losses = []
    hidden_RH, targets_R = hidden_BSH.flatten(0, 1), targets_BS.flatten()
    for hidden, targets in zip(hidden_RH.split(rows), targets_R.split(rows), strict=True):
        logits_RV = logits_from(model, hidden)
        losses.append(functional.cross_entropy(logits_RV, targets.to(logits_RV.device), reduction="none"))
    return torch.cat(losses).view(targets_BS.shape)
