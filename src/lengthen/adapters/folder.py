"""Facts about a PEFT folder from its files, before its weights are loaded."""

from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

from lengthen.adapters.weights import read_shapes
from lengthen.errors import ModelError
from lengthen.models.load import from_pretrained
from lengthen.models.resolve import Source
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
    return from_pretrained(AutoConfig, Source(str(adapter), str(adapter)))


def trained_over_nf4(model: str | Path, adapter: str | Path | None) -> bool | None:
    """Whether an adapter was trained over a 4-bit base, by its maker's note; None for adapters of others.

    Args:
        model: a run folder, or a base with `adapter`.
        adapter: a PEFT folder.
    """
    record = read_base_record(Path(adapter) if adapter else RunFolder(Path(model)).adapter)
    return None if record is None else record.get("quantize") == "nf4"


def adapter_rows(adapter: Path) -> int | None:
    """The embedding rows that an adapter brings, where it trained or resized them."""
    for name, shape in read_shapes(adapter).items():
        if "embed" in name and name.endswith("weight") and "lora" not in name:
            return shape[0]
    return None
