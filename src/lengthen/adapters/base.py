"""The base of a run or an adapter: where it is, how many tokens it knows, and that it is the one trained over."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from lengthen.adapters.folder import adapter_rows
from lengthen.context.layers import text_config
from lengthen.errors import ModelError
from lengthen.models.load import empty_model, load_config
from lengthen.models.resolve import ModelSource, resolve_model
from lengthen.run_folder import RunFolder, read_base_record

__all__ = ["base_of", "base_of_run", "base_shape", "check_base", "stated_rows"]


def base_of(model: str | Path) -> ModelSource:
    """Where the weights of MODEL are: its own, or those of the base that a run's adapter was trained over.

    Raises:
        ModelError: there are none.
    """
    source = resolve_model(str(model))
    return source if source.run is None else base_of_run(source.run)


def base_of_run(run: Path) -> ModelSource:
    """The base that a run's adapter was trained over.

    Args:
        run: the folder.

    Raises:
        ModelError: its adapter names no base, or the base is not there any more.
    """
    adapter = RunFolder(run).adapter
    record = read_base_record(adapter)
    if record is None:
        raise ModelError(f"{adapter} has no base.json; give the base itself and `adapter={adapter}`")
    try:
        source = resolve_model(record["model"])
        load_config(source)
    except ModelError as error:
        raise ModelError(
            f"the base of {run} was {record['id']} at {record['model']}, which is not there; give the base itself and "
            f"`adapter={adapter}`"
        ) from error
    return source


def stated_rows(model: str | Path) -> int:
    """How many tokens MODEL has embeddings for, by its config and its adapter, without its weights.

    Raises:
        ModelError: it, or the base that its adapter is for, is not found.
    """
    source = resolve_model(str(model))
    config = load_config(base_of(model))
    rows = None if source.run is None else adapter_rows(RunFolder(source.run).adapter, empty_model(config))
    return rows or int(text_config(config).vocab_size)


def base_shape(config: PreTrainedConfig) -> list[Any]:
    """The kind of a model, its hidden size and its layers: where they differ, an adapter is for another base."""
    text = text_config(config)
    return [config.model_type, *(getattr(text, name, None) for name in ("hidden_size", "num_hidden_layers"))]


def check_base(hashes: dict[str, str | None], folder: Path, record: dict[str, Any], source: ModelSource) -> None:
    """Refuse another base than the adapter's, by what can be compared: a 4-bit base has no hash of all weights.

    Args:
        hashes: `weight_hashes` of the base.
        folder: the adapter's.
        record: its `read_base_record`.
        source: where the base's files are.

    Raises:
        ModelError: the weights are not those that the adapter was trained over.
    """
    for key, own in hashes.items():
        if own is not None and key in record:
            if own != record[key]:
                raise ModelError(
                    f"the adapter {folder} was made for {record['id']}; the weights of {source.id} are others"
                )
            return
