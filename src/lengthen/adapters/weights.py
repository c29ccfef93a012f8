"""The weights in a PEFT folder: adapter_model.safetensors, or adapter_model.bin where there is none."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load, load_file

from lengthen.errors import ModelError
from lengthen.upstream import reading

__all__ = ["PREFIX", "end_names", "plain_name", "read_shapes", "read_tensors", "stored_shapes", "weights_file"]

PREFIX = "base_model.model."
"""Before the names of a PEFT file's tensors."""

_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_MAPPED = 2**30  # bytes, from which on a file is mapped
_DAMAGED = "the weights of {name} are damaged ({error}); is the download complete?"


def weights_file(adapter: Path) -> Path:
    """The file that holds an adapter's weights.

    Args:
        adapter: a PEFT folder.

    Raises:
        ModelError: there is none.
    """
    for path in map(adapter.joinpath, _FILES):
        if path.is_file():
            return path
    raise ModelError(f"{adapter} has neither {' nor '.join(_FILES)}; is the copy complete?")


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors in a file by their names there, without running code from it.

    Args:
        path: ends in .safetensors, or is what `torch.save` wrote.

    Raises:
        ModelError: the file is damaged, or holds more than tensors, or something else.
    """
    with reading(str(path), _DAMAGED):
        if path.suffix == ".safetensors":
            # Each mapped file leaves some kilobytes behind, for good: a server that loads adapters again and again grew
            # by a gigabyte an hour. Large files are read seldom, and not twice into memory.
            is_large = path.stat().st_size > _MAPPED
            tensors = load_file(path) if is_large else load(path.read_bytes())
            return dict(sorted(tensors.items()))
        return _read_bin(path, "cpu")


def _read_bin(path: Path, device: str) -> dict[str, torch.Tensor]:
    content = torch.load(path, map_location=device, weights_only=True)
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ModelError(f"{path} is not a state dict, a mapping of names to tensors; take the file that was published")
    return content


def read_shapes(adapter: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of an adapter's tensors by their names in its file.

    Args:
        adapter: a PEFT folder.

    Raises:
        ModelError: there are no weights, or as `read_tensors`.
    """
    path = weights_file(adapter)
    if path.suffix == ".safetensors":
        with reading(str(path)):
            return stored_shapes(path)
    with reading(str(path), _DAMAGED):
        return {key: tuple(tensor.shape) for key, tensor in _read_bin(path, "meta").items()}


def stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors in a safetensors file, from its header.

    Args:
        path: the file. What safetensors raises over a damaged one is the caller's to say.
    """
    with safe_open(path, framework="pt") as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118


def plain_name(key: str) -> str:
    """A tensor's name in the base, or beside it as `<layer>.lora_A.weight`, from that in a PEFT file."""
    name = key.removeprefix(PREFIX)
    for part in ("default", "modules_to_save", "base_layer"):
        name = name.replace(f".{part}.", ".")
    return name


def end_names(model: Any) -> list[str]:
    """Names of the weights of a model's input embeddings and of its head.

    Args:
        model: the base, with weights or without.
    """
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return [f"{name}.weight" for end in ends for name, module in model.named_modules() if module is end]
