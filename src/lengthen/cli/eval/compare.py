"""``lengthen eval compare``."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lengthen.cli._loaded_model import check_lengths, check_scaling, write_result
from lengthen.cli._options import (
    BatchSize,
    Depths,
    EvalOptions,
    Haystack,
    Model,
    Output,
    Seed,
    Trials,
    parse_depths,
    parse_lengths,
)
from lengthen.cli._tables import print_table
from lengthen.cli._terminal import print_warnings

if TYPE_CHECKING:
    import numpy as np

    from lengthen.evaluation.compare import Comparison, Pair, Probe
    from lengthen.evaluation.haystack import Haystack as HaystackText

__all__ = ["compare"]

# Short prompts cost next to nothing, and need more of them for a narrow interval.
_SHORT_TRIALS = 4


@dataclass(frozen=True)
class SideOptions:
    """How base and run are measured."""

    evaluator: Annotated[str, typer.Option(help="Whose losses choose the tokens of LongPPL: base or run.")] = "base"
    short_context: Annotated[
        int | None, typer.Option(min=2, help="Tokens that LongPPL compares with; default an eighth.")
    ] = None
    scaled: Annotated[bool, typer.Option("--scaled", help="Also ask the base with the run's positions, untrained.")] = (
        False
    )
    stride: Annotated[
        int | None, typer.Option(min=1, help="Tokens that the base's sliding window moves by; default half of it.")
    ] = None
    batch_size: BatchSize = 1


def compare(
    model: Model,
    base: Annotated[str | None, typer.Option(help="What it was made over; default as the run folder says.")] = None,
    lengths: Annotated[
        str | None, typer.Option(help="Tokens of prompt and answer; default halves of the run's context.")
    ] = None,
    depths: Depths = "0,0.25,0.5,0.75,1",
    trials: Trials = 5,
    tasks: Annotated[
        str,
        typer.Option(help="Tasks: needle, lookup, copy, cloze, babilong_qa1 to babilong_qa3, RULER's, and lm-eval's."),
    ] = "needle,copy,cloze",
    haystack: Haystack = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Documents for perplexity, repeatable; default what the run kept from training, else the haystack."
        ),
    ] = None,
    documents: Annotated[int, typer.Option(min=0, help="Documents read, the longest ones; 0 for none.")] = 8,
    include: Annotated[
        Path | None, typer.Option(help="For lm-eval's tasks: folder with more task configurations.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Of each of lm-eval's tasks, the first; default all.")
    ] = None,
    seed: Seed = 0,
    *,
    sides: SideOptions,
    options: EvalOptions,
    output: Output,
) -> None:
    """Compare a run with its base on the same prompts and documents, and say what of its context is usable."""
    check_scaling(options)
    asked, places = parse_lengths(lengths, "--lengths") if lengths is not None else None, parse_depths(depths)

    from lengthen.evaluation.compare import Benchmarks, comparison_figure, comparison_header, default_lengths, find_pair
    from lengthen.evaluation.compare import compare as measure
    from lengthen.evaluation.haystack import Haystack as Prose
    from lengthen.evaluation.haystack import read_haystack

    given = asdict(options)
    beyond = given.pop("beyond")
    ours, theirs = _names(tasks, include)
    if not theirs and (include is not None or samples is not None):
        raise typer.BadParameter("--include and --samples are for tasks of lm-eval; name some in --tasks")
    pair = find_pair(model, base, **given)
    chosen = asked or default_lengths(pair.base_context, pair.context)
    check_lengths(model, pair.context, chosen, beyond)
    source, text = read_haystack(haystack)
    prose = Prose(pair.tokenizer, text, source)
    typer.echo(f"haystack: {source}, {prose.tokens} tokens", err=True)
    probes = _probes(ours, pair, prose, text, chosen, places, trials, seed)
    names, read = _documents(pair, data, documents, max(chosen), text)
    benchmarks = Benchmarks(theirs, include, samples) if theirs else None
    found = measure(pair, probes, read, **asdict(sides), benchmarks=benchmarks)
    _print(found, pair, output.quiet)
    header = comparison_header(pair, probes, prose, names, lengths=chosen, depths=places, trials=trials, seed=seed)
    figure = partial(comparison_figure, found, Path(pair.name).name, pair.base_context)
    write_result(model, header, "compare", {**found}, output.json_file, figure)


def _names(tasks: str, include: Path | None) -> tuple[list[str], list[str]]:
    """Our own tasks and lm-eval's, before anything is loaded; what is none of ours has to be one of theirs."""
    from lengthen.errors import DataError, LengthenError, require
    from lengthen.evaluation.retrieval.babilong import TASKS as BABILONG
    from lengthen.evaluation.ruler import TASKS as RULER

    names = list(dict.fromkeys(name.strip() for name in tasks.split(",") if name.strip()))
    known = ["needle", "lookup", "copy", "cloze", *BABILONG, *(name for name in RULER if not name.startswith("qa_"))]
    ours, theirs = [name for name in names if name in known], [name for name in names if name not in known]
    if not names:
        raise typer.BadParameter(f"no task {tasks!r}; choose from {', '.join(known)}", param_hint="--tasks")
    if theirs:
        try:
            require("a task of another name", "tasks", "lm_eval")
            from lengthen.evaluation.tasks.harness import check_tasks

            check_tasks(theirs, include)
        except LengthenError as error:
            raise DataError(f"{', '.join(theirs)}: lengthen's own are {', '.join(known)}; {error}") from error
    return ours, theirs


def _probes(
    names: Sequence[str],
    pair: "Pair",
    prose: "HaystackText",
    text: str,
    lengths: Sequence[int],
    depths: Sequence[float],
    trials: int,
    seed: int,
) -> "list[Probe]":
    """The probes: of tasks with a length at each of them, of short ones once."""
    from lengthen.evaluation import compare as of
    from lengthen.evaluation.ruler import Essay, RulerTexts

    tokenizer, sources = pair.tokenizer, RulerTexts(Essay(text), {})
    found = []
    for name in names:
        if name == "copy":
            found.append(of.copy_probe(tokenizer, _SHORT_TRIALS * trials, seed))
        elif name == "cloze":
            found.append(of.cloze_probe(tokenizer, prose, _SHORT_TRIALS * trials, seed))
        elif name in ("needle", "lookup"):
            found += [of.needle_probe(tokenizer, prose, tokens, depths, trials, seed, name) for tokens in lengths]
        elif name.startswith("babilong_"):
            found += [of.babilong_probe(tokenizer, prose, name, tokens, trials, seed) for tokens in lengths]
        else:
            found += [of.ruler_probe(tokenizer, sources, name, tokens, trials, seed) for tokens in lengths]
    return found


def _documents(
    pair: "Pair", data: Sequence[str] | None, most: int, tokens: int, prose: str
) -> tuple[list[str], "list[np.ndarray]"]:
    """Names and token ids of the longest documents, each cut to so many tokens."""
    import numpy as np

    from lengthen.data.tokens import default_cache, load_tokens
    from lengthen.evaluation.prompts import encode

    if not most:
        return [], []
    held_out: set[str] = set()
    if data is None:
        data, held_out = _data_of_run(pair)
    if data is None:
        ids = np.array(encode(pair.tokenizer, prose))
        pieces = [ids[start : start + tokens] for start in range(0, len(ids), tokens)][:most]
        return [f"haystack, piece {number}" for number in range(1, len(pieces) + 1)], pieces
    vocabulary = pair.config.get_text_config().vocab_size
    store, warnings = load_tokens(data, pair.tokenizer, vocabulary, default_cache())
    print_warnings(warnings)
    if held_out:
        store = store.take([index for index, name in enumerate(store.names) if name in held_out])
    longest = np.argsort(-store.lengths, kind="stable")[:most]
    return [store.names[i] for i in longest], [store[i][:tokens] for i in longest]


def _data_of_run(pair: "Pair") -> tuple[list[str] | None, set[str]]:
    """Data that a run did not train on: documents with the names of those it held out, or its validation data."""
    from lengthen.recipe import load_recipe
    from lengthen.run_folder import RunFolder

    run = RunFolder(Path(pair.name))
    if not run.is_run:
        return None, set()
    data = load_recipe(run.recipe).data
    if data.held_out:
        return data.paths, set(data.held_out)
    return (data.validation or None) if data.kind == "text" else None, set()


def _print(found: "Comparison", pair: "Pair", quiet: bool) -> None:
    from lengthen.results import as_interval

    typer.echo(found["verdict"]["sentence"])
    rows = found["scores"]
    sides = [side for side in ("base", "scaled", "run") if side in (*rows, *found["perplexity"])[0]]
    print_table(
        "Right answers, teacher-forced, and nats per token of them",
        ["task", "tokens", *sides, "run - base, 95%", "nats: base / run"],
        [
            [
                row["task"],
                _marked(row["tokens"], row),
                *(f"{row[side]['score']:.2f}" for side in sides),
                as_interval(row, "+.2f"),
                _both(row, "nats"),
            ]
            for row in rows
            if row["depth"] is None
        ],
    )
    if not quiet:
        _print_depths([row for row in rows if row["depth"] is not None])
    if found["perplexity"]:
        print_table(
            "Perplexity by position in the document",
            ["from", "to", *sides, "run / base", "95%"],
            [
                [row["from"], _marked(row["to"], row), *(_number(row[side]) for side in sides),
                 _number(row["ratio"], ".3f"), as_interval(row, ".3f")]
                for row in found["perplexity"]
            ],
        )  # fmt: skip
    if found.get("lm_eval"):
        print_table(
            "Tasks of lm-eval, within the base's context",
            ["task", "metric", "samples", "base", "run", "run - base, 95%"],
            [
                [row["task"], row["metric"], row["samples"], *(_with_error(row, side) for side in ("base", "run")),
                 as_interval(row, "+.3f")]
                for row in found["lm_eval"]
            ],
        )  # fmt: skip
    long = found.get("long_perplexity")
    if long is not None:
        typer.echo(
            f"LongPPL: base {_number(long['base'])}, run {_number(long['run'])}, "
            f"run / base {as_interval(long, '.3f')}, on {long['tokens']:,} tokens ({long['share']:.1%}) that "
            f"{long['evaluator']} predicts better with more than {long['short_context']:,} tokens before them"
        )
    if any(row["beyond_base"] for row in (*rows, *found["perplexity"])):
        typer.echo(f"* beyond the base's {pair.base_context:,} tokens; its perplexity there is by a sliding window")


def _print_depths(rows: Sequence[Mapping[str, Any]]) -> None:
    for task in dict.fromkeys(row["task"] for row in rows):
        by_place = {(row["depth"], row["tokens"]): row for row in rows if row["task"] == task}
        lengths = list(dict.fromkeys(tokens for _, tokens in by_place))
        print_table(
            f"{task} by depth: base / run",
            ["depth", *map(str, lengths)],
            [
                [f"{depth:g}", *(_both(by_place[depth, tokens], "score") for tokens in lengths)]
                for depth in dict.fromkeys(depth for depth, _ in by_place)
            ],
        )


def _both(row: Mapping[str, Any], key: str) -> str:
    return f"{row['base'][key]:.2f} / {row['run'][key]:.2f}"


def _with_error(row: Mapping[str, Any], side: str) -> str:
    error = row[f"{side}_stderr"]
    return f"{row[side]:.3f}" + ("" if error is None else f" +- {error:.3f}")


def _marked(tokens: int, row: Mapping[str, Any]) -> str:
    return f"{tokens}{'*' if row['beyond_base'] else ' '}"


def _number(value: float | None, form: str = ".2f") -> str:
    return "over 1e308" if value is None else format(value, form)
