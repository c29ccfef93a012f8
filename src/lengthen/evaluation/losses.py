"""Each token's loss without the logits of a whole window.

Shapes: B windows in a batch, T tokens, S scored tokens, H hidden size, V vocabulary, R rows of one chunk.
"""

from typing import Any

import torch
from torch.nn import functional

from lengthen.errors import ModelError
from lengthen.head import LogitTransform, causal_lm, decoder_of

__all__ = ["check_head", "token_losses"]

# The logits of one chunk hold at most this many tokens, and at most this many numbers (256 MiB in float32).
_CHUNK_ROWS = 1024
_CHUNK_NUMBERS = 2**26
_CHECKED_TOKENS = 16


@torch.inference_mode()
def token_losses(model: Any, input_ids: torch.Tensor, score_from: int = 1) -> torch.Tensor:
    """Compute each token's negative log-likelihood without ever holding the logits of a whole window.

    The decoder runs once; the output head and the cross entropy follow on at most 1024 tokens at a time. The head
    works in the model's dtype, all after it in float32.

    Args:
        model: a causal language model of transformers, or a PEFT model around one, in the mode it is to be run in.
        input_ids: (B, T) token ids, full windows without padding.
        score_from: the first scored token's place in the window, at least 1: the first token is predicted by nothing.

    Returns:
        (B, T - score_from) losses in nats, float32, on the device of the logits.

    Raises:
        ModelError: the model has no decoder or no output head.
    """
    assert 1 <= score_from < input_ids.shape[1], (score_from, input_ids.shape)
    input_ids_BT = input_ids.long()
    # The last token is a target only. Not reading it also keeps a model that is not causal from seeing it.
    hidden_BTH = _hidden(model, input_ids_BT[:, :-1])
    hidden_RH = hidden_BTH[:, score_from - 1 :].flatten(0, 1)
    targets_R = input_ids_BT[:, score_from:].flatten()
    rows = max(1, min(_CHUNK_ROWS, _CHUNK_NUMBERS // causal_lm(model).get_input_embeddings().weight.shape[0]))
    losses = []
    for hidden, targets in zip(hidden_RH.split(rows), targets_R.split(rows), strict=True):
        logits_RV = _logits(model, hidden)
        losses.append(functional.cross_entropy(logits_RV, targets.to(logits_RV.device), reduction="none"))
    return torch.cat(losses).view(input_ids.shape[0], -1)


def _hidden(model: Any, input_ids_BT: torch.Tensor) -> torch.Tensor:
    return decoder_of(model)(input_ids=input_ids_BT.to(causal_lm(model).device), use_cache=False)[0]


def _logits(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """The head and what the architecture does after it, in float32."""
    base = causal_lm(model)
    return LogitTransform(base.config)(base.get_output_embeddings()(hidden).float())


@torch.inference_mode()
def check_head(model: Any, input_ids: torch.Tensor) -> None:
    """Refuse a model whose own logits are not the ones computed here, for its perplexity would be wrong.

    Compares all logits of a few tokens, not of one: a wrong softcap hardly shows in small logits.

    Args:
        model: as for `token_losses`.
        input_ids: (B, T) token ids, of which the first 16 are used.

    Raises:
        ModelError: the logits differ.
    """
    input_ids_BT = input_ids[:, :_CHECKED_TOKENS]
    ours = _logits(model, _hidden(model, input_ids_BT))
    own = model(input_ids=input_ids_BT.to(causal_lm(model).device), use_cache=False).logits
    # Scales and softcaps are applied in the model's dtype there and in float32 here.
    tolerance = 1e-3 if own.dtype == torch.float32 else 2e-2
    own = own.float().to(ours.device)
    largest = own.nan_to_num(0, 0, 0).abs().max().item()
    if ours.shape != own.shape or not torch.allclose(ours, own, rtol=0, atol=tolerance * largest, equal_nan=True):
        raise ModelError(
            f"{type(causal_lm(model)).__name__} does not get its logits from its decoder and output head in a way that "
            "lengthen knows (an own scale after the head, or a prompt in front); its perplexity would be wrong"
        )
