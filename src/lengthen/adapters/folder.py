"""Facts about a PEFT folder from its files, before its weights are loaded."""

from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoConfig, PreTrainedConfig

from lengthen.errors import ModelError
from lengthen.models.load import from_pretrained
from lengthen.models.resolve import Source
from lengthen.run_folder import RunFolder, read_base_record
from lengthen.upstream import reading

__all__ = ["adapter_config", "adapter_rows", "check_folder", "trained_over_nf4", "weight_shapes"]


def check_folder(adapter: Path) -> None:
    """Refuse a folder without an adapter.

    Raises:
        ModelError: it has no adapter_config.json.
    """
    if not (adapter / "adapter_config.json").is_file():
        raise ModelError(f"{adapter} has no adapter_config.json, so it holds no adapter; give a PEFT folder")


def adapter_config(adapter: Path) -> PreTrainedConfig | None:
    """The extended config that an adapter of lengthen brings along; None for others, whose positions are the base's.

    Args:
        adapter: a PEFT folder.
    """
    if not (adapter / "config.json").is_file():
        return None
    return from_pretrained(AutoConfig, Source(str(adapter), str(adapter)))


def trained_over_nf4(model: str | Path, adapter: str | Path | None) -> bool | None:
    """Whether an adapter was trained over a 4-bit base, by its maker's note; None for adapters of others.

    Args:
        model: a run folder, or a base with `adapter`.
        adapter: a PEFT folder.
    """
    record = read_base_record(Path(adapter) if adapter else RunFolder(Path(model)).adapter)
    return None if record is None else record.get("quantize") == "nf4"


def weight_shapes(adapter: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a PEFT folder by their names in its file; none where it has no weights.

    Args:
        adapter: a PEFT folder.

    Raises:
        ModelError: the file can't be read.
    """
    path, older = adapter / "adapter_model.safetensors", adapter / "adapter_model.bin"
    with reading(f"the adapter {adapter}"):
        if path.is_file():
            with safe_open(path, framework="pt") as file:
                return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        if older.is_file():
            tensors = torch.load(older, map_location="meta", weights_only=True)
            return {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    return {}


def adapter_rows(adapter: Path) -> int | None:
    """The embedding rows that an adapter brings, where it trained or resized them."""
    for name, shape in weight_shapes(adapter).items():
        if "embed" in name and name.endswith("weight") and "lora" not in name:
            return shape[0]
    return None
