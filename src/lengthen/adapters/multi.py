"""Several adapters over one base in memory, of which one is used at a time."""

from pathlib import Path
from typing import Any

from lengthen.adapters.finite import check_adapter
from lengthen.adapters.folder import adapter_config, check_folder
from lengthen.adapters.load import attaching, load
from lengthen.context import base_context, positions
from lengthen.errors import ModelError
from lengthen.models.devices import Dtype
from lengthen.models.load import load_config
from lengthen.models.resolve import resolve_model
from lengthen.run_folder import read_base_record

__all__ = ["load_several"]


def load_several(
    model: str,
    adapters: dict[str, Path],
    dtype: Dtype | None = None,
    quantize: str | None = None,
    base_context: int | None = None,
) -> tuple[Any, Any, dict[str, str]]:
    """Load a base with adapters that were trained over it with the same positions.

    Args:
        model: as in `lengthen.load`.
        adapters: folder of each by name, perhaps none.
        dtype: as in `lengthen.load`.
        quantize: as in `lengthen.load`.
        base_context: as in `lengthen.load`.

    Returns:
        The model with the first adapter in use, its tokenizer, and by name what `model.set_adapter` takes.

    Raises:
        ModelError: as `lengthen.load`, or an adapter is of another base or context than the first.
    """
    # Names of peft become names of modules, which can't hold a dot.
    peft_names = {name: f"adapter_{number}" if number else "default" for number, name in enumerate(adapters)}
    folders = list(adapters.values())
    first = folders[0] if folders else None
    loaded, tokenizer = load(model, dtype=dtype, adapter=first, quantize=quantize, base_context=base_context)
    for name, folder in list(adapters.items())[1:]:
        _check_same_base(model, folders[0], folder, base_context)
        with attaching(folder, "this base"):
            loaded.load_adapter(str(folder), adapter_name=peft_names[name])
    return loaded.eval(), tokenizer, peft_names


def _check_same_base(model: str, first: Path, other: Path, stated: int | None) -> None:
    check_folder(other)
    check_adapter(other)
    records = [read_base_record(first) or {}, read_base_record(other) or {}]
    for key in ("weight_hash", "unquantized_hash", "quantize"):
        values = [record.get(key) for record in records]
        if None not in values and values[0] != values[1]:
            raise ModelError(f"the adapters {first} and {other} were made over other bases; use one at a time")
    one, two = (adapter_config(folder) or load_config(resolve_model(model), stated) for folder in (first, other))
    if (positions(one), base_context(one)) != (positions(two), base_context(two)):
        raise ModelError(
            f"the adapters {first} and {other} were trained with other positions (contexts {base_context(one)} and "
            f"{base_context(two)} tokens), which one model in memory can't have; use one at a time"
        )
