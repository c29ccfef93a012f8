"""The score that counts as usable, from the base's own results."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from lengthen.errors import DataError, ModelError
from lengthen.models import find
from lengthen.run_folder import RunFolder, read_base_record

__all__ = ["base_id", "base_threshold"]


class _Scored(TypedDict):
    task: str


class _Average(TypedDict):
    tokens: int
    score: float


class _Results(TypedDict):
    model: str
    adapter: str | None
    method: str | None
    context: int
    results: list[_Scored]
    averages: list[_Average]


def base_id(model: str, adapter: Path | None) -> str:
    """What results call the base of a model: of a run the model that it extended, of others the model itself.

    Raises:
        ModelError: the model is not found, or the record of its base is damaged.
    """
    source = find(model)
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
    found = _read(path, _Results)
    changed = [f"{key} {found[key]}" for key in ("adapter", "method") if found[key] is not None]
    if found["model"] != base or changed:
        named = ", ".join([found["model"], *changed])
        raise ModelError(f"{path} is a results file of another model ({named}); give one of the base, {base}")
    measured = {result["task"] for result in found["results"]}
    if measured != set(tasks):
        raise DataError(
            f"{path} has scores of other tasks ({', '.join(sorted(measured))}); measure both with the same --tasks"
        )
    scores = {average["tokens"]: average["score"] for average in found["averages"]}
    context = found["context"]
    if context not in scores:
        raise DataError(
            f"{path} has no score at the base's own context of {context} tokens; measure it at that length too"
        )
    return float(scores[context])


def _read(path: Path, kind: Any) -> Any:
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror}; give a file that lengthen wrote") from error
    except ValidationError as error:
        raise DataError(f"{path} is damaged, or not a results file of `lengthen eval ruler`") from error
