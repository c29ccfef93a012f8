"""Tasks of lm-eval, of base and run: scores side by side, paired by sample where each sample has a score."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from lengthen.errors import require
from lengthen.evaluation.bootstrap import bootstrap_interval
from lengthen.results import BenchmarkRow

__all__ = ["Benchmarks", "Scored", "benchmark_rows", "score_benchmarks"]

Scored = tuple[list[dict[str, Any]], list[dict[str, Any]]]
"""Results and predictions of `lengthen.evaluation.tasks.harness.evaluate_tasks`."""


@dataclass(frozen=True)
class Benchmarks:
    """Tasks of lm-eval for base and run; both get prompts within the base's context.

    Attributes:
        tasks: names of tasks, groups or tags.
        include: a folder with more task configurations.
        limit: the first N samples of each task; None for all.
    """

    tasks: Sequence[str]
    include: Path | None = None
    limit: int | None = None


def score_benchmarks(asked: Benchmarks, model: Any, tokenizer: Any, context: int) -> Scored:
    """Measure one model.

    Args:
        asked: which tasks.
        model: a causal language model of transformers, or a PEFT model around one.
        tokenizer: its tokenizer.
        context: tokens of prompt and answer together.

    Raises:
        LengthenError: lm-eval is missing.
        DataError: an unknown task, or data that can't be read or fetched.
        ContextError: a task's answers alone fill the context.
    """
    require("a task of lm-eval", "tasks", "lm_eval")
    from lengthen.evaluation.tasks.harness import evaluate_tasks

    return evaluate_tasks(model, tokenizer, asked.tasks, context, asked.include, asked.limit)


def benchmark_rows(base: Scored, run: Scored) -> list[BenchmarkRow]:
    """A row for each task and metric of both.

    Args:
        base, run: what lm-eval found; of the same samples.
    """
    theirs = {(result["task"], result["metric"]): result for result in base[0]}
    rows = []
    for result in run[0]:
        task, metric = result["task"], result["metric"]
        before = theirs[task, metric]
        scores = [_by_sample(side[1], task, metric, own["score"]) for side, own in ((base, before), (run, result))]
        ends = _interval(*scores)
        row: BenchmarkRow = {
            "task": task,
            "metric": metric,
            "samples": result["samples"],
            "base": before["score"],
            "base_stderr": before["stderr"],
            "run": result["score"],
            "run_stderr": result["stderr"],
            "difference": result["score"] - before["score"],
            "low": None if ends is None else ends[0],
            "high": None if ends is None else ends[1],
        }
        rows.append(row)
    return rows


def _by_sample(
    predictions: Sequence[Mapping[str, Any]], task: str, metric: str, score: float
) -> dict[int, float] | None:
    """Each sample's score; None where samples have none of this metric, or the task's is not their mean."""
    own = [each for each in predictions if each["task"] == task]
    values = {each["doc_id"]: each.get(metric) for each in own}
    if len(values) < len(own) or not values or not all(isinstance(value, Real) for value in values.values()):
        return None
    found = {number: float(value) for number, value in values.items() if value is not None}
    return found if abs(np.mean(list(found.values())) - score) < 1e-6 else None


def _interval(base: dict[int, float] | None, run: dict[int, float] | None) -> tuple[float, float] | None:
    """95% of the mean difference run - base, by a bootstrap over the samples."""
    if base is None or run is None or base.keys() != run.keys():
        return None
    differences = np.array([run[number] - base[number] for number in sorted(run)])
    return bootstrap_interval(differences, np.ones(len(differences)))
