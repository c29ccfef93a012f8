"""Norms and gated activations as one kernel each, by liger-kernel (optional, CUDA).

Eager PyTorch computes an RMS norm in six passes over memory and keeps a float32 copy of what it takes. The kernels
replace the forward functions of single modules, never of classes; weights stay where they are, so adapters, trained
norms and checkpoints know nothing of it.

Rotary positions are left as they are: liger's kernel for them could only be put into transformers' module, for all
models of the process.
"""

from types import MethodType
from typing import Any

import torch
from torch import nn

from lengthen.adapters.targets import is_norm
from lengthen.errors import ModelError, RecipeError, require

__all__ = ["check_fused", "fuse_elementwise"]

_TOLERANCE = 2e-2
"""Share of the largest output; bfloat16 rounds to 2^-8."""


def check_fused(device: torch.device) -> None:
    """Refuse fused kernels that can't be had.

    Args:
        device: of the run.

    Raises:
        RecipeError: not on CUDA, or liger-kernel is not installed.
    """
    if device.type != "cuda":
        raise RecipeError(
            f"memory.fused_kernels needs a CUDA GPU, and the model is on {device.type}; set memory.fused_kernels=false"
        )
    require("memory.fused_kernels", "liger", "liger_kernel", error=RecipeError)


def fuse_elementwise(model: nn.Module) -> tuple[int, int]:
    """Let RMS norms and SiLU-gated MLPs compute by fused kernels, forward and backward.

    Which modules are meant is seen by what they compute: those that equal the kernels' formula on a few random tokens.
    The others, such as norms that add 1 to their weight, stay as they are.

    Args:
        model: a transformers model without adapters.

    Returns:
        How many norms, and how many MLPs.

    Raises:
        ModelError: there are neither.
    """
    norms = [module for module in model.modules() if _is_plain_rms_norm(module)]
    mlps = [module for module in model.modules() if _is_silu_gated(module)]
    if not norms and not mlps:
        raise ModelError(
            f"{type(model).__name__} has no norms or MLPs for fused kernels; set memory.fused_kernels=false"
        )
    for module in norms:
        module.forward = MethodType(_rms_norm, module)
    for module in mlps:
        module.forward = MethodType(_gated, module)
    return len(norms), len(mlps)


def _rms_norm(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    from liger_kernel.ops import LigerRMSNormFunction

    offset, casts_like, in_place = 0.0, "llama", False
    return LigerRMSNormFunction.apply(hidden_states, self.weight, _epsilon(self), offset, casts_like, in_place)


def _gated(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    from liger_kernel.ops import LigerSiLUMulFunction

    gate, up = self.gate_proj(hidden_states), self.up_proj(hidden_states)
    return self.down_proj(LigerSiLUMulFunction.apply(gate, up))


def _epsilon(norm: Any) -> float | None:
    return getattr(norm, "variance_epsilon", getattr(norm, "eps", None))


@torch.no_grad()
def _is_plain_rms_norm(module: Any) -> bool:
    epsilon = _epsilon(module)
    if not is_norm(module) or epsilon is None or [name for name, _ in module.named_parameters()] != ["weight"]:
        return False
    tokens = _some_tokens(module.weight.shape[-1], module.weight)
    variance = tokens.float().pow(2).mean(-1, keepdim=True)
    expected = module.weight.float() * tokens.float() * torch.rsqrt(variance + epsilon)
    return _is_same(module, tokens, expected)


@torch.no_grad()
def _is_silu_gated(module: Any) -> bool:
    parts = [part for name, part in module.named_children() if name in ("gate_proj", "up_proj", "down_proj")]
    if len(parts) < 3 or not all(isinstance(part, nn.Linear) for part in parts):
        return False
    gate, up, down = module.gate_proj, module.up_proj, module.down_proj
    tokens = _some_tokens(gate.in_features, next(p for p in module.parameters() if p.is_floating_point()))
    return _is_same(module, tokens, down(nn.functional.silu(gate(tokens)) * up(tokens)))


def _some_tokens(width: int, like: torch.Tensor) -> torch.Tensor:
    """(1, 4, width), the same in each call."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 4, width, generator=generator).to(like.device, like.dtype)


def _is_same(module: nn.Module, tokens: torch.Tensor, expected: torch.Tensor) -> bool:
    try:
        out = module(tokens)
    except (TypeError, ValueError, RuntimeError):  # it takes something else
        return False
    if not isinstance(out, torch.Tensor) or out.shape != expected.shape:
        return False
    return bool((out.float() - expected.float()).abs().max() <= _TOLERANCE * expected.abs().max())
