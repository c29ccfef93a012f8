"""The check of weights before they are written, and of an adapter before it is used."""

from collections.abc import Iterable
from pathlib import Path

import torch

from lengthen.adapters.weights import read_tensors, weights_file
from lengthen.errors import ModelError

__all__ = ["check_adapter", "check_weights"]


def check_adapter(folder: Path) -> None:
    """Refuse an adapter that holds infinite or NaN weights: whatever the model gave with it would be nonsense.

    Args:
        folder: a PEFT folder.

    Raises:
        ModelError: naming the tensors; or the file is damaged, or there is none.
    """
    tensors = read_tensors(weights_file(folder))
    broken = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise ModelError(
            f"the adapter {folder} holds weights that are infinite or NaN ({_named(broken)}); its training has "
            "diverged: take an earlier checkpoint, or train at a lower rate"
        )


def check_weights(tensors: Iterable[tuple[str, torch.Tensor]], dtype: torch.dtype | None = None) -> None:
    """Refuse weights that are infinite or NaN, or would be in the dtype that they are written in.

    Args:
        tensors: by name; integers and packed weights pass.
        dtype: that is written; None for each tensor's own.

    Raises:
        ModelError: naming the tensors.
    """
    broken, large = [], []
    for name, tensor in tensors:
        if not tensor.is_floating_point() or tensor.numel() == 0:
            continue
        low, high = torch.aminmax(tensor.detach())
        largest = max(-low.item(), high.item())
        if not (low.isfinite() and high.isfinite()):
            broken.append(name)
        elif dtype is not None and largest > torch.finfo(dtype).max:
            large.append(f"{name} ({largest:.3g})")
    if broken:
        raise ModelError(
            f"{_unwritable(broken)}: infinite or NaN; take an earlier checkpoint, or train at a lower rate"
        )
    if large and dtype is not None:
        name = str(dtype).removeprefix("torch.")
        raise ModelError(
            f"{_unwritable(large)}: beyond the range of {name} ({torch.finfo(dtype).max:g}), so they would be "
            "infinite; write bfloat16 or float32"
        )


def _unwritable(tensors: list[str]) -> str:
    return f"{len(tensors)} tensor{'s' * (len(tensors) > 1)} can't be written, {_named(tensors)}"


def _named(tensors: list[str]) -> str:
    rest = f" and {len(tensors) - 3} more" if len(tensors) > 3 else ""
    return ", ".join(tensors[:3]) + rest
