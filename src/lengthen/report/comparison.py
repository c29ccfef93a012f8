"""The newest comparison of a run with its base: the verdict with its picture, and perplexity by position.

Where there is none, needles that were asked of each alone say whether retrieval fell.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lengthen.evaluation.compare.paired import position_buckets
from lengthen.evaluation.compare.verdict import RETRIEVAL, SHARE
from lengthen.evaluation.plot import found_figure, position_figure, right_answers
from lengthen.report.figures import Picture, ReportSection, Table, picture
from lengthen.report.numbers import as_count, as_perplexity, as_share
from lengthen.report.results import RUN, Evaluation, Run
from lengthen.results import as_interval, found_curves

__all__ = ["Fact", "Found", "Usable", "found_by_length", "long_perplexity", "perplexity_by_position", "usable"]

Fact = tuple[str, str, str]
"""A name, a value and a note."""

_DEVIATIONS = 1.96  # that a difference of two shares has to be from 0, for 95%

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
        scores: all of them, with their intervals; None where base and run are not compared.
    """

    sentence: str
    fell: bool
    picture: Picture | None = None
    facts: list[Fact] = field(default_factory=list)
    scores: Table | None = None


def usable(run: Run) -> Usable | None:
    """The verdict of the newest comparison, or else what needles of run and base say; None where there is neither."""
    evaluation = run.newest("compare")
    if evaluation is None:
        return _by_needles(run)
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
    long = long_perplexity(evaluation)
    if long is not None:
        facts.append(long)
    return Usable(sentence, verdict["fell"], _found_picture(run, evaluation), facts, _scores(evaluation))


def _by_needles(run: Run) -> Usable | None:
    """What the newest needles of each alone say, in the cells of both within the base's context."""
    own, context = run.newest("needle"), run.base["context"]
    bases = [evaluation for evaluation in run.evaluations if (evaluation.kind, evaluation.label) == ("needle", "base")]
    if own is None or not bases or context is None:
        return None
    cells = [
        {(cell["tokens"], cell["depth"]): cell for cell in evaluation.content["results"] if cell["tokens"] <= context}
        for evaluation in (bases[-1], own)
    ]
    shared = sorted(cells[0].keys() & cells[1].keys())
    if not shared:
        return None
    # Generated answers count where both have them.
    generated = all(side[key]["correct"] is not None for side in cells for key in shared)
    found = [sum(right_answers(side[key]) if generated else side[key]["exact"] for key in shared) for side in cells]
    asked = [sum(side[key]["trials"] for key in shared) for side in cells]
    before, after = found[0] / asked[0], found[1] / asked[1]
    # With one answer more of either kind, as the spread of one or two equal answers is not 0.
    spread = [(right + 1) * (count - right + 1) / (count + 2) ** 2 for right, count in zip(found, asked, strict=True)]
    error = (spread[0] / asked[0] + spread[1] / asked[1]) ** 0.5
    fell = after < SHARE * before and before - after > _DEVIATIONS * error
    sentence = (
        f"Within the base's context the run finds {as_share(found[1], asked[1])} of the needles and the base "
        f"{as_share(found[0], asked[0])}, asked of each alone; what of the longer context is usable is not compared."
    )
    return Usable(f"Retrieval fell below the base's. {sentence}" if fell else sentence, fell)


def long_perplexity(evaluation: Evaluation) -> Fact | None:
    """LongPPL of base and run, of a comparison; None where a long context helped no token."""
    long = evaluation.content.get("long_perplexity")
    if long is None:
        return None
    values = f"{as_perplexity(long['base'])} \u2192 {as_perplexity(long['run'])}"
    return "LongPPL", values, f"base \u2192 run, on {long['tokens']:,} tokens that a long context helps"


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
    asked = [row for row in evaluation.content["scores"] if row["depth"] is None]
    sides = [side for side in _SIDES if side != "scaled" or any(side in row for row in asked)]
    rows = [
        [
            row["task"],
            f"{row['tokens']:,}",
            *(f"{row[side]['score']:.2f}" if side in row else "" for side in sides),
            as_interval(row, "+.2f", ""),
        ]
        for row in asked
    ]
    rows += [
        [
            f"{row['task']}, {row['metric']}",
            "",
            *(f"{row[side]:.2f}" if side in row else "" for side in sides),
            as_interval(row, "+.2f", ""),
        ]
        for row in evaluation.content.get("lm_eval", ())
    ]
    columns = ["task", "tokens", *(_SIDES[side] for side in sides), "run - base, 95%"]
    return Table("Base and run on the same questions", columns, rows)


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
