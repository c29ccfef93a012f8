"""The backends that compute the groups, by name, and which of them suits a device and a batch."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch

from lengthen._compat import flash_varlen, torch_varlen
from lengthen.attention.documents import Documents, is_regular
from lengthen.attention.flash import Varlen, s2_flash
from lengthen.attention.flex import s2_flex
from lengthen.attention.sdpa import s2_sdpa
from lengthen.attention_pattern import BackendName, Groups
from lengthen.errors import ModelError

__all__ = ["Backend", "pick_backend", "varlen_backend"]

Backend = Callable[..., torch.Tensor]
"""(q, k, v, documents, groups, scaling, dropout) -> (B, T, H, D')"""

_HALF = (torch.bfloat16, torch.float16)
_PACKAGES = {
    "flash_attention_2": ("flash_attn", "flash-attn"),
    "flash_attention_3": ("flash_attn_interface", "flash-attn-3"),
}
_WITH_DROPOUT = ("flash_attention_2",)
_LARGEST_HEAD = 256
"""Head size that variable-length kernels take at most."""
_FEW_SCORES = 2**30
"""Scores of a call, all heads and half of them masked, up to which launches take longer than kernels on an H100."""


def pick_backend(name: BackendName, device: torch.device, dtype: torch.dtype) -> Backend:
    """The function of a backend.

    Args:
        name: "auto" decides for each batch by the device, the dtype, the layout and what is installed (`_auto`).
        device: of the model.
        dtype: of the model.

    Raises:
        ModelError: the backend is not installed, or does not run there.
    """
    if name == "auto":
        return _auto(device, dtype)
    if name == "sdpa":
        return s2_sdpa
    if name == "flex_attention":
        return s2_flex
    if device.type != "cuda":
        raise ModelError(f"attention.backend={name} needs a CUDA GPU, and the model is on {device.type}; take sdpa")
    if dtype not in _HALF:
        raise ModelError(f"attention.backend={name} needs training.dtype bfloat16 or float16, not {dtype}")
    if not _is_there(name):
        what = (
            f"the package {_PACKAGES[name][1]}, which is not installed" if name in _PACKAGES else "torch 2.11 or later"
        )
        raise ModelError(f"attention.backend={name} needs {what}; or take sdpa")
    if torch.cuda.get_device_capability(device) < (8, 0):
        raise ModelError(f"attention.backend={name} needs a GPU of compute capability 8.0 or later; take sdpa")
    return varlen_backend(name)


@dataclass(frozen=True)
class _ByLayout:
    """Which backend computes a batch.

    Attributes:
        regular: for batches whose layout is likely to come back (`is_regular`), with enough work for several calls.
        irregular: for all others, such as packed documents.
        with_dropout: for both, where attention weights are dropped.
    """

    regular: Backend
    irregular: Backend
    with_dropout: Backend

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        documents: Documents,
        groups: Groups,
        scaling: float | None = None,
        dropout: float = 0.0,
    ) -> torch.Tensor:
        backend = self.irregular
        if is_regular(documents, q.shape[2]) and _scores(q, groups) > _FEW_SCORES:
            backend = self.regular
        if dropout:
            backend = self.with_dropout
        if q.shape[-1] > _LARGEST_HEAD:
            backend = s2_sdpa
        return backend(q, k, v, documents, groups, scaling, dropout)


def _scores(q_BHTD: torch.Tensor, groups: Groups) -> int:
    """How many scores attention has in sequences of one document each."""
    batch, heads, length, _ = q_BHTD.shape
    return batch * heads * length * max(end - begin for begin, end in pairwise(groups.cuts(length, 0)))


def _auto(device: torch.device, dtype: torch.dtype) -> Backend:
    """The fastest backends of a device, as far as they are installed.

    On an H100, layers of 32 heads of 128, forward and backward (docs/results/gpu): for one document of 32,768 tokens in
    groups of 8,192, cuDNN through `sdpa` takes 15.7 ms, torch's variable-length kernel 25.8, flash through `sdpa` 26.9;
    for ten packed documents 15.4 ms by the variable-length kernel, 21.9 by flash, and 14.2 by cuDNN, which needs 1.5 s
    once for each new layout. For 8,192 tokens in groups of 2,048 (2^29 scores), cuDNN's three calls take 4.0 ms, the
    variable-length kernel's two 2.9; from 2^31 scores on cuDNN was the faster in each case.

    Before Hopper and on consumer Blackwell cuDNN's kernels are slower than flash.
    """
    if device.type != "cuda" or dtype not in _HALF:
        return s2_sdpa
    capability = torch.cuda.get_device_capability(device)
    varlen = [each for each in ("torch_varlen", "flash_attention_2") if capability >= (8, 0) and _is_there(each)]
    with_dropout = next((varlen_backend(each) for each in varlen if each in _WITH_DROPOUT), s2_sdpa)
    if capability[0] == 9 and _is_there("flash_attention_3"):
        best = varlen_backend("flash_attention_3")
        return _ByLayout(best, best, with_dropout)
    if not varlen:
        return s2_sdpa
    irregular = varlen_backend(varlen[0])
    has_fast_cudnn = capability[0] in (9, 10)
    return _ByLayout(s2_sdpa if has_fast_cudnn else irregular, irregular, with_dropout)


def _is_there(name: str) -> bool:
    if name == "torch_varlen":
        return torch_varlen() is not None
    # Of flash-attn-4 alone, `flash_attn` is a namespace without a file of its own, and without version 2 in it.
    spec = importlib.util.find_spec(_PACKAGES[name][0])
    return spec is not None and spec.origin is not None


def varlen_backend(name: str) -> Backend:
    """The function of a variable-length backend, which must be installed."""
    varlen = torch_varlen() if name == "torch_varlen" else flash_varlen(_PACKAGES[name][0])
    assert varlen is not None
    return partial(_flash, varlen, name)


def _flash(
    varlen: Varlen,
    name: str,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    documents: Documents,
    groups: Groups,
    scaling: float | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    if dropout and name not in _WITH_DROPOUT:
        raise ModelError(f"{name} has no attention dropout; set it to 0 in the config, or attention.backend=sdpa")
    if q.dtype not in _HALF:  # a norm on queries and keys that stays in float32
        q, k, v = (x.to(torch.bfloat16) for x in (q, k, v))
    return s2_flash(q, k, v, documents, groups, scaling, dropout, varlen=varlen)
