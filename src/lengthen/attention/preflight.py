"""Checks of a model on a few tokens before a run: whether S2 works in it, and whether packing does."""

from typing import Any

import torch
from torch import nn

from lengthen.attention.backends import Backend
from lengthen.attention.registration import set_group_size
from lengthen.attention_pattern import BackendName
from lengthen.errors import ModelError

__all__ = ["check_s2", "keeps_documents_apart", "use_full_by_layout"]


@torch.no_grad()
def check_s2(model: nn.Module) -> tuple[int, int]:
    """Run a few tokens in training mode, so that a model S2 can't do exactly is refused before the first step.

    Args:
        model: with its groups set.

    Returns:
        How many attention layers use S2, and how many there are; the others have a window of their own.

    Raises:
        ModelError: the model has something S2 can't do, or its attention never asks for S2.
    """
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "s2_groups")]
    used: set[int] = set()

    def seen(layer: Any, backend: Backend) -> Backend:
        def noting(*arguments: Any) -> torch.Tensor:
            used.add(id(layer))
            return backend(*arguments)

        return noting

    backends = [layer.s2_backend for layer in layers]
    was_training = model.training
    try:
        for layer, backend in zip(layers, backends, strict=True):
            layer.s2_backend = seen(layer, backend)
        model.train()
        model(input_ids=torch.ones(1, 8, dtype=torch.long, device=next(model.parameters()).device), use_cache=False)
    finally:
        model.train(was_training)
        for layer, backend in zip(layers, backends, strict=True):
            layer.s2_backend = backend
    if not used:
        raise ModelError(
            f"every attention layer of {type(model).__name__} has a window of its own or does not ask for S2; set "
            "attention.kind=full"
        )
    return len(used), len(layers)


@torch.no_grad()
def keeps_documents_apart(model: nn.Module) -> bool:
    """Whether documents that are packed in one sequence do not see each other.

    Attention keeps them apart by their positions; recurrent and convolutional layers of hybrid models may not.

    Args:
        model: a causal language model.
    """
    device = next(model.parameters()).device
    first, second = torch.arange(1, 7, device=device), torch.arange(2, 8, device=device)
    position_ids = torch.cat([torch.arange(6, device=device)] * 2)[None]

    def after(document: torch.Tensor) -> torch.Tensor:
        ids = torch.cat([document, second])[None]
        return model(input_ids=ids, position_ids=position_ids, use_cache=False).logits[:, 6:]

    was_training = model.training
    model.eval()
    try:
        ours, other = after(first), after(first.flip(0))
        # Not exactly equal: experts compute in groups whose sizes depend on all tokens.
        tolerance = 1e-4 if ours.dtype == torch.float32 else 2e-2
        return bool((ours - other).abs().max() <= tolerance * ours.abs().max())
    finally:
        model.train(was_training)


def use_full_by_layout(model: Any, backend: BackendName = "auto") -> bool:
    """Let full attention find packed documents by their layout, as S2 does, so that no (T, T) mask is built.

    Each document then costs what it would alone, and the attention has the backends of S2.

    Args:
        model: a transformers model with full attention of its own.
        backend: that computes it, as for `set_group_size`.

    Returns:
        Whether it took that; a model that S2 can't do exactly keeps what it had.
    """
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation("s2")
        set_group_size(model, 2, pattern="full", backend=backend)
        check_s2(model)
    except (ModelError, KeyError, ValueError):  # the last two are of architectures with attention of their own
        model.set_attn_implementation(before)
        return False
    return True
