"""The devices that a run can be planned for: how much memory they have, and how fast they are.

Memory is what torch reports as a device's total, a little below the number in its name. Peaks are the vendors' dense
figures for matrix products with float32 accumulation; a dtype that a device has no matrix units for runs at its
float32 rate. `efficiency` is the share of the peak that a training step is taken to reach. It is a rule of thumb for
this kind of model, so every plan states it, and whether it was measured: on an H100 it was, for products with weights
(with the norms and activations between them) and for attention apart.
"""

import difflib
import os
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from lengthen._compat import bf16_is_fast, bf16_is_fast_on_cpu
from lengthen.errors import LengthenError

__all__ = ["DEVICES", "WIDTHS", "Device", "find_device", "of_driver", "this_device"]

WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of an element, by the name of the dtype. Plans use names, for importing torch takes longer than planning."""

# NVIDIA's, its Tegra's, both inside WSL; AMD's; Intel's; Gaudi's and TPUs'; Ascend's.
_DRIVERS = ("nvidia*", "nvhost*", "nvmap", "dxg", "kfd", "dri", "accel*", "vfio", "davinci*")

_GIB = 1 << 30
_TERA = 1e12

# Share of the peak: long-context training on data-center GPUs with flash kernels reaches 40 to 50%; Volta and Turing
# lack these kernels, and consumer cards are held back by memory bandwidth.
_DATA_CENTER, _CONSUMER, _BEFORE_AMPERE, _CPU = 0.40, 0.40, 0.30, 0.60

# Fitted to 9 steps of LLaMA2-7B's shape from 16,384 to 102,400 tokens on one H100, which they explain within 2%
# (docs/results/gpu.md): 0.36 with LoRA inputs cast to float32, 0.39 as they are now.
_H100_WEIGHTS, _H100_ATTENTION = 0.39, 0.55
# With norms and gated activations by liger-kernel (memory.fused_kernels): of one step of 32,768 tokens there.
_H100_FUSED = 0.48

# Matrix products on one core of a machine with AVX512-BF16, FLOP/s, as measured (docs/results/plan.md).
_CORE_BF16, _CORE_FLOAT32 = 0.20 * _TERA, 0.075 * _TERA


@dataclass(frozen=True)
class Device:
    """A device's memory and speed.

    Attributes:
        name: as the command line takes it.
        memory: bytes that a process can have.
        peak_16: dense matrix products in bfloat16 (float16 where `bf16` is false), FLOP/s; None: not known.
        peak_32: the same in float32, FLOP/s.
        bf16: whether bfloat16 has matrix units.
        efficiency: share of the peak that training reaches.
        attention_efficiency: the same of attention alone, where it was measured; None: as all else.
        fused_efficiency: the same of all but attention with `memory.fused_kernels`; None: as without.
        kind: "cuda", "cpu" or another torch device type.
    """

    name: str
    memory: int
    peak_16: float | None
    peak_32: float | None
    bf16: bool = True
    efficiency: float = _DATA_CENTER
    kind: str = "cuda"
    attention_efficiency: float | None = None
    fused_efficiency: float | None = None

    @property
    def auto_dtype(self) -> str:
        """The dtype of `training.dtype: auto`."""
        return "bfloat16" if self.bf16 else "float32"

    @property
    def nf4_dtype(self) -> str:
        """The dtype of `training.dtype: auto` over a 4-bit base."""
        slow = "float16" if self.kind == "cuda" else "float32"
        return "bfloat16" if self.bf16 else slow

    def peak(self, dtype: str) -> float | None:
        """FLOP/s of matrix products in a dtype at best; None where it is not known."""
        has_units = dtype == "float16" or (dtype == "bfloat16" and self.bf16)
        return self.peak_16 if has_units else self.peak_32


def _gpu(
    name: str,
    gib: float,
    peak_16: float,
    peak_32: float,
    efficiency: float,
    bf16: bool = True,
    attention: float | None = None,
    fused: float | None = None,
) -> Device:
    peaks = peak_16 * _TERA, peak_32 * _TERA
    return Device(
        name, int(gib * _GIB), *peaks, bf16, efficiency, attention_efficiency=attention, fused_efficiency=fused
    )


_GPUS = (
    _gpu("t4-16gb", 14.6, 65, 8.1, _BEFORE_AMPERE, bf16=False),
    _gpu("v100-16gb", 15.7, 125, 15.7, _BEFORE_AMPERE, bf16=False),
    _gpu("v100-32gb", 31.7, 125, 15.7, _BEFORE_AMPERE, bf16=False),
    _gpu("rtx3090-24gb", 23.6, 71, 35.6, _CONSUMER),
    _gpu("rtx4090-24gb", 23.5, 165, 82.6, _CONSUMER),
    _gpu("rtx5090-32gb", 31.3, 210, 105, _CONSUMER),
    _gpu("l4-24gb", 22.0, 121, 30.3, _CONSUMER),
    _gpu("a100-40gb", 39.4, 312, 19.5, _DATA_CENTER),
    _gpu("a100-80gb", 79.1, 312, 19.5, _DATA_CENTER),
    _gpu("h100-80gb", 79.1, 989, 67, _H100_WEIGHTS, attention=_H100_ATTENTION, fused=_H100_FUSED),
    _gpu("h200-141gb", 139.8, 989, 67, _DATA_CENTER),
    _gpu("b200", 178.3, 2250, 75, _DATA_CENTER),
    _gpu("mi300x", 191.5, 1307, 163, _DATA_CENTER),
)

DEVICES: dict[str, Device] = {device.name: device for device in _GPUS}
"""The GPUs by name; "cpu", this machine's, is the other name that `find_device` knows."""


def find_device(name: str) -> Device:
    """A device by its name.

    Raises:
        LengthenError: no such device; the message has the nearest names.
    """
    key = name.lower()
    if key == "cpu":
        return _cpu()
    if key not in DEVICES:
        near = difflib.get_close_matches(key, [*DEVICES, "cpu"], n=3, cutoff=0.5)
        near = [each for each in (*DEVICES, "cpu") if each.startswith(key)] or near
        hint = f"the nearest are {', '.join(near)}" if near else f"choose {', '.join([*DEVICES, 'cpu'])}"
        raise LengthenError(f"unknown device {name!r}; {hint}")
    return DEVICES[key]


def this_device() -> Device:
    """This machine's accelerator, or its CPU."""
    if _has_none():
        return _cpu()
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return _cpu()
    if accelerator.type != "cuda":  # shared memory, and a speed that nobody publishes
        return Device(accelerator.type, psutil.virtual_memory().total, None, None, kind=accelerator.type)
    found = torch.cuda.get_device_properties(accelerator)
    same = of_driver(found.name)
    if same is not None:
        return replace(same, name=found.name, memory=found.total_memory)
    return Device(found.name, found.total_memory, None, None, bf16_is_fast(accelerator))


def of_driver(name: str) -> Device | None:
    """The first device of the table that a driver's name means, such as "NVIDIA A100-SXM4-80GB" or "Tesla T4"."""
    words = re.split(r"[^a-z0-9]+", name.lower().replace("rtx ", "rtx"))
    return next((each for each in _GPUS if each.name.split("-")[0] in words), None)


def _has_none() -> bool:
    """Whether Linux has no file of any accelerator's driver, so that torch need not be asked for one."""
    folder = Path("/dev")
    return sys.platform == "linux" and not any(any(folder.glob(pattern)) for pattern in _DRIVERS)


def _cpu() -> Device:
    cores = os.cpu_count() or 1
    bf16 = bf16_is_fast_on_cpu()
    peaks = (_CORE_BF16 if bf16 else _CORE_FLOAT32) * cores, _CORE_FLOAT32 * cores
    return Device("cpu", psutil.virtual_memory().total, *peaks, bf16, _CPU, "cpu")
