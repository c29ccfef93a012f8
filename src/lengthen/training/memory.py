"""Memory savers: recomputed activations, MLPs in tiles, freed memory given back.

Each leaves loss and gradients as they are. They compose with each other, with LoRA, 4-bit bases and S2.
"""

import ctypes
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from lengthen._compat import enable_activation_checkpointing
from lengthen.errors import ModelError

__all__ = ["enable_checkpointing", "mlps_of", "tile_mlps", "trim_malloc"]

_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
}
_FLASH_ATTENTION = {"flash_attn", "flash_attn_3", "torch_attn"}
"""Namespaces of nothing but attention: of flash-attention 2 and 3, and of torch's variable-length attention."""

_LEAST_RELEASED = 2**20
"""Bytes; each release costs page faults when the memory is used again. Tiles and pieces of S2 have 2 to 3 MB."""
_M_MMAP_THRESHOLD = -3  # of malloc.h


def enable_checkpointing(model: Any, keep_attention: bool, adapter_drops: bool = True) -> None:
    """Recompute the activations of each layer in the backward pass.

    Attention is most of the work at long context, but its output is small: per layer T x hidden size. Keeping it
    saves the second attention forward for as much memory again as the layers' inputs take.

    Args:
        model: a transformers model.
        keep_attention: keep the outputs of torch's and flash-attention's kernels; flex_attention's are recomputed.
        adapter_drops: whether an adapter that comes later may have dropout. Where nothing is dropped, nothing random is
            recomputed, and the generators' states, of the GPU too, need not be read and set for each layer.
    """
    arguments: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": adapter_drops or _has_dropout(model)}
    if keep_attention:
        arguments["context_fn"] = partial(create_selective_checkpoint_contexts, _keep_attention)
    enable_activation_checkpointing(model, arguments)


def _has_dropout(model: nn.Module) -> bool:
    """Whether training mode drops anything: dropout modules, or the dropout of attention kernels."""
    return any(
        (isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0)
        or any(value > 0 for name, value in vars(module).items() if "dropout" in name and isinstance(value, float))
        for module in model.modules()
    )


def _keep_attention(_context: Any, operator: Any, *_arguments: Any, **_options: Any) -> CheckpointPolicy:
    kept = operator in _ATTENTION or getattr(operator, "namespace", None) in _FLASH_ATTENTION
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def tile_mlps(model: nn.Module, tokens: int) -> None:
    """Let every MLP compute `tokens` tokens at a time while training, and recompute each tile in the backward pass.

    An MLP looks at each token alone. Its inner activations are several times as wide as the hidden states, and with
    checkpointing most of what a layer holds in its backward pass (ALST, arXiv 2506.13996).

    Args:
        model: a transformers model without adapters.
        tokens: of a tile, at least 1.

    Raises:
        ModelError: there are no MLPs beside the attention layers; in training, an MLP that returns more than states.
    """
    mlps = mlps_of(model)
    if not mlps:
        raise ModelError(f"{type(model).__name__} has no MLPs beside its attention layers; set memory.mlp_tile=0")
    for mlp in mlps:
        mlp.forward = _tiled(mlp.forward, mlp, tokens)


def mlps_of(model: nn.Module) -> list[Any]:
    """The modules beside attention layers that have weights: MLPs, and experts."""
    return [
        module
        for layer in model.modules()
        if any(hasattr(child, "is_causal") for child in layer.children())
        for module in layer.children()
        if not hasattr(module, "is_causal") and any(parameter.ndim > 1 for parameter in module.parameters())
    ]


def _tiled(forward: Callable[..., Any], mlp: nn.Module, tokens: int) -> Callable[..., Any]:
    def tiled(hidden_BTE: torch.Tensor, *more: Any, **options: Any) -> torch.Tensor:
        if not mlp.training or hidden_BTE.ndim != 3 or hidden_BTE.shape[1] <= tokens:
            return forward(hidden_BTE, *more, **options)
        parts = [  # some take a view of their input
            checkpoint(forward, part.contiguous(), *more, use_reentrant=False, **options)
            for part in hidden_BTE.split(tokens, dim=1)
        ]
        if not isinstance(parts[0], torch.Tensor):
            raise ModelError(f"{type(mlp).__name__} returns more than hidden states; set memory.mlp_tile=0")
        return torch.cat(parts, dim=1)

    return tiled


def trim_malloc() -> None:
    """Let tensors of 1 MiB and more go back to the system as soon as they are freed, in this process from now on.

    glibc by itself learns to keep blocks up to 32 MiB for later use, and scattered ones add up to several times of what
    is in use. Other C libraries have no such setting and are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LEAST_RELEASED)
