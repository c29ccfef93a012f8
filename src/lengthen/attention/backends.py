"""What computes the groups: the backends by name, and which of them suits a device."""

import importlib.util
from collections.abc import Callable
from functools import partial

import torch

from lengthen._compat import flash_varlen
from lengthen.attention.flash import Varlen, s2_flash
from lengthen.attention.flex import s2_flex
from lengthen.attention.layout import Documents
from lengthen.attention.pattern import Groups
from lengthen.attention.sdpa import s2_sdpa
from lengthen.errors import ModelError
from lengthen.recipe import BackendName

__all__ = ["Backend", "pick_backend"]

Backend = Callable[..., torch.Tensor]
"""(q, k, v, documents, groups, scaling, dropout) -> (B, T, H, D')"""

_HALF = (torch.bfloat16, torch.float16)
_PACKAGES = {
    "flash_attention_2": ("flash_attn", "flash-attn"),
    "flash_attention_3": ("flash_attn_interface", "flash-attn-3"),
}


def pick_backend(name: BackendName, device: torch.device, dtype: torch.dtype) -> Backend:
    """The function of a backend.

    Args:
        name: "auto" takes flash-attention where it is installed and the GPU and the dtype can do it, else "sdpa".
        device: of the model.
        dtype: of the model.

    Raises:
        ModelError: the backend is not installed, or does not run there.
    """
    if name == "auto":
        name = _best(device, dtype)
    if name == "sdpa":
        return s2_sdpa
    if name == "flex_attention":
        return s2_flex
    module, package = _PACKAGES[name]
    if device.type != "cuda":
        raise ModelError(f"attention.backend={name} needs a CUDA GPU, and the model is on {device.type}; take sdpa")
    if not _is_installed(module):
        raise ModelError(f"attention.backend={name} needs the package {package}, which is not installed; or take sdpa")
    if dtype not in _HALF:
        raise ModelError(f"attention.backend={name} needs training.dtype bfloat16 or float16, not {dtype}")
    return partial(_flash, flash_varlen(module), name)


def _best(device: torch.device, dtype: torch.dtype) -> BackendName:
    if device.type == "cuda" and dtype in _HALF:
        capability = torch.cuda.get_device_capability(device)
        if capability >= (9, 0) and _is_installed(_PACKAGES["flash_attention_3"][0]):
            return "flash_attention_3"
        if capability >= (8, 0) and _is_installed(_PACKAGES["flash_attention_2"][0]):
            return "flash_attention_2"
    return "sdpa"


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _flash(
    varlen: Varlen,
    name: str,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    documents: Documents,
    groups: Groups,
    scaling: float | None,
    dropout: float,
) -> torch.Tensor:
    if dropout and name == "flash_attention_3":
        raise ModelError(f"{name} has no attention dropout; set it to 0 in the config, or attention.backend=sdpa")
    if q.dtype not in _HALF:  # a norm on queries and keys that stays in float32
        q, k, v = (x.to(torch.bfloat16) for x in (q, k, v))
    return s2_flash(q, k, v, documents, groups, scaling, dropout, varlen=varlen)
