"""Each token's loss without the logits of a whole window.

Shapes: B windows in a batch, T tokens, S scored tokens, H hidden size, V vocabulary, R rows of one chunk.
"""

from typing import Any

import torch
from torch.nn import functional

from lengthen.head import causal_lm, hidden_states, logits_from

__all__ = ["token_losses"]

# The logits of one chunk hold at most this many tokens, and at most this many numbers (256 MiB in float32).
_CHUNK_ROWS = 1024
_CHUNK_NUMBERS = 2**26


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
    hidden_BTH = hidden_states(model, input_ids_BT[:, :-1])
    hidden_RH = hidden_BTH[:, score_from - 1 :].flatten(0, 1)
    targets_R = input_ids_BT[:, score_from:].flatten()
    rows = max(1, min(_CHUNK_ROWS, _CHUNK_NUMBERS // causal_lm(model).get_input_embeddings().weight.shape[0]))
    losses = []
    for hidden, targets in zip(hidden_RH.split(rows), targets_R.split(rows), strict=True):
        logits_RV = logits_from(model, hidden)
        losses.append(functional.cross_entropy(logits_RV, targets.to(logits_RV.device), reduction="none"))
    return torch.cat(losses).view(input_ids.shape[0], -1)
