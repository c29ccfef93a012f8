"""What of the context is usable, from comparisons of the run with its base."""

from collections.abc import Mapping
from typing import Any

from lengthen.evaluation.compare.verdict import SHARE
from lengthen.evaluation.plot import found_figure
from lengthen.report.html import Html, element, table
from lengthen.report.numbers import as_perplexity
from lengthen.report.parts import figure_with_caption, lengths, not_measured, own_results, quoted
from lengthen.report.results import Evaluation, Run

__all__ = ["usable", "usable_sentence"]


def usable_sentence(content: Mapping[str, Any]) -> str:
    """A comparison's verdict as a reader's first line: where retrieval fell, that comes first."""
    verdict = content["verdict"]
    said = verdict["sentence"][0].upper() + verdict["sentence"][1:] + "."
    return f"Retrieval fell below the base's. {said}" if verdict["fell"] else said


def usable(run: Run) -> Html:
    """Of the newest comparison: what is found by length, base beside run, with all its scores."""
    found = own_results(run, "compare")
    if not found:
        return not_measured(f"lengthen eval compare {quoted(run)} --lengths {lengths(run)}")
    newest = found[-1]
    return element(
        "div",
        element("p", usable_sentence(newest.content), class_="note"),
        *_figure(run, newest),
        _table(newest),
        class_="figures",
    )


def _figure(run: Run, evaluation: Evaluation) -> list[Html]:
    rows = [row for row in evaluation.content["scores"] if row["task"] == "needle" and row["depth"] is None]
    if not rows:
        return []
    curves = {side: {row["tokens"]: row[side]["score"] for row in rows} for side in ("base", "run")}
    each = (
        f"{row['base']['score']:.0%} by the base and {row['run']['score']:.0%} by the run at {row['tokens']:,} tokens"
        for row in rows
    )
    label = f"Needles found by length: {'; '.join(each)}."
    figure = found_figure(curves, base_context=run.base["context"], bar=SHARE * evaluation.content["verdict"]["best"])
    return [figure_with_caption(figure, "usable", "Needles found, base and run", label, evaluation.file)]


def _table(evaluation: Evaluation) -> Html:
    scores = [
        [
            row["task"],
            f"{row['tokens']:,}",
            *(f"{row[side]['score']:.2f}" for side in ("base", "run")),
            "" if row["low"] is None else f"{row['low']:+.2f} to {row['high']:+.2f}",
        ]
        for row in evaluation.content["scores"]
        if row["depth"] is None
    ]
    perplexities = [
        [
            "perplexity",
            f"{row['to']:,}",
            *(as_perplexity(row[side]) for side in ("base", "run")),
            "" if row["low"] is None else f"x {row['low']:.3f} to {row['high']:.3f}",
        ]
        for row in evaluation.content["perplexity"]
        if row["from"] == 0
    ][:2]
    columns = ["task", "tokens", "base", "run", "difference, 95%"]
    return table("Base and run on the same questions", columns, scores + perplexities)
