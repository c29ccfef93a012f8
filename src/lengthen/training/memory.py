"""What a step needs less memory by: recomputed activations, MLPs in tiles, activations elsewhere, nothing freed kept.

Each leaves loss and gradients as they are. They compose with each other, with LoRA, 4-bit bases and S2.
"""

import ctypes
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import lru_cache, partial
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from lengthen._compat import enable_activation_checkpointing
from lengthen.errors import ModelError

__all__ = ["enable_checkpointing", "offload_saved", "tile_mlps", "trim_malloc"]

_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
}
_FLASH_ATTENTION = {"flash_attn", "flash_attn_3", "torch_attn"}
"""Namespaces of nothing but attention: of flash-attention 2 and 3, and of torch's variable-length attention."""

_LEAST_OFFLOADED = 2**20
"""Bytes; moving smaller tensors costs more than it saves."""

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
    """Whether training mode drops anything: modules, or what attention layers hand to their kernels."""
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
    mlps = [
        module
        for layer in model.modules()
        if any(hasattr(child, "is_causal") for child in layer.children())
        for module in layer.children()
        if not hasattr(module, "is_causal") and any(parameter.ndim > 1 for parameter in module.parameters())
    ]
    if not mlps:
        raise ModelError(f"{type(model).__name__} has no MLPs beside its attention layers; set memory.mlp_tile=0")
    for mlp in mlps:
        mlp.forward = _tiled(mlp.forward, mlp, tokens)


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


def offload_saved(model: nn.Module) -> AbstractContextManager[Any]:
    """A context in which tensors that a forward pass on an accelerator saves for its backward pass wait in CPU memory.

    With checkpointing these are the layers' inputs. Weights stay where they are; on CPU, and where accelerators share
    its memory, nothing changes. Copies run
    beside the computation: one tensor is on its way back while the one saved after it is used.

    Args:
        model: whose forward pass it is.
    """
    # Shards (DTensor) have no storage of their own, and are gathered where they are used.
    whole = (parameter for parameter in model.parameters() if not isinstance(parameter, DTensor))
    return _Offload({parameter.untyped_storage().data_ptr() for parameter in whole})


class _Offloaded:
    """A saved tensor in CPU memory, on its way there or back.

    Attributes:
        before: the one that was saved before it, which the backward pass wants next.
    """

    def __init__(self, tensor: torch.Tensor, before: "_Offloaded | None", copies: Any):
        self.before = before
        self._streams, self._copies, self._device = getattr(torch, tensor.device.type), copies, tensor.device
        self._original: torch.Tensor | None = tensor  # until the copy is complete
        self._on_device: torch.Tensor | None = None
        self._was_taken = False
        self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda")
        copies.wait_stream(self._streams.current_stream())
        with self._streams.stream(copies):
            self._host.copy_(tensor, non_blocking=True)
        self._copied = copies.record_event()

    def forget_original(self) -> None:
        """Free the tensor's memory: whatever is computed from now on begins after the copy."""
        if self._original is not None:
            self._streams.current_stream().wait_event(self._copied)
            self._original = None

    def fetch(self) -> None:
        """Begin to copy it back, behind what has been asked of the device so far; so its memory is free by then."""
        if self._on_device is None:
            self._on_device = torch.empty(self._host.shape, dtype=self._host.dtype, device=self._device)
            self._copies.wait_stream(self._streams.current_stream())
            with self._streams.stream(self._copies):
                self._on_device.copy_(self._host, non_blocking=True)
            self._copied = self._copies.record_event()

    def take(self) -> torch.Tensor:
        """The tensor on its device, for use from now on."""
        self.forget_original()
        self.fetch()
        tensor, self._on_device, self._was_taken = self._on_device, None, True
        assert tensor is not None
        self._streams.current_stream().wait_event(self._copied)
        if self.before is not None and not self.before._was_taken:
            self.before.fetch()
        return tensor


class _Offload(saved_tensors_hooks):
    def __init__(self, kept: set[int]):
        """Args: kept: storages of tensors that stay on the device."""
        super().__init__(self._pack, self._unpack)
        self._kept = kept
        self._copies: Any = None
        self._last: _Offloaded | None = None

    def __exit__(self, *arguments: object) -> None:
        if self._last is not None:
            self._last.forget_original()
        self._last = None
        super().__exit__(*arguments)

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor | _Offloaded:
        if _stays(tensor) or tensor.untyped_storage().data_ptr() in self._kept:
            return tensor
        if self._copies is None:
            self._copies = _copy_stream(tensor.device)
        if self._last is not None:  # its copy had the time of what was computed since
            self._last.forget_original()
        self._last = _Offloaded(tensor, self._last, self._copies)
        return self._last

    def _unpack(self, saved: torch.Tensor | _Offloaded) -> torch.Tensor:
        return saved.take() if isinstance(saved, _Offloaded) else saved


def _stays(tensor: torch.Tensor) -> bool:
    has_streams = tensor.device.type != "cpu" and hasattr(getattr(torch, tensor.device.type, None), "Stream")
    return not has_streams or tensor.nbytes < _LEAST_OFFLOADED


@lru_cache(maxsize=8)
def _copy_stream(device: torch.device) -> Any:
    return getattr(torch, device.type).Stream(device)


def trim_malloc() -> None:
    """Let tensors of 1 MiB and more go back to the system as soon as they are freed, in this process from now on.

    glibc by itself learns to keep blocks up to 32 MiB for later use, and scattered ones add up to several times of what
    is in use. Other C libraries have no such setting and are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LEAST_RELEASED)
