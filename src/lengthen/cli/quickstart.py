"""`lengthen quickstart`: `lengthen extend` on the base that ships with the package, and its numbers in a table."""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lengthen.cli._options import Output, Overrides
from lengthen.cli.extend import stoppable, teller

__all__ = ["numbers", "quickstart"]

TARGET = 2048  # tokens
HOURS = 0.5  # the most that it may take, on a slow machine
# What measured best on a base so small: of nine settings, these find most and keep the copying of digits.
SETTINGS = (
    "training.steps=90",
    "training.learning_rate=3e-3",
    "data.beside=[{kind: retrieval, weight: 0.8, answer_weight: 6, text_weight: 1}]",
)
_NAMES = {
    "base": "base (256 tokens)",
    "sliding": "base, 256 tokens at a time",
    "scaled": "positions scaled, untrained",
    "extended": f"extended to {TARGET:,}",
}

# Sides of a comparison by their names in the results.
_SIDES = {"base": "base", "scaled": "scaled", "extended": "run"}


def quickstart(
    overrides: Overrides = None,
    *,
    out: Annotated[Path, typer.Option(help="Run folder: new, empty, or one in which it was stopped.")] = Path(
        "runs/quickstart"
    ),
    output: Output,
) -> None:
    """Extend the shipped base from 256 to 2048 tokens, and say what it finds before and after: two minutes.

    It is `lengthen extend tiny --to 2048 --data python-stdlib:train --eval-data python-stdlib:validation --task lookup
    training.steps=90` with a higher learning rate and the text around the questions at its full weight.
    """
    from lengthen.data.stdlib import STDLIB
    from lengthen.extension import extend

    began = time.perf_counter()
    with stoppable():
        run = extend(
            "tiny",
            TARGET,
            f"{STDLIB}:train",
            out=out,
            eval_data=f"{STDLIB}:validation",
            hours=HOURS,
            task="lookup",
            overrides=(*SETTINGS, *(overrides or ())),
            on_event=teller(output),
        )
    measured = numbers(run.comparison)
    output.write({"seconds": round(time.perf_counter() - began, 1), **measured, "run": str(run.folder)})
    if not output.quiet:
        _show(measured)
        print(run.verdict)
        print(f"report: {run.folder}/report.html")


def numbers(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of the table, from run and base side by side.

    Args:
        comparison: the results file of an extension.

    Returns:
        "documents" (how many); perplexity on the first so many tokens of them, of "base" within its context and of
        "sliding", "scaled" and "extended" at each length; "by_position", the same in buckets; and "lookup", the shares
        found at each length by base, scaled and extended. Positions scaled are left out where they were not measured.
    """
    from lengthen.evaluation.compare.paired import position_buckets
    from lengthen.results import found_curves

    found = found_curves(comparison["scores"], "lookup")
    buckets = position_buckets(comparison["perplexity"])
    sides = {name: side for name, side in _SIDES.items() if side in found}
    curves = {"sliding" if name == "base" else name: side for name, side in sides.items()}
    perplexity = {
        name: {str(tokens): _joined(buckets, tokens, side) for tokens in found["base"]} for name, side in curves.items()
    }
    within = str(comparison["base_context"])
    return {
        "documents": len(comparison["documents"]),
        "base": {within: perplexity["sliding"][within]},
        **perplexity,
        "by_position": {
            name: [{"from": row["from"], "to": row["to"], "perplexity": row[side]} for row in buckets]
            for name, side in curves.items()
        },
        "lookup": {name: {str(tokens): score for tokens, score in found[side].items()} for name, side in sides.items()},
    }


def _joined(buckets: Sequence[Mapping[str, Any]], tokens: int, side: str) -> float | None:
    """Perplexity on the first tokens; None where one of its buckets is too large for a number."""
    within = [row for row in buckets if row["to"] <= tokens]
    if any(row[side] is None for row in within):
        return None
    loss = sum(math.log(row[side]) * row["tokens"] for row in within) / sum(row["tokens"] for row in within)
    return round(math.exp(loss), 3)


def _show(measured: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from lengthen.report.numbers import as_perplexity

    lengths, table = list(measured["extended"]), Table()
    table.add_column("in prompts, or on the first tokens of files")
    for length in lengths:
        table.add_column(f"{int(length):,}", justify="right")
    for name, found in measured["lookup"].items():
        table.add_row(f"look-ups found: {_NAMES[name]}", *(f"{share:.0%}" for share in found.values()))
    table.add_section()
    for name in ("sliding", "scaled", "extended"):
        if name in measured:
            table.add_row(f"perplexity: {_NAMES[name]}", *map(as_perplexity, measured[name].values()))
    Console().print(table)
