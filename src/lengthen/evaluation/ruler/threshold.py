"""The score that counts as usable, from the base's own results."""

from collections.abc import Iterable
from pathlib import Path

from lengthen.errors import DataError, ModelError
from lengthen.files import read_object
from lengthen.models.resolve import resolve_model
from lengthen.results import check_results
from lengthen.run_folder import RunFolder, read_base_record

__all__ = ["base_id", "base_threshold"]


def base_id(model: str, adapter: Path | None) -> str:
    """The name in results of a model's base: of a run the model that it extended, of others the model itself.

    Args:
        model: hub id, model folder, .gguf file, run folder or alias.
        adapter: a PEFT folder over it.

    Raises:
        ModelError: the model is not found, or the record of its base is damaged.
    """
    source = resolve_model(model)
    record = read_base_record(adapter) if adapter is not None else RunFolder(Path(model)).base_record()
    return record["id"] if record is not None else source.id


def base_threshold(path: Path, base: str, tasks: Iterable[str]) -> float:
    """The base's average score at its own context, from a results file of `lengthen eval ruler`.

    Args:
        path: the file.
        base: the base's id.
        tasks: what is measured; an average over other tasks is no threshold for it.

    Raises:
        DataError: not such a file, of other tasks, or not measured at the base's context.
        ModelError: results of another model, of an adapter, or with scaled positions.
    """
    content = read_object(path, "give a results file of `lengthen eval ruler`")
    found = check_results("ruler", content, path)
    if not {"model", "context"} <= found.keys():
        raise DataError(f"{path} does not say whose results they are; measure again")
    changed = [f"{key} {found[key]}" for key in ("adapter", "method") if found.get(key) is not None]
    if found["model"] != base or changed:
        named = ", ".join([found["model"], *changed])
        raise ModelError(f"{path} is a results file of another model ({named}); give one of the base, {base}")
    measured = {result["task"] for result in found["results"]}
    if measured != set(tasks):
        raise DataError(
            f"{path} has scores of other tasks ({', '.join(sorted(measured))}); measure both with the same `tasks`"
        )
    scores = {average["tokens"]: average["score"] for average in found["averages"]}
    context = found["context"]
    if context not in scores:
        raise DataError(
            f"{path} has no score at the base's own context of {context} tokens; measure it at that length too"
        )
    return float(scores[context])
