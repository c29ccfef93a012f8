"""The newest comparison of a run with its base: the verdict with its picture, and perplexity by position."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lengthen.evaluation.compare.paired import position_buckets
from lengthen.evaluation.compare.verdict import RETRIEVAL, SHARE
from lengthen.evaluation.plot import found_figure, position_figure
from lengthen.report.figures import Picture, ReportSection, Table, picture
from lengthen.report.numbers import as_count, as_perplexity
from lengthen.report.results import RUN, Evaluation, Run
from lengthen.results import as_interval, found_curves

__all__ = ["Fact", "Found", "Usable", "found_by_length", "perplexity_by_position", "usable"]

Fact = tuple[str, str, str]
"""A name, a value and a note."""

_SIDES = {"base": "base", "scaled": "base, positions scaled, untrained", "run": RUN}
"""Labels of a comparison's sides in pictures."""


@dataclass(frozen=True)
class Usable:
    """The section on the usable context.

    Attributes:
        sentence: the verdict; where retrieval fell, that comes first.
        fell: whether it did.
        picture: what is found by length, base and run; None where no needles were asked for.
        facts: the usable context, the short ability, the perplexity.
        scores: all of them, with their intervals.
    """

    sentence: str
    fell: bool
    picture: Picture | None
    facts: list[Fact]
    scores: Table


def usable(run: Run) -> Usable | None:
    """The verdict of the newest comparison; None where there is none."""
    evaluation = run.newest("compare")
    if evaluation is None:
        return None
    verdict = evaluation.content["verdict"]
    sentence = verdict["sentence"][0].upper() + verdict["sentence"][1:] + "."
    if verdict["fell"]:
        sentence = f"Retrieval fell below the base's. {sentence}"
    facts: list[Fact] = []
    if verdict["base_usable"]:
        tokens = f"{verdict['usable']:,} tokens" if verdict["usable"] else "none"
        facts.append(("usable context", tokens, f"base: {verdict['base_usable']:,} tokens"))
    elif verdict["best"] is not None:
        facts.append(("usable context", "not known", "the base itself finds too little"))
    fate = next((fate for fate in ("lost", "undecided", "kept") if verdict.get(fate)), None)
    if fate is not None:
        facts.append(("short ability", fate, ", ".join(verdict[fate])))
    rows = evaluation.content["perplexity"]
    if rows:
        whole = _whole(rows)
        values = f"{as_perplexity(whole['base'])} \u2192 {as_perplexity(whole['run'])}"
        facts.append((f"perplexity on {whole['to']:,} tokens", values, f"{_base_label(run, whole)} \u2192 run"))
    return Usable(sentence, verdict["fell"], _found_picture(run, evaluation), facts, _scores(evaluation))


@dataclass(frozen=True)
class Found:
    """Retrieval by length, of the task that the verdict is about.

    Attributes:
        hidden: what was to be found.
        lengths: in tokens.
        curves: for each side, the share by length.
    """

    hidden: str
    lengths: list[int]
    curves: dict[str, dict[int, float]]


def found_by_length(evaluation: Evaluation) -> Found | None:
    """Of a comparison; None where nothing was hidden."""
    task = evaluation.content["verdict"]["task"]
    curves = {_SIDES[side]: curve for side, curve in found_curves(evaluation.content["scores"], task).items()}
    if not curves:
        return None
    return Found(RETRIEVAL[task].capitalize(), sorted(curves[RUN]), curves)


def _found_picture(run: Run, evaluation: Evaluation) -> Picture | None:
    found = found_by_length(evaluation)
    if found is None:
        return None
    best = evaluation.content["verdict"]["best"]
    figure = found_figure(found.curves, base_context=run.base["context"], bar=SHARE * best if best else None)
    sides = (
        f"{label} {', '.join(f'{score:.0%} at {tokens:,} tokens' for tokens, score in sorted(curve.items()))}"
        for label, curve in found.curves.items()
    )
    label = f"{found.hidden} found by length: {'; '.join(sides)}."
    return picture(figure, "found", f"{found.hidden} found by length, base and run", label, evaluation.file)


def _scores(evaluation: Evaluation) -> Table:
    rows = [
        [
            row["task"],
            f"{row['tokens']:,}",
            *(f"{row[side]['score']:.2f}" for side in ("base", "run")),
            as_interval(row, "+.2f", ""),
        ]
        for row in evaluation.content["scores"]
        if row["depth"] is None
    ]
    return Table("Base and run on the same questions", ["task", "tokens", "base", RUN, "difference, 95%"], rows)


def perplexity_by_position(run: Run) -> ReportSection | None:
    """The run beside the base, which reads by a sliding window beyond its context; None where it is not compared."""
    evaluation = run.newest("compare")
    if evaluation is None or not evaluation.content["perplexity"]:
        return None
    rows: list[dict[str, Any]] = evaluation.content["perplexity"]
    whole = _whole(rows)
    buckets = position_buckets(rows)
    base, last = _base_label(run, whole), buckets[-1]
    interval = as_interval(whole, ".3f", "")
    note = (
        f"{as_count(whole['documents'], 'document')} of up to {whole['to']:,} tokens, each token scored once by both. "
        f"Over all of them the run has {as_perplexity(whole['run'])}, the {base} {as_perplexity(whole['base'])}"
        f"{f'; the ratio is {interval} with 95% confidence' if interval else ''}."
    )
    curves: dict[str, list[dict[str, Any]]] = {
        label: [{"from": row["from"], "to": row["to"], "perplexity": row[side]} for row in buckets]
        for side, label in {**_SIDES, "base": base}.items()
        if all(side in row for row in buckets)
    }
    label = (
        f"Perplexity by position of the predicted token: from {as_perplexity(buckets[0]['base'])} to "
        f"{as_perplexity(last['base'])} for the {base}, from {as_perplexity(buckets[0]['run'])} to "
        f"{as_perplexity(last['run'])} for the run."
    )
    figure = position_figure(curves, base_context=run.base["context"])
    cells = [
        [
            f"{row['from']:,} to {row['to']:,}",
            as_perplexity(row["base"]),
            as_perplexity(row["run"]),
            "" if row["ratio"] is None else f"{row['ratio']:.3f} ({as_interval(row, '.3f', '')})".removesuffix(" ()"),
        ]
        for row in buckets
    ]
    table = Table("Perplexity by position", ["positions", "base", RUN, "run / base (95%)"], cells)
    shown = picture(figure, "position", "Perplexity by position", label, evaluation.file)
    return ReportSection("Perplexity by position", note, [shown], [table])


def _whole(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row of all positions."""
    return max(rows, key=lambda row: row["to"] - row["from"])


def _base_label(run: Run, whole: Mapping[str, Any]) -> str:
    """Beyond its own context a comparison's base reads by a sliding window."""
    context = run.base["context"]
    return f"base with a sliding window of {context:,} tokens" if whole["beyond_base"] and context else "base"
