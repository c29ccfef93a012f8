"""What a report is made of: a run folder's files, and results of its base, read and checked."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import NotRequired, TypedDict

from lengthen.errors import DataError, ModelError
from lengthen.evaluation.compare.schema import Comparison
from lengthen.recipe import Recipe, load_recipe
from lengthen.run_folder import RunFolder

__all__ = ["EXTENDED", "Evaluation", "Run", "read_run"]

EXTENDED = "extended"
"""What a report calls the run's own model."""

Count = Annotated[int, Field(ge=0)]
Length = Annotated[int, Field(ge=1)]
Bucket = TypedDict("Bucket", {"from": Count, "to": Count, "perplexity": float | None})


class Interval(TypedDict):
    """With 95% confidence; an end of None was too large for a float."""

    low: float | None
    high: float | None


class Perplexity(TypedDict):
    """At one context; a perplexity of None was too large for a float."""

    context: Length
    perplexity: float | None
    interval: NotRequired[Interval | None]
    by_position: NotRequired[list[Bucket]]


class Cell(TypedDict):
    """Of a grid of lengths and depths."""

    tokens: Length
    depth: Annotated[float, Field(ge=0, le=1)]
    trials: Length
    exact: Count
    nats: float
    correct: Count | None


class Average(TypedDict):
    """Of RULER's tasks at one length."""

    tokens: Length
    score: float


class RulerScore(Average):
    """Of one of RULER's tasks at one length."""

    task: str


class TaskScore(TypedDict):
    """Of one task and metric."""

    task: str
    metric: str
    score: float
    samples: NotRequired[int | None]


class _PerplexityFile(TypedDict):
    results: Annotated[list[Perplexity], Field(min_length=1)]
    protocol: NotRequired[str]
    documents: NotRequired[list[str]]
    data: NotRequired[list[str]]


class _GridFile(TypedDict):
    results: Annotated[list[Cell], Field(min_length=1)]
    needles: NotRequired[int]


class _RulerFile(TypedDict):
    results: list[RulerScore]
    averages: Annotated[list[Average], Field(min_length=1)]
    threshold: NotRequired[float | None]
    effective_context: NotRequired[int | None]


class _TasksFile(TypedDict):
    results: Annotated[list[TaskScore], Field(min_length=1)]


_Curve = dict[Length, float | None]


class _QuickstartFile(TypedDict):
    documents: int
    base: _Curve
    scaled: _Curve
    extended: _Curve
    by_position: NotRequired[dict[str, list[Bucket]]]


class _Step(TypedDict):
    step: Length
    loss: float
    learning_rate: float
    tokens_per_second: float
    seconds: float
    peak_memory_bytes: Count


_KINDS: dict[str, Any] = {
    "perplexity": TypeAdapter(_PerplexityFile),
    "passkey": TypeAdapter(_GridFile),
    "needle": TypeAdapter(_GridFile),
    "ruler": TypeAdapter(_RulerFile),
    "tasks": TypeAdapter(_TasksFile),
    "compare": TypeAdapter(Comparison),
}
_QUICKSTART = TypeAdapter(_QuickstartFile)
_METRICS: Any = TypeAdapter(_Step)


@dataclass(frozen=True)
class Evaluation:
    """One results file.

    Attributes:
        kind: perplexity, passkey, needle, ruler, tasks or compare.
        label: whose results they are: `EXTENDED`, or the base and what was done to it.
        content: the file, checked.
        file: its name.
        command: that made it; None in older files.
    """

    kind: str
    label: str
    content: dict[str, Any]
    file: str
    command: str | None = None


@dataclass(frozen=True)
class Run:
    """A run folder.

    Attributes:
        folder: where it is.
        recipe: what was asked.
        base: id and context (tokens) of the base; the context is None where the run did not write it.
        about: run.json: commands, versions, trainable parameters, device; empty for runs made before there was one.
        metrics: lines of metrics.jsonl.
        evaluations: of the run and of its base, oldest first.
        is_finished: whether the run came to its end.
    """

    folder: Path
    recipe: Recipe
    base: dict[str, Any]
    about: dict[str, Any]
    metrics: list[dict[str, Any]]
    evaluations: list[Evaluation]
    is_finished: bool


def read_run(folder: Path, compare: Sequence[Path] = ()) -> Run:
    """Read a run folder, its evals/, and results files of its base.

    Raises:
        ModelError: not a run folder, or a results file of another model.
        DataError: a file is broken; it is named.
    """
    run = RunFolder(folder)
    if not run.is_run:
        raise ModelError(f"{folder} is not a run folder, which has a recipe.yaml; give one that `lengthen train` wrote")
    recipe = load_recipe(run.recipe)
    about = run.read_metadata()
    base_file = run.adapter / "base.json"
    base = about.get("base") or (_read_json(base_file) if base_file.is_file() else {"id": recipe.model})
    names = {folder.resolve().name, Path(recipe.out or "").name}
    evaluations = []
    for path in sorted(run.evals.glob("*.json")):  # named by kind and time
        evaluations += _read_evaluations(path, names, base["id"])
    for path in compare:
        evaluations += _read_evaluations(path, set(), base["id"])
    return Run(
        folder=folder,
        recipe=recipe,
        base={"context": None, **base},
        about=about,
        metrics=_read_metrics(run),
        evaluations=evaluations,
        is_finished=run.is_finished,
    )


def _read_evaluations(path: Path, own_names: set[str], base: str) -> list[Evaluation]:
    content = _read_json(path)
    if {"base", "scaled", "extended"} <= set(content):
        return _from_quickstart(_checked(_QUICKSTART, content, path), path.name)
    kind = _kind(content)
    if kind not in _KINDS:
        raise DataError(f"{path} is not a results file of `lengthen eval`; take it away or measure again")
    label = _label(content, own_names, base)
    if label is None:
        wanted = f"the run ({', '.join(sorted(own_names))}) or its base ({base})" if own_names else f"the base, {base}"
        raise ModelError(f"{path} holds results of another model, {content.get('model')!r}; give results of {wanted}")
    checked = _checked(_KINDS[kind], content, path)
    return [Evaluation(kind, label, checked, path.name, content.get("command"))]


def _kind(content: dict[str, Any]) -> str:
    """What was measured. Files of older versions and the run's own validation.json say it by their protocol."""
    if "kind" in content:
        return str(content["kind"]).split("-")[0]
    first = content["results"][0] if isinstance(content.get("results"), list) and content["results"] else {}
    return "perplexity" if "protocol" in content or (isinstance(first, dict) and "protocol" in first) else ""


def _label(content: dict[str, Any], own_names: set[str], base: str) -> str | None:
    """Whose results they are; None for another model's. The run's own validation.json names no model."""
    model = content.get("model")
    if content.get("adapter") is None:
        if own_names and (model is None or model in own_names):
            scale = content.get("adapter_scale", 1)
            return EXTENDED if scale == 1 else f"{EXTENDED}, adapter at {scale:g}"
        if model is not None and _short(str(model)) == _short(base):
            scaled = [f"positions scaled ({content['method']}), untrained"] if content.get("method") else []
            return ", ".join(scaled or ["base"]) + (" (4-bit)" if content.get("quantize") else "")
    return None


def _short(model: str) -> str:
    """A hub id's and a folder's own name."""
    return model.rstrip("/").split("/")[-1]


def _from_quickstart(content: dict[str, Any], file: str) -> list[Evaluation]:
    labels = {"base": "base", "scaled": "positions scaled, untrained", "extended": EXTENDED}
    what = {"protocol": "strided", "documents": [f"{content['documents']} held-out files of the standard library"]}
    evaluations = []
    for key, label in labels.items():
        points = [{"context": context, "perplexity": value} for context, value in content[key].items()]
        max(points, key=lambda point: point["context"])["by_position"] = content.get("by_position", {}).get(key, [])
        evaluations.append(Evaluation("perplexity", label, {**what, "results": points}, file))
    return evaluations


def _read_metrics(run: RunFolder) -> list[dict[str, Any]]:
    try:
        return [_METRICS.validate_python(record) for record in run.read_metrics()]
    except ValidationError as error:
        raise DataError(f"{run.metrics} has a line that is not what a run writes; mend or remove it") from error


def _checked(kind: Any, content: Any, path: Path) -> dict[str, Any]:
    try:
        return kind.validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path}: {place}: {first['msg']}; measure again, or take the file away") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} can't be read as JSON: {error}; write it again, or take it away") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no JSON object; write it again, or take it away")
    return content
