"""The language-model loss without its logits: head and cross entropy fused, a chunk of tokens at a time.

A (T, V) tensor of logits takes 3.2 GB at 16,384 tokens and SmolLM2's 49,152 words, in float32, and its gradient as
much again. Here each chunk's logits give loss and gradients at once and are forgotten.

Shape suffixes: T tokens, C tokens of a chunk, E hidden size, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from lengthen._compat import float32_product
from lengthen.data.collate import IGNORED
from lengthen.models.logits import tokens_per_chunk

__all__ = ["linear_cross_entropy", "linear_kl"]

Transform = Callable[[torch.Tensor], torch.Tensor]
ChunkLoss = Callable[[torch.Tensor, slice], torch.Tensor]
"""From the float32 logits of a chunk of tokens, (C, V), and which ones they are, to the chunk's loss."""


class _LinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TE: torch.Tensor,
        weight_VE: torch.Tensor,
        bias_V: torch.Tensor | None,
        loss_of_chunk: ChunkLoss,
    ) -> torch.Tensor:
        weight = weight_VE.to(hidden_TE.dtype)
        loss = torch.zeros((), dtype=torch.float32, device=hidden_TE.device)
        grad_hidden = torch.zeros_like(hidden_TE) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight_VE, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        grad_bias = (
            torch.zeros_like(bias_V, dtype=torch.float32) if bias_V is not None and ctx.needs_input_grad[2] else None
        )
        # The dtypes here are chosen; autocast would only copy.
        autocast_off = torch.autocast(hidden_TE.device.type, enabled=False)
        rows = tokens_per_chunk(weight_VE.shape[0], hidden_TE.device.type != "cpu")
        for start in range(0, hidden_TE.shape[0], rows):
            span = slice(start, start + rows)
            hidden_CE = hidden_TE[span].detach()
            with torch.enable_grad(), autocast_off:
                raw_CV = float32_product(hidden_CE, weight.detach().t())
                if bias_V is not None:
                    raw_CV = raw_CV + bias_V.detach().float()
                raw_CV.requires_grad_()
                chunk_loss = loss_of_chunk(raw_CV, span)
            loss += chunk_loss.detach()
            if not any(ctx.needs_input_grad[:3]):
                continue
            (grad_CV,) = torch.autograd.grad(chunk_loss, raw_CV)
            if grad_bias is not None:
                grad_bias += grad_CV.sum(0)
            grad_CV = grad_CV.to(hidden_TE.dtype)
            with autocast_off:
                if grad_hidden is not None:
                    torch.mm(grad_CV, weight, out=grad_hidden[span])
                if grad_weight is not None:
                    grad_weight += grad_CV.t() @ hidden_CE
        ctx.grads = (grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = (weight_VE.dtype, bias_V.dtype if bias_V is not None else None)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> Any:
        if ctx.grads is None:
            raise RuntimeError("a second backward pass through this loss: its gradients were scaled in place")
        (grad_hidden, grad_weight, grad_bias), ctx.grads = ctx.grads, None
        (scale,) = grad_outputs
        if grad_hidden is not None:
            grad_hidden *= scale.to(grad_hidden.dtype)
        if grad_weight is not None:
            grad_weight = (grad_weight * scale).to(ctx.dtypes[0])
        if grad_bias is not None:
            grad_bias = (grad_bias * scale).to(ctx.dtypes[1])
        return grad_hidden, grad_weight, grad_bias, None


def linear_cross_entropy(
    hidden_TE: torch.Tensor,
    weight_VE: torch.Tensor,
    targets_T: torch.Tensor,
    bias_V: torch.Tensor | None = None,
    transform: Transform | None = None,
    loss_weights_T: torch.Tensor | None = None,
    losses_T: torch.Tensor | None = None,
) -> torch.Tensor:
    """Summed cross entropy of softmax(transform(hidden @ weight.T + bias)), `tokens_per_chunk` tokens at a time.

    Args:
        hidden_TE: last hidden states, (T, E); their dtype is the matrix products'.
        weight_VE: the head's weight, (V, E), in any dtype.
        targets_T: ids, (T,); rows with -100 don't count.
        bias_V: the head's bias, (V,).
        transform: applied to each chunk's logits, in float32.
        loss_weights_T: of each target's loss in the sum, float32, (T,); default 1.
        losses_T: filled with each target's weighted loss, float32, (T,).

    Returns:
        A float32 scalar; its gradient reaches hidden, weight and bias.
    """

    def loss_of_chunk(logits_CV: torch.Tensor, span: slice) -> torch.Tensor:
        logits_CV = transform(logits_CV) if transform else logits_CV
        losses_C = cross_entropy(logits_CV, targets_T[span], ignore_index=IGNORED, reduction="none")
        if loss_weights_T is not None:
            losses_C = losses_C * loss_weights_T[span]
        if losses_T is not None:
            losses_T[span] = losses_C.detach()
        return losses_C.sum()

    return _LinearLoss.apply(hidden_TE, weight_VE, bias_V, loss_of_chunk)


def linear_kl(
    hidden_TE: torch.Tensor,
    weight_VE: torch.Tensor,
    base_hidden_TE: torch.Tensor,
    base_weight_VE: torch.Tensor,
    bias_V: torch.Tensor | None = None,
    transform: Transform | None = None,
) -> torch.Tensor:
    """Summed KL(base || run) of what two models predict after each token, `tokens_per_chunk` tokens at a time.

    Args:
        hidden_TE: the run's last hidden states, (T, E).
        weight_VE: the weight of its head, (V, E).
        base_hidden_TE: the base's, (T, E).
        base_weight_VE: the weight of its head, (V, E).
        bias_V: of both heads, (V,).
        transform: applied to each chunk's logits, in float32, of both.

    Returns:
        A float32 scalar; its gradient reaches the run's hidden states, weight and bias.
    """
    base_weight_EV = base_weight_VE.detach().to(base_hidden_TE.dtype).t()

    def log_probabilities(logits_CV: torch.Tensor) -> torch.Tensor:
        return log_softmax(transform(logits_CV) if transform else logits_CV, dim=-1)

    def loss_of_chunk(logits_CV: torch.Tensor, span: slice) -> torch.Tensor:
        with torch.no_grad():
            base_CV = float32_product(base_hidden_TE[span], base_weight_EV)
            base_CV = log_probabilities(base_CV if bias_V is None else base_CV + bias_V.float())
        return kl_div(log_probabilities(logits_CV), base_CV, reduction="sum", log_target=True)

    return _LinearLoss.apply(hidden_TE, weight_VE, bias_V, loss_of_chunk)
