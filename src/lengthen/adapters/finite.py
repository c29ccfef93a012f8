"""The check of weights before they are written."""

from collections.abc import Iterable

import torch

from lengthen.errors import ModelError

__all__ = ["check_weights"]


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
        raise ModelError(f"{_named(broken)}: infinite or NaN; take an earlier checkpoint, or train at a lower rate")
    if large and dtype is not None:
        name = str(dtype).removeprefix("torch.")
        raise ModelError(
            f"{_named(large)}: beyond the range of {name} ({torch.finfo(dtype).max:g}), so they would be infinite; "
            "write bfloat16 or float32"
        )


def _named(tensors: list[str]) -> str:
    rest = f" and {len(tensors) - 3} more" if len(tensors) > 3 else ""
    return f"{len(tensors)} tensors can't be written, {', '.join(tensors[:3])}{rest}"
