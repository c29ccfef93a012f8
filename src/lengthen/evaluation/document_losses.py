"""Every token's loss in its document, to compare two models or two contexts token by token."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lengthen.evaluation.losses import window_losses
from lengthen.evaluation.windows import begin_token, pick_stride, pick_windows

__all__ = ["document_losses"]


def document_losses(
    model: Any,
    documents: Sequence[np.ndarray],
    context: int,
    batch_size: int = 1,
    stride: int | None = None,
    on_tokens: Callable[[int], None] = lambda _tokens: None,
) -> list[np.ndarray]:
    """Compute the losses that `perplexity` averages, by the protocol "strided".

    A document of at most `context` tokens is one window, read once. A longer one slides by `stride`: each later token
    is predicted from at least `context - stride` tokens, the one that documents begin with included (see `perplexity`).

    Args:
        model: a causal language model of transformers, or a PEFT model around one, in evaluation mode.
        documents: token ids of each.
        context: the longest window, in tokens.
        batch_size: windows that are run together.
        stride: tokens from one window to the next; default half the context.
        on_tokens: called after each chunk with the tokens read.

    Returns:
        For each document float64 losses in nats of its tokens, the first of which (predicted by nothing) is NaN.

    Raises:
        ModelError: as `token_losses`.
    """
    losses = [np.full(len(ids), np.nan) for ids in documents]
    windows = pick_windows(documents, context, pick_stride(context, stride, "strided"), "strided")
    begin = begin_token(model, documents)
    for window, losses_S in window_losses(model, documents, windows, context, batch_size, begin, on_chunk=on_tokens):
        losses[window.document][window.score : window.end] = losses_S
    return losses
