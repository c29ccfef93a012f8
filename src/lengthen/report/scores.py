"""What is found and answered in long texts: passkey, needle, RULER, benchmark tasks."""

from typing import Any

from lengthen.evaluation.plot import bars_figure, heatmap_figure, right_answers
from lengthen.report.html import Html, element, table
from lengthen.report.numbers import as_share
from lengthen.report.parts import figure_with_caption, in_order, lengths, not_measured, own_results, quoted
from lengthen.report.results import EXTENDED, Evaluation, Run

__all__ = ["effective_sentence", "retrieval", "ruler", "tasks"]


def retrieval(run: Run, kind: str) -> Html:
    """Heatmaps of passkey or needle, one for each file."""
    if not own_results(run, kind):
        return not_measured(f"lengthen eval {kind} {quoted(run)} --lengths {lengths(run)}")
    found = [evaluation for evaluation in run.evaluations if evaluation.kind == kind]
    return element("div", *(_heatmap(each, f"{kind}-{i}") for i, each in enumerate(found)), class_="figures")


def _heatmap(evaluation: Evaluation, name: str) -> Html:
    cells = evaluation.content["results"]
    correct, trials = sum(map(right_answers, cells)), sum(cell["trials"] for cell in cells)
    needles = evaluation.content.get("needles", 1)
    worst = min(cells, key=lambda cell: right_answers(cell) / cell["trials"])
    caption = f"{evaluation.label}: {correct:,} of {trials:,} found"
    if needles > 1:
        caption += f", {needles} needles each"
    label = (
        f"Heatmap of {evaluation.kind}'s right answers by length and depth, {evaluation.label}: "
        f"{as_share(correct, trials)} in all; lowest {as_share(right_answers(worst), worst['trials'])} at "
        f"{worst['tokens']:,} tokens and depth {worst['depth']:.0%}."
    )
    return figure_with_caption(heatmap_figure(cells), name, caption, label, evaluation.file)


def ruler(run: Run) -> Html:
    """Bars of the averages by length, and the effective context."""
    own = own_results(run, "ruler")
    if not own:
        return not_measured(f"lengthen eval ruler {quoted(run)} --lengths {lengths(run)}")
    others = {each.label: each for each in run.evaluations if each.kind == "ruler" and each.label != EXTENDED}
    parts = []
    for number, evaluation in enumerate(own):
        parts += [_bars([*others.values(), evaluation], f"ruler-{number}"), _ruler_table(evaluation)]
    return element("div", *parts, class_="figures")


def _bars(evaluations: list[Evaluation], name: str) -> Html:
    """The last one is the run's."""
    series = {
        evaluation.label: {average["tokens"]: average["score"] for average in evaluation.content["averages"]}
        for evaluation in evaluations
    }
    own = evaluations[-1]
    threshold = own.content.get("threshold")
    scores = "; ".join(f"{score:.1f} at {length:,} tokens" for length, score in series[own.label].items())
    caption, label = "Mean score of the tasks by length", f"Bars of RULER's mean score: {scores}."
    if threshold is not None:
        caption, label = effective_sentence(own), f"{label} Threshold {threshold:.1f}."
    figure = bars_figure(series, threshold=threshold, score="mean score of the tasks (%)")
    return figure_with_caption(figure, name, caption, label, own.file)


def tasks(run: Run) -> Html:
    """Scores of benchmark tasks, the base's beside the run's."""
    found = [evaluation for evaluation in run.evaluations if evaluation.kind == "tasks"]
    if not any(evaluation.label == EXTENDED for evaluation in found):
        return not_measured(f"lengthen eval tasks {quoted(run)} --tasks NAMES")
    labels = in_order({evaluation.label for evaluation in found})
    scores: dict[tuple[str, str], dict[str, Any]] = {}
    for evaluation in found:
        for result in evaluation.content["results"]:
            scores.setdefault((result["task"], result["metric"]), {})[evaluation.label] = result
    rows = [
        [task, metric, *(f"{by_label[label]['score']:.3g}" if label in by_label else "" for label in labels),
         str(by_label.get(EXTENDED, {}).get("samples") or "")]
        for (task, metric), by_label in scores.items()
    ]  # fmt: skip
    return table("Scores of benchmark tasks", ["task", "metric", *labels, "samples"], rows, texts=2)


def _ruler_table(evaluation: Evaluation) -> Html:
    results = evaluation.content["results"]
    measured = sorted({result["tokens"] for result in results})
    scores = {(result["task"], result["tokens"]): f"{result['score']:.1f}" for result in results}
    names = dict.fromkeys(result["task"] for result in results)
    rows = [[name, *(scores.get((name, length), "") for length in measured)] for name in names]
    return table("RULER's score by task and length", ["task", *(f"{length:,}" for length in measured)], rows)


def effective_sentence(evaluation: Evaluation) -> str:
    """What RULER says about the context, for results with a threshold."""
    effective, threshold = evaluation.content.get("effective_context"), evaluation.content["threshold"]
    if effective:
        return (
            f"By RULER its effective context is {effective:,} tokens: up to there it scores at least {threshold:.1f}."
        )
    return f"By RULER it has no effective context: no tested length scores {threshold:.1f}."
