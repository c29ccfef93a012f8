"""The device and the dtype of a model, from the arguments that users of transformers write."""

from typing import TypeAlias

import torch

from lengthen._compat import bf16_is_fast
from lengthen.errors import ModelError

__all__ = ["Device", "Dtype", "default_device", "pick_device", "pick_dtype"]

Device: TypeAlias = torch.device | str | int
Dtype: TypeAlias = torch.dtype | str
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def default_device() -> torch.device:
    """The accelerator where there is one, else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def pick_device(device: Device | None = None, device_map: Device | dict[str, Device] | None = None) -> torch.device:
    """The device for a model, from the arguments that users of transformers write.

    Args:
        device: a torch.device, its name, or the number of an accelerator; None is the accelerator where there is one.
        device_map: the same, "auto", or {"": device}.

    Raises:
        ModelError: both are given, several devices are named, or the device is unknown or not there.
    """
    wanted = _wanted_device(device, device_map)
    if wanted is None or wanted == "auto":
        return default_device()
    try:
        picked = torch.device(wanted)
    except (RuntimeError, TypeError) as error:
        raise ModelError(f"unknown device {wanted!r}; give one such as cpu, cuda or cuda:1") from error
    there = torch.accelerator.current_accelerator(check_available=True)
    if picked.type not in ("cpu", "meta") and (
        there is None or picked.type != there.type or (picked.index or 0) >= torch.accelerator.device_count()
    ):
        have = "only a CPU" if there is None else f"{torch.accelerator.device_count()} x {there.type}"
        raise ModelError(f"device {picked} is not on this machine, which has {have}")
    return picked


def _wanted_device(device: Device | None, device_map: Device | dict[str, Device] | None) -> Device | None:
    if device is not None and device_map is not None:
        raise ModelError(f"device={device} and device_map={device_map} are both given; give one of them")
    if not isinstance(device_map, dict):
        return device_map if device is None else device
    named = sorted({str(each) for each in device_map.values()})
    if len(named) != 1:
        raise ModelError(f"device_map spreads the model over {', '.join(named) or 'nothing'}; give one device")
    return next(iter(device_map.values()))


def pick_dtype(dtype: Dtype | None, device: torch.device, quantized: bool = False) -> torch.dtype:
    """The torch dtype of a name, or the dtype itself.

    None and "auto" mean bfloat16 where it is fast; else float32, but float16 for a 4-bit base on a GPU (V100, T4).

    Args:
        dtype: or its name.
        device: that computes in it.
        quantized: whether the base is in 4 bits.

    Raises:
        ModelError: not one that models are computed in.
    """
    if dtype is None or dtype == "auto":
        slow = torch.float16 if quantized and device.type == "cuda" else torch.float32
        return torch.bfloat16 if bf16_is_fast(device) else slow
    name = str(dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise ModelError(f"unknown dtype {name!r}; choose auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]
