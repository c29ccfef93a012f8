"""The contents of a report: a run folder's files, and results of its base, read and checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lengthen.errors import ModelError
from lengthen.files import read_object
from lengthen.recipe import Recipe, load_recipe
from lengthen.results import check_metrics, check_results
from lengthen.run_folder import RunFolder, read_base_record

__all__ = ["RUN", "Evaluation", "Run", "check_is_run", "read_run"]

RUN = "run"
"""The name of the run's own model in a report."""


@dataclass(frozen=True)
class Evaluation:
    """One results file.

    Attributes:
        kind: perplexity, passkey, needle, ruler, tasks or compare.
        label: whose results they are: `RUN`, or the base and what was done to it.
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
        metadata: run.json: commands, versions, trainable parameters, device; empty for runs made before there was one.
        metrics: lines of metrics.jsonl.
        evaluations: of the run and of its base, oldest first.
        is_finished: whether the run came to its end.
    """

    folder: Path
    recipe: Recipe
    base: dict[str, Any]
    metadata: dict[str, Any]
    metrics: list[dict[str, Any]]
    evaluations: list[Evaluation]
    is_finished: bool

    def own(self, kind: str) -> list[Evaluation]:
        """The results files of the run's own model, oldest first."""
        return [evaluation for evaluation in self.evaluations if evaluation.kind == kind and evaluation.label == RUN]

    def newest(self, kind: str) -> Evaluation | None:
        """The last of them; None where there is none."""
        return next(reversed(self.own(kind)), None)


def check_is_run(folder: Path) -> None:
    """Refuse what is no run folder.

    Raises:
        ModelError: it is none.
    """
    if not RunFolder(folder).is_run:
        raise ModelError(f"{folder} is not a run folder, which has a recipe.yaml; give one that `lengthen train` wrote")


def read_run(folder: Path, compare: Sequence[Path] = ()) -> Run:
    """Read a run folder, its evals/, and results files of its base.

    Args:
        folder: of the run.
        compare: results files of its base.

    Raises:
        ModelError: not a run folder, or a results file of another model.
        DataError: a file is broken; it is named.
    """
    run = RunFolder(folder)
    check_is_run(folder)
    recipe = load_recipe(run.recipe)
    metadata = run.read_metadata()
    base = metadata.get("base") or read_base_record(run.adapter) or {"id": recipe.model}
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
        metadata=metadata,
        metrics=check_metrics(run.read_metrics(), run.metrics),
        evaluations=evaluations,
        is_finished=run.is_finished,
    )


def _read_evaluations(path: Path, own_names: set[str], base: str) -> list[Evaluation]:
    content = read_object(path, "measure again, or take the file away")
    kind = _kind(content)
    label = _label(content, own_names, base)
    if label is None:
        wanted = f"the run ({', '.join(sorted(own_names))}) or its base ({base})" if own_names else f"the base, {base}"
        raise ModelError(f"{path} holds results of another model, {content.get('model')!r}; give results of {wanted}")
    checked = check_results(kind, content, path)
    return [Evaluation(kind, label, checked, path.name, content.get("command"))]


def _kind(content: dict[str, Any]) -> str:
    """The kind of evaluation. The run's own validation.json says it by its protocol."""
    if "kind" in content:  # with the protocol behind a hyphen in files of older versions: "perplexity-strided"
        return str(content["kind"]).split("-")[0]
    first = content["results"][0] if isinstance(content.get("results"), list) and content["results"] else {}
    return "perplexity" if "protocol" in content or (isinstance(first, dict) and "protocol" in first) else ""


def _label(content: dict[str, Any], own_names: set[str], base: str) -> str | None:
    """The side that the results are of; None for another model's. The run's own validation.json names no model."""
    model = content.get("model")
    if content.get("adapter") is None:
        if own_names and (model is None or model in own_names):
            scale = content.get("adapter_scale", 1)
            return RUN if scale == 1 else f"{RUN}, adapter at {scale:g}"
        if model is not None and _short(str(model)) == _short(base):
            scaled = [f"positions scaled ({content['method']}), untrained"] if content.get("method") else []
            return ", ".join(scaled or ["base"]) + (" (4-bit)" if content.get("quantize") else "")
    return None


def _short(model: str) -> str:
    """A hub id's and a folder's own name."""
    return model.rstrip("/").split("/")[-1]
