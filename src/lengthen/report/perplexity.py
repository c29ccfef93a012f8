"""Perplexity before and after."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lengthen.evaluation.plot import context_figure, position_figure
from lengthen.report.html import Html, element, joined, table
from lengthen.report.numbers import as_perplexity
from lengthen.report.parts import figure_with_caption, in_order, missing, not_measured, quoted
from lengthen.report.results import EXTENDED, Run

__all__ = ["Group", "perplexity", "perplexity_groups"]


@dataclass(frozen=True)
class Group:
    """Perplexities on the same documents by the same protocol.

    Attributes:
        what: protocol and documents.
        points: by label and context.
        files: they are from.
    """

    what: str
    points: dict[str, dict[int, dict[str, Any]]]
    files: list[str]


def perplexity(run: Run) -> Html:
    """Before and after, by context and by position."""
    target, context = run.recipe.context.target, run.base["context"] or run.recipe.context.target // 2
    groups = perplexity_groups(run)
    measure = f"lengthen eval perplexity {quoted(run)} --data DOCUMENTS --context {context},{target}"
    if not groups:
        return not_measured(measure)
    parts = [part for number, group in enumerate(groups) for part in _perplexity_group(run, group, number)]
    if all(set(group.points) == {EXTENDED} for group in groups):
        base = f"lengthen eval perplexity {shlex.quote(_base_name(run))} --data DOCUMENTS --context {context},{target}"
        commands = f"{base} --beyond --json base.json", f"lengthen report {quoted(run)} --compare base.json"
        first, second = (element("code", command) for command in commands)
        parts.append(missing("The base is not measured on these documents; ", first, " and then ", second, " show it."))
    return joined(*parts)


def perplexity_groups(run: Run) -> list[Group]:
    """Results of the run, and with them what can be compared: of the same protocol and documents. The newest count."""
    groups: dict[tuple[str, ...], Group] = {}
    for evaluation in run.evaluations:
        if evaluation.kind != "perplexity":
            continue
        content = evaluation.content
        documents = content.get("documents") or content.get("data") or []
        protocol = content.get("protocol") or "strided"
        group = groups.setdefault((protocol, *documents), Group(f"{protocol}, {_listed(documents)}", {}, []))
        by_context = {point["context"]: point for point in content["results"]}
        group.points.setdefault(evaluation.label, {}).update(by_context)
        if evaluation.file not in group.files:
            group.files.append(evaluation.file)
    return [group for group in groups.values() if EXTENDED in group.points]


def _perplexity_group(run: Run, group: Group, number: int) -> list[Html]:
    labels = in_order(group.points)
    contexts = sorted({context for points in group.points.values() for context in points})
    figures = [*_by_context(run, group, f"perplexity-{number}"), *_by_position(run, group, f"position-{number}")]
    rows = [[label, *(_perplexity_cell(group.points[label].get(context)) for context in contexts)] for label in labels]
    columns = ["context", *(f"{context:,}" for context in contexts)]
    has_intervals = any(point.get("interval") for points in group.points.values() for point in points.values())
    intervals = " In brackets: 95% confidence." if has_intervals else ""
    return [
        element("p", f"{group.what}.{intervals}", class_="note"),
        element("div", *figures, class_="figures"),
        table("Perplexity by model and context", columns, rows),
    ]


def _by_context(run: Run, group: Group, name: str) -> list[Html]:
    curves = {}
    for label in in_order(group.points):
        points = sorted(group.points[label].items())
        curve = {context: point["perplexity"] for context, point in points if point["perplexity"] is not None}
        if curve:
            curves[label] = curve
    if len(set().union(*curves.values())) < 2:
        return []
    ends = [f"{label} {as_perplexity(curve[max(curve)])} at {max(curve):,}" for label, curve in curves.items()]
    drawn = context_figure(curves, base_context=run.base["context"])
    label = f"Perplexity by context in tokens: {'; '.join(ends)}."
    return [figure_with_caption(drawn, name, "Perplexity by context", label, ", ".join(group.files))]


def _by_position(run: Run, group: Group, name: str) -> list[Html]:
    longest = max(group.points[EXTENDED])
    found = {label: group.points[label].get(longest, {}).get("by_position") for label in in_order(group.points)}
    buckets = {label: positions for label, positions in found.items() if positions}
    if not buckets:
        return []
    ends = [f"{label} {as_perplexity(each[-1]['perplexity'])} at the end" for label, each in buckets.items()]
    drawn = position_figure(buckets, base_context=run.base["context"])
    label = f"Perplexity by position of the predicted token: {'; '.join(ends)}."
    caption = f"Perplexity by position, given {longest:,} tokens"
    return [figure_with_caption(drawn, name, caption, label, ", ".join(group.files))]


def _perplexity_cell(point: dict[str, Any] | None) -> str:
    if point is None:
        return ""
    interval = point.get("interval")
    ends = f" ({as_perplexity(interval['low'])}\u2013{as_perplexity(interval['high'])})" if interval else ""
    return as_perplexity(point["perplexity"]) + ends


def _listed(documents: Sequence[str]) -> str:
    shown = ", ".join(documents[:3])
    return f"{shown} and {len(documents) - 3} more documents" if len(documents) > 3 else shown


def _base_name(run: Run) -> str:
    return str(run.base.get("model", run.recipe.model))
