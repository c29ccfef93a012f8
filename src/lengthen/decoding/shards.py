"""Inputs that several processes read together, a shard of the tokens each, where one device can't hold them.

While an input is read, a layer sends its keys and values to the processes behind, as a token sees all before it; each
process then has those up to the end of its shard, of one layer at a time:

    process 0: tokens 0 .. 15    queries of 0 .. 15 see keys of 0 .. 15
    process 1: tokens 16 .. 31   queries of 16 .. 31 see keys of 0 .. 31, of which 0 .. 15 came from process 0

What follows the input, such as a question, is computed by all processes alike. Its queries see, in each process, the
keys and values that this one keeps; the outputs are weighted by the sums of their softmaxes and added up (arXiv
1805.02867, section 3.1).

Shape suffixes: B sequences, T tokens of all shards, t of this one, S of what follows, L keys that are kept here, H
query heads, K key/value heads, R query heads to each of these, D head size, E hidden size, P processes.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache

from lengthen._compat import with_cache, without_cudnn_attention
from lengthen.attention.layout import Shard
from lengthen.attention.peers import Peers
from lengthen.context import is_length_dependent
from lengthen.decoding.chunked_attention import chunked_attention, chunked_mask, needs_no_mask
from lengthen.decoding.prefill import is_rounding
from lengthen.errors import ContextError, ModelError
from lengthen.head import causal_lm, decoder_of, hidden_states

__all__ = ["check_shards", "continue_shards", "gather_tokens", "read_shard"]

_NAME = "shards"
# Queries of one call where masks are needed, at most, and the numbers of such a mask.
_ROWS, _MASK_NUMBERS = 1024, 2**26
_CHECKED_TOKENS = 16

MaskOf: TypeAlias = Callable[..., torch.Tensor | None]
"""The mask of some of the queries and keys, by their lengths and offsets (`chunked_mask`)."""

_SHARD: ContextVar[Shard | None] = ContextVar("shard", default=None)


@torch.inference_mode()
def read_shard(model: Any, input_ids: torch.Tensor, shard: Shard, cache: DynamicCache | None = None) -> torch.Tensor:
    """Read this process's shard of an input; all processes call it together.

    Args:
        model: a causal language model of transformers with attention "sdpa", or a PEFT model around one, in evaluation
            mode, the same in all processes (`check_shards`).
        input_ids: (B, T) token ids of the whole input, without padding.
        shard: of it.
        cache: an empty one, to keep the shard's keys and values in, for `continue_shards`.

    Returns:
        (B, t, E), the decoder's last hidden states.

    Raises:
        ModelError: the model's attention is not torch's, or a cache would not hold the whole shard in each layer.
    """
    if cache is not None and (any(cache.is_sliding) or any(cache.is_linear)):
        raise ModelError(
            f"{type(causal_lm(model)).__name__} has layers with a window or without keys and values, which several "
            "processes can read but not continue; start one process"
        )
    device = causal_lm(model).device
    ids_Bt = input_ids[:, shard.start : shard.stop].to(device).long()
    position_ids = torch.arange(shard.start, shard.stop, device=device)[None]
    keeping = {"use_cache": False} if cache is None else with_cache(cache)
    with _reading(model, shard):
        hidden_BtE: torch.Tensor = decoder_of(model)(input_ids=ids_Bt, position_ids=position_ids, **keeping)[0]
    return hidden_BtE


@torch.inference_mode()
def continue_shards(model: Any, input_ids: torch.Tensor, shard: Shard, cache: DynamicCache) -> torch.Tensor:
    """Read what follows an input; all processes call it together, with the same tokens.

    Args:
        model: as in `read_shard`.
        input_ids: (B, S) token ids.
        shard: of the input.
        cache: from `read_shard`, to which keys and values of these tokens are added.

    Returns:
        (B, S, V), logits, the same in all processes.

    Raises:
        ModelError: the model's attention is not torch's.
    """
    ids_BS = input_ids.to(causal_lm(model).device)
    first = shard.bounds[-1] + cache.get_seq_length() - (shard.stop - shard.start)
    position_ids = torch.arange(first, first + ids_BS.shape[1], device=ids_BS.device)[None]
    with _reading(model, shard):
        logits_BSV: torch.Tensor = model(input_ids=ids_BS, position_ids=position_ids, **with_cache(cache)).logits
    return logits_BSV


def gather_tokens(own_Bt: torch.Tensor, shard: Shard, bounds: Sequence[int]) -> torch.Tensor:
    """Gather a row of numbers, of which each process has a part, in all processes.

    Args:
        own_Bt: this process's, (B, t).
        shard: of the processes.
        bounds: where each one's begin, and behind them the number of all.

    Returns:
        (B, T).
    """
    parts = _from_all(own_Bt, shard, [(len(own_Bt), stop - start) for start, stop in pairwise(bounds)])
    return torch.cat(parts, dim=1)


@torch.inference_mode()
def check_shards(model: Any, input_ids: torch.Tensor, peers: Peers) -> None:
    """Refuse a model that computes something else in shards than in one process; all processes call it together.

    Args:
        model: as in `read_shard`.
        input_ids: (B, T) token ids, of which the first 16 of each process are used.
        peers: the processes.

    Raises:
        ContextError: the model's RoPE depends on the length of the input.
        ModelError: the model's attention is not torch's, or the hidden states differ.
    """
    name = type(causal_lm(model)).__name__
    if is_length_dependent(causal_lm(model).config):
        raise ContextError(
            f"this {name} has RoPE that changes with the length of its input, so it can't be read in shards; start one "
            "process, or scale its positions by another method"
        )
    ids_BT = input_ids[:1, : _CHECKED_TOKENS * peers.count]
    if ids_BT.shape[1] < peers.shortest:
        return
    shard = peers.shard(ids_BT.shape[1])
    with without_cudnn_attention():
        whole_BTE = hidden_states(model, ids_BT)
        own_BtE = read_shard(model, ids_BT, shard)
    is_same = is_rounding(own_BtE, whole_BTE[:, shard.start : shard.stop])
    own = torch.tensor([[float(is_same)]], device=whole_BTE.device)
    are_same = gather_tokens(own, shard, range(peers.count + 1))  # all refuse, or none
    if not are_same.all() and whole_BTE.isfinite().all():
        raise ModelError(
            f"{name} computes something else in shards of a sequence than in one process; start one process"
        )


@contextmanager
def _reading(model: Any, shard: Shard) -> Iterator[None]:
    """Let a model's attention go over shards in this block."""
    base = causal_lm(model)
    before = base.config._attn_implementation
    if before != "sdpa":
        raise ModelError(
            f"{type(base).__name__} has attention {before!r}, and shards of a sequence are read with torch's (sdpa); "
            "start one process"
        )
    base.set_attn_implementation(_NAME)
    token = _SHARD.set(shard)
    try:
        yield
    finally:
        _SHARD.reset(token)
        base.set_attn_implementation(before)


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: MaskOf,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function registered as "shards": (B, H, t or S, D) to (B, t or S, H, D)."""
    shard = _SHARD.get()
    assert shard is not None
    if query.shape[2] < key.shape[2]:
        return _merged(query, key, value, shard, scaling), None
    return _over_prefix(module, query, key, value, attention_mask, shard, scaling=scaling, **kwargs), None


def _over_prefix(
    module: nn.Module,
    q_BHtD: torch.Tensor,
    k_BKtD: torch.Tensor,
    v_BKtD: torch.Tensor,
    mask_of: MaskOf,
    shard: Shard,
    **kwargs: Any,
) -> torch.Tensor:
    """A shard's queries over all keys up to its end."""
    k_BKTD, v_BKTD = _prefix(k_BKtD, v_BKtD, shard)
    local = mask_of.keywords.get("local_size")  # type: ignore[attr-defined]
    whole = needs_no_mask(q_BHtD) and local is None
    rows = shard.stop if whole else max(1, min(_ROWS, _MASK_NUMBERS // shard.stop))
    outputs = []
    for first in range(shard.start, shard.stop, rows):
        stop = min(first + rows, shard.stop)
        begin = 0 if local is None else max(0, first + 1 - local)
        q = q_BHtD[:, :, first - shard.start : stop - shard.start]
        k, v = k_BKTD[:, :, begin:stop], v_BKTD[:, :, begin:stop]
        mask = mask_of(q_length=stop - first, kv_length=stop - begin, q_offset=first, kv_offset=begin)
        outputs.append(chunked_attention(module, q, k, v, mask, **kwargs)[0])
    return torch.cat(outputs, dim=1)


def _prefix(k_BKtD: torch.Tensor, v_BKtD: torch.Tensor, shard: Shard) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values up to the end of the shard, (B, K, shard.stop, D); those of the shard go to all behind it."""
    batch, heads, _, size = k_BKtD.shape
    # Tokens first: what comes from another process is then one piece of memory, and nothing is copied.
    both = k_BKtD.new_empty(shard.stop, batch, heads, size + v_BKtD.shape[3])
    own = both[shard.start :]
    own[..., :size], own[..., size:] = k_BKtD.permute(2, 0, 1, 3), v_BKtD.permute(2, 0, 1, 3)
    behind = range(shard.rank + 1, len(shard.bounds) - 1)
    shard.transport(
        {other: own.view(-1) for other in behind},
        {other: both[shard.bounds[other] : shard.bounds[other + 1]].view(-1) for other in range(shard.rank)},
    )()
    k_TBKD, v_TBKD = both.split([size, v_BKtD.shape[3]], dim=3)
    return k_TBKD.permute(1, 2, 0, 3), v_TBKD.permute(1, 2, 0, 3)


def _merged(
    q_BHSD: torch.Tensor, k_BKLD: torch.Tensor, v_BKLD: torch.Tensor, shard: Shard, scaling: float | None
) -> torch.Tensor:
    """Queries that all processes have over the keys of all shards and, causally, over their own: (B, S, H, D)."""
    new, size = q_BHSD.shape[2:]
    kv_heads, is_last = k_BKLD.shape[1], shard.rank == len(shard.bounds) - 2
    if not is_last:  # the last process counts what follows the input, which all have
        kept = shard.stop - shard.start
        k_BKLD, v_BKLD = k_BKLD[:, :, :kept], v_BKLD[:, :, :kept]
    q_BKRSD = q_BHSD.unflatten(1, (kv_heads, -1)).float() * (size**-0.5 if scaling is None else scaling)
    parts = []
    for q_BRSD, k_BLD, v_BLD in zip(q_BKRSD.unbind(1), k_BKLD.unbind(1), v_BKLD.unbind(1), strict=True):
        scores_BRSL = q_BRSD @ k_BLD[:, None].float().mT
        if is_last:
            later = torch.ones(new, new, dtype=torch.bool, device=q_BHSD.device).triu(1)
            scores_BRSL[..., -new:].masked_fill_(later, float("-inf"))
        sums_BRS = scores_BRSL.logsumexp(-1, keepdim=True)
        out_BRSD = (scores_BRSL - sums_BRS).exp() @ v_BLD[:, None].float()
        parts.append(torch.cat([out_BRSD, sums_BRS], dim=-1))
    own = torch.stack(parts, dim=1)
    found = torch.stack(_from_all(own, shard, [tuple(own.shape)] * (len(shard.bounds) - 1)))
    out_PBKRSD, sums = found[..., :-1], found[..., -1:]
    out_BKRSD = (out_PBKRSD * sums.softmax(0)).sum(0)
    return out_BKRSD.flatten(1, 2).transpose(1, 2).to(q_BHSD.dtype).contiguous()


def _from_all(own: torch.Tensor, shard: Shard, shapes: Sequence[tuple[int, ...]]) -> list[torch.Tensor]:
    """The tensors of all processes, in their order."""
    found = [own if rank == shard.rank else own.new_empty(shape) for rank, shape in enumerate(shapes)]
    others = [rank for rank in range(len(shapes)) if rank != shard.rank]
    message = own.contiguous().view(-1)
    shard.transport(
        {other: message for other in others if message.numel()},
        {other: found[other].view(-1) for other in others if found[other].numel()},
    )()
    return found


def _mask(**arguments: Any) -> MaskOf:
    """The mask function registered for "shards", which makes masks of parts later on."""
    return partial(chunked_mask, **arguments)


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, _mask)
