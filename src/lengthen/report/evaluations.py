"""Results of `lengthen eval` beside the comparison: perplexity by protocol, retrieval, RULER, benchmark tasks."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lengthen.evaluation.plot import bars_figure, context_figure, heatmap_figure, position_figure, right_answers
from lengthen.report.figures import Picture, ReportSection, Table, picture
from lengthen.report.numbers import as_perplexity, as_share
from lengthen.report.results import RUN, Evaluation, Run

__all__ = ["evaluations", "perplexity_by_protocol", "unmeasured"]


@dataclass(frozen=True)
class _Group:
    """Perplexities on the same documents by the same protocol; "points" by label and context."""

    protocol: str
    data: str
    points: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)


def perplexity_by_protocol(run: Run) -> list[ReportSection]:
    """A section for each protocol and set of documents, the base's results beside the run's."""
    sections = []
    for number, group in enumerate(_perplexity_groups(run)):
        pictures = [*_by_context(run, group, f"context-{number}"), *_by_position(run, group, f"position-{number}")]
        note = f"{group.data}. {_beside_the_base(run, group)}"
        sections.append(ReportSection(f"Perplexity, {group.protocol}", note, pictures, [_by_model(group)]))
    return sections


def _perplexity_groups(run: Run) -> list[_Group]:
    """Results of the run, and with them what can be compared: of the same protocol and documents. The newest count."""
    groups: dict[tuple[str, ...], _Group] = {}
    for evaluation in run.evaluations:
        if evaluation.kind != "perplexity":
            continue
        content = evaluation.content
        documents = content.get("documents") or content.get("data") or []
        protocol = content.get("protocol") or "strided"
        group = groups.setdefault((protocol, *documents), _Group(protocol, _listed(documents)))
        by_context = {point["context"]: point for point in content["results"]}
        group.points.setdefault(evaluation.label, {}).update(by_context)
        if evaluation.file not in group.files:
            group.files.append(evaluation.file)
    return [group for group in groups.values() if RUN in group.points]


def _listed(documents: Sequence[str]) -> str:
    shown = ", ".join(documents[:3])
    return f"{shown} and {len(documents) - 3} more documents" if len(documents) > 3 else shown


def _beside_the_base(run: Run, group: _Group) -> str:
    own, base, context = group.points[RUN], group.points.get("base", {}), run.base["context"]
    longest = max(own)
    sentence = f"Given {longest:,} tokens the run's perplexity is {as_perplexity(own[longest]['perplexity'])}"
    if longest in base:
        sentence += f", and the base's {as_perplexity(base[longest]['perplexity'])}"
    if context in base and context in own and context != longest:
        short, short_base = (as_perplexity(points[context]["perplexity"]) for points in (own, base))
        sentence += f"; given {context:,} tokens they are {short} and {short_base}"
    has_intervals = any(point.get("interval") for points in group.points.values() for point in points.values())
    return sentence + "." + (" In brackets: 95% confidence." if has_intervals else "")


def _by_context(run: Run, group: _Group, name: str) -> list[Picture]:
    curves = {}
    for label in _in_order(group.points):
        points = sorted(group.points[label].items())
        curve = {context: point["perplexity"] for context, point in points if point["perplexity"] is not None}
        if curve:
            curves[label] = curve
    if len(set().union(*curves.values())) < 2:
        return []
    ends = [f"{label} {as_perplexity(curve[max(curve)])} at {max(curve):,}" for label, curve in curves.items()]
    figure = context_figure(curves, base_context=run.base["context"])
    label = f"Perplexity by context in tokens: {'; '.join(ends)}."
    return [picture(figure, name, "Perplexity by context", label, ", ".join(group.files))]


def _by_position(run: Run, group: _Group, name: str) -> list[Picture]:
    longest = max(group.points[RUN])
    by_label = {label: group.points[label].get(longest, {}).get("by_position") for label in _in_order(group.points)}
    curves = {label: buckets for label, buckets in by_label.items() if buckets}
    if not curves:
        return []
    ends = [f"{label} {as_perplexity(buckets[-1]['perplexity'])} at the end" for label, buckets in curves.items()]
    figure = position_figure(curves, base_context=run.base["context"])
    label = f"Perplexity by position of the predicted token: {'; '.join(ends)}."
    caption = f"Perplexity by position, given {longest:,} tokens"
    return [picture(figure, name, caption, label, ", ".join(group.files))]


def _by_model(group: _Group) -> Table:
    contexts = sorted({context for points in group.points.values() for context in points})
    rows = [
        [label, *(_perplexity_cell(group.points[label].get(context)) for context in contexts)]
        for label in _in_order(group.points)
    ]
    return Table("Perplexity by model and context", ["context", *(f"{context:,}" for context in contexts)], rows)


def _perplexity_cell(point: Mapping[str, Any] | None) -> str:
    if point is None:
        return ""
    interval = point.get("interval")
    ends = f" ({as_perplexity(interval['low'])}\u2013{as_perplexity(interval['high'])})" if interval else ""
    return as_perplexity(point["perplexity"]) + ends


def evaluations(run: Run) -> list[ReportSection]:
    """Passkey, needle, RULER and benchmark tasks, as far as the run was measured by them."""
    sections = [_heatmaps(run, "passkey", "Passkey"), _heatmaps(run, "needle", "Needle in a haystack")]
    return [section for section in (*sections, _ruler(run), _tasks(run)) if section is not None]


def _heatmaps(run: Run, kind: str, title: str) -> ReportSection | None:
    """One for each file, with the newest file's sum in words."""
    newest = run.newest(kind)
    if newest is None:
        return None
    correct, trials = _sum(newest)
    longest = max(cell["tokens"] for cell in newest.content["results"])
    note = f"The run answers {correct:,} of {trials:,} questions right in texts of up to {longest:,} tokens."
    files = [evaluation for evaluation in run.evaluations if evaluation.kind == kind]
    return ReportSection(title, note, [_heatmap(file, f"{kind}-{number}") for number, file in enumerate(files)])


def _sum(evaluation: Evaluation) -> tuple[int, int]:
    """Right answers and questions of a grid."""
    cells = evaluation.content["results"]
    return sum(map(right_answers, cells)), sum(cell["trials"] for cell in cells)


def _heatmap(evaluation: Evaluation, name: str) -> Picture:
    cells, (correct, trials) = evaluation.content["results"], _sum(evaluation)
    worst = min(cells, key=lambda cell: right_answers(cell) / cell["trials"])
    caption = f"{evaluation.label}: {correct:,} of {trials:,} found"
    if evaluation.content.get("needles", 1) > 1:
        caption += f", {evaluation.content['needles']} needles each"
    label = (
        f"Heatmap of {evaluation.kind}'s right answers by length and depth, {evaluation.label}: "
        f"{as_share(correct, trials)} in all; lowest {as_share(right_answers(worst), worst['trials'])} at "
        f"{worst['tokens']:,} tokens and depth {worst['depth']:.0%}."
    )
    return picture(heatmap_figure(cells), name, caption, label, evaluation.file)


def _ruler(run: Run) -> ReportSection | None:
    """Bars of the averages by length, the base's beside the run's; the effective context of the newest file."""
    own = run.own("ruler")
    if not own:
        return None
    others = {each.label: each for each in run.evaluations if each.kind == "ruler" and each.label != RUN}
    pictures = [_bars([*others.values(), evaluation], f"ruler-{number}") for number, evaluation in enumerate(own)]
    return ReportSection("RULER", _effective(own[-1]), pictures, [_ruler_table(evaluation) for evaluation in own])


def _effective(evaluation: Evaluation) -> str:
    """RULER's effective context, for results with a threshold."""
    effective, threshold = evaluation.content.get("effective_context"), evaluation.content.get("threshold")
    if threshold is None:
        return ""
    if effective:
        return f"The effective context is {effective:,} tokens: up to there the run scores at least {threshold:.1f}."
    return f"There is no effective context: the run scores {threshold:.1f} at no tested length."


def _bars(evaluations: list[Evaluation], name: str) -> Picture:
    """The last one is the run's."""
    series = {
        evaluation.label: {average["tokens"]: average["score"] for average in evaluation.content["averages"]}
        for evaluation in evaluations
    }
    own = evaluations[-1]
    threshold = own.content.get("threshold")
    scores = "; ".join(f"{score:.1f} at {length:,} tokens" for length, score in series[own.label].items())
    label = f"Bars of RULER's mean score: {scores}." + (f" Threshold {threshold:.1f}." if threshold is not None else "")
    figure = bars_figure(series, threshold=threshold)
    return picture(figure, name, "Mean score of the tasks by length", label, own.file)


def _ruler_table(evaluation: Evaluation) -> Table:
    results = evaluation.content["results"]
    lengths = sorted({result["tokens"] for result in results})
    scores = {(result["task"], result["tokens"]): f"{result['score']:.1f}" for result in results}
    names = dict.fromkeys(result["task"] for result in results)
    rows = [[name, *(scores.get((name, length), "") for length in lengths)] for name in names]
    return Table("RULER's score by task and length", ["task", *(f"{length:,}" for length in lengths)], rows)


def _tasks(run: Run) -> ReportSection | None:
    """Scores of benchmark tasks, the base's beside the run's."""
    if not run.own("tasks"):
        return None
    files = [evaluation for evaluation in run.evaluations if evaluation.kind == "tasks"]
    labels = _in_order({evaluation.label for evaluation in files})
    scores: dict[tuple[str, str], dict[str, Any]] = {}
    for evaluation in files:
        for result in evaluation.content["results"]:
            scores.setdefault((result["task"], result["metric"]), {})[evaluation.label] = result
    rows = [
        [
            *names,
            *(f"{by_label[label]['score']:.3g}" if label in by_label else "" for label in labels),
            str(by_label.get(RUN, {}).get("samples") or ""),
        ]
        for names, by_label in scores.items()
    ]
    table = Table("Scores of benchmark tasks", ["task", "metric", *labels, "samples"], rows, text_columns=2)
    return ReportSection("Benchmark tasks", tables=[table])


def unmeasured(run: Run) -> list[tuple[str, str]]:
    """Evaluations without a results file, and the commands that measure them."""
    folder, target = shlex.quote(str(run.folder)), run.recipe.context.target
    # The target and up to three halves of it that are not below the base's context.
    least = run.base["context"] or target // 8
    lengths = ",".join(str(target // 2**power) for power in reversed(range(4)) if target // 2**power >= least)
    contexts = f"--data DOCUMENTS --context {run.base['context'] or target // 2},{target}"
    options = {
        "compare": ("What is usable, beside the base", f"--lengths {lengths}"),
        "perplexity": ("Perplexity", contexts),
        "passkey": ("Passkey", f"--lengths {lengths}"),
        "needle": ("Needle in a haystack", f"--lengths {lengths}"),
        "ruler": ("RULER", f"--lengths {lengths}"),
        "tasks": ("Benchmark tasks", "--tasks NAMES"),
    }
    rows = [
        (title, f"lengthen eval {kind} {folder} {option}")
        for kind, (title, option) in options.items()
        if not run.own(kind)
    ]
    groups = _perplexity_groups(run)
    if groups and all(set(group.points) == {RUN} for group in groups):
        base = shlex.quote(str(run.base.get("model", run.recipe.model)))
        measure = f"lengthen eval perplexity {base} {contexts} --beyond --json base.json"
        rows += [
            ("The base's perplexity on the same documents", measure),
            ("A report with it", f"lengthen report {folder} --compare base.json"),
        ]
    return rows


def _in_order(labels: Mapping[str, Any] | set[str]) -> list[str]:
    """The base first and the run last, which pictures set off."""
    return sorted(labels, key=lambda label: (label == RUN, label))
