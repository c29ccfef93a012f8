"""Facts about a PEFT folder from its files, before its weights are loaded."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from lengthen.adapters.weights import end_names, plain_name, read_shapes
from lengthen.errors import ModelError
from lengthen.models.load import from_pretrained
from lengthen.models.resolve import ModelSource
from lengthen.run_folder import RunFolder, read_base_record

__all__ = ["adapter_config", "adapter_rows", "check_folder", "trained_over_nf4"]


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
    return from_pretrained(AutoConfig, ModelSource(str(adapter), str(adapter)))


def trained_over_nf4(model: str | Path, adapter: str | Path | None) -> bool | None:
    """Whether an adapter was trained over a 4-bit base, by its maker's note; None for adapters of others.

    Args:
        model: a run folder, or a base with `adapter`.
        adapter: a PEFT folder.
    """
    record = read_base_record(Path(adapter) if adapter else RunFolder(Path(model)).adapter)
    return None if record is None else record.get("quantize") == "nf4"


def adapter_rows(adapter: Path, base: Any) -> int | None:
    """The rows of embeddings or head that an adapter brings; None where it neither trained nor resized them.

    Args:
        adapter: a PEFT folder.
        base: the model that it is for, with weights or without.

    Raises:
        ModelError: its weights can't be read.
    """
    names = end_names(base)
    return next((shape[0] for key, shape in read_shapes(adapter).items() if plain_name(key) in names), None)
