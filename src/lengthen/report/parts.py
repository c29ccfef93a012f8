"""What the sections of a report share."""

import itertools
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from lengthen.report.html import Html, element, joined
from lengthen.report.results import EXTENDED, Evaluation, Run
from lengthen.report.svg import inline_svg

__all__ = [
    "METHODS",
    "figure_with_caption",
    "from_to",
    "in_order",
    "lengths",
    "missing",
    "not_measured",
    "own_results",
    "quoted",
    "trained_parameters",
    "training_seconds",
]

METHODS = {
    "linear": "linear position interpolation",
    "ntk": "a fixed raised RoPE base (NTK)",
    "yarn": "YaRN",
    "llama3": "Llama 3's scaling of positions",
    "theta": "another RoPE base",
    "longrope": "LongRoPE",
    "none": "unchanged positions",
}
"""What a reader calls a recipe's context.method."""


def from_to(run: Run) -> str:
    """The context before and after, where the one before is known."""
    before = f"{run.base['context']:,} \u2192 " if run.base["context"] else ""
    return f"{before}{run.recipe.context.target:,}"


def trained_parameters(parameters: Mapping[str, int]) -> int:
    """The sum of the kinds in run.json's "trainable"."""
    return sum(count for kind, count in parameters.items() if kind != "total")


def training_seconds(metrics: Sequence[Mapping[str, Any]]) -> float:
    """Time in optimiser steps; a line's seconds are the mean over the steps since the line before."""
    steps = [0, *(record["step"] for record in metrics)]
    passed = [now - before for before, now in itertools.pairwise(steps)]
    return sum(record["seconds"] * count for record, count in zip(metrics, passed, strict=True))


def own_results(run: Run, kind: str) -> list[Evaluation]:
    """The results files of the run's own model, oldest first."""
    return [evaluation for evaluation in run.evaluations if evaluation.kind == kind and evaluation.label == EXTENDED]


def in_order(labels: Mapping[str, Any] | set[str]) -> list[str]:
    """The base first and the run last, which pictures set off."""
    return sorted(labels, key=lambda label: (label == EXTENDED, label))


def lengths(run: Run) -> str:
    """The target and up to three halves of it that are not below the base's context, for a command line."""
    target, least = run.recipe.context.target, run.base["context"] or run.recipe.context.target // 8
    halves = [target // 2**power for power in range(4) if target // 2**power >= least]
    return ",".join(str(length) for length in reversed(halves))


def quoted(run: Run) -> str:
    """The run folder, for a command line."""
    return shlex.quote(str(run.folder))


def figure_with_caption(figure: Any, name: str, caption: str, label: str, source: str) -> Html:
    """A picture under what it shows and the file that it is from; `name` and `label` as `inline_svg` takes them."""
    text = joined(element("b", caption), " ", element("span", source))
    return element("figure", element("figcaption", text), inline_svg(figure, name, label))


def not_measured(command: str) -> Html:
    """The line in place of a section that no results file is there for."""
    return missing("Not measured; ", element("code", command), " does it.")


def missing(*text: str) -> Html:
    """The line in place of what is not there."""
    return element("p", *text, class_="missing")
