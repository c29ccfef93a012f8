"""Saved activations in CPU memory or in a file, until the backward pass wants them.

With checkpointing, or layers by chunks, that is the layers' inputs. Loss and gradients stay as they are.
"""

import tempfile
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.tensor import DTensor

__all__ = ["offload_saved"]

_LEAST_OFFLOADED = 2**20
"""Bytes; moving smaller tensors costs more than it saves."""


def offload_saved(model: nn.Module, folder: Path | None = None) -> AbstractContextManager[Any]:
    """A context in which tensors that a forward pass saves for its backward pass wait elsewhere.

    Weights stay where they are. Into CPU memory tensors of accelerators are moved; on CPU, and where accelerators share
    its memory, nothing changes. Copies run beside the computation: one tensor is on its way back while the one saved
    after it is used. A file takes those of any device; reading and writing it is waited for.

    Args:
        model: whose forward pass it is.
        folder: where the file is, which nobody else sees; None for CPU memory.
    """
    # Shards (DTensor) have no storage of their own, and are gathered where they are used.
    whole = (parameter for parameter in model.parameters() if not isinstance(parameter, DTensor))
    kept = {parameter.untyped_storage().data_ptr() for parameter in whole}
    return _Offload(kept) if folder is None else _OffloadToFile(kept, folder)


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


class _InFile(NamedTuple):
    """A saved tensor in the file."""

    at: int
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


class _OffloadToFile(saved_tensors_hooks):
    def __init__(self, kept: set[int], folder: Path):
        """Args: kept: storages of tensors that stay on the device; folder: of the file, gone with the last tensor."""
        super().__init__(self._pack, self._unpack)
        self._kept = kept
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed when the backward pass is over

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor | _InFile:
        if tensor.nbytes < _LEAST_OFFLOADED or tensor.untyped_storage().data_ptr() in self._kept:
            return tensor
        at = self._file.seek(0, 2)
        self._file.write(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return _InFile(at, tensor.shape, tensor.dtype, tensor.device)

    def _unpack(self, saved: torch.Tensor | _InFile) -> torch.Tensor:
        if isinstance(saved, torch.Tensor):
            return saved
        values = torch.empty(saved.shape, dtype=saved.dtype)
        room = values.flatten().view(torch.uint8).numpy().data
        self._file.seek(saved.at)
        done = 0
        while done < len(room):  # a system reads 2 GiB at a time at most
            read = self._file.readinto(room[done:])
            assert read
            done += read
        return values.to(saved.device)
