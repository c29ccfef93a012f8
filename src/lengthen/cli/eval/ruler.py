"""``lengthen eval ruler``."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lengthen.cli._loaded_model import load_model, write_result
from lengthen.cli._options import BatchSize, EvalOptions, Haystack, Lengths, Model, Output, Seed, Trials, parse_lengths
from lengthen.cli._tables import print_table

if TYPE_CHECKING:
    from lengthen.evaluation.ruler import RulerResult, TaskScore

__all__ = ["ruler"]

_FILES = {"qa_1": "--squad", "qa_2": "--hotpotqa"}


def ruler(
    model: Model,
    lengths: Lengths,
    tasks: Annotated[str | None, typer.Option(help="Tasks, such as niah_single_1,vt; default all 13 of RULER.")] = None,
    trials: Trials = 20,
    haystack: Haystack = None,
    squad: Annotated[Path | None, typer.Option(help="SQuAD's JSON file, for qa_1.")] = None,
    hotpotqa: Annotated[Path | None, typer.Option(help="HotpotQA's JSON file (distractor), for qa_2.")] = None,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=100, help="Least score of a usable length; default the paper's 85.6.")
    ] = None,
    threshold_from: Annotated[
        Path | None, typer.Option(help="Results file of the base: its score at its own context is the threshold.")
    ] = None,
    batch_size: BatchSize = 1,
    seed: Seed = 0,
    *,
    options: EvalOptions,
    output: Output,
) -> None:
    """Measure RULER's tasks at each length, and the effective context: up to where the model can use its context."""
    tokens = parse_lengths(lengths, "--lengths")
    if threshold is not None and threshold_from is not None:
        raise typer.BadParameter("give --threshold or --threshold-from, not both")

    from lengthen.evaluation.haystack import read_haystack
    from lengthen.evaluation.plot import bars_figure
    from lengthen.evaluation.ruler import (
        PUBLISHED_THRESHOLD,
        Essay,
        RulerTexts,
        base_id,
        base_threshold,
        effective_context,
        read_hotpotqa,
        read_squad,
    )
    from lengthen.evaluation.ruler import ruler as measure

    files = (("qa_1", squad, read_squad), ("qa_2", hotpotqa, read_hotpotqa))
    questions = {task: read(file) for task, file, read in files if file is not None}
    chosen, skipped = _choose(tasks, set(questions))
    base = base_id(model, options.adapter)
    if threshold_from is not None:
        threshold = base_threshold(threshold_from, base, chosen)
    elif threshold is None:
        threshold = PUBLISHED_THRESHOLD
    source, text = read_haystack(haystack)
    loaded = load_model(model, options)
    loaded.check_lengths(tokens, options.beyond)
    for task, reason in skipped.items():
        typer.echo(f"{task} is skipped: {reason}", err=True)
    typer.echo(f"haystack: {source}", err=True)

    texts = RulerTexts(Essay(text), questions)
    result = measure(loaded.model, loaded.tokenizer, texts, chosen, tokens, trials, batch_size=batch_size, seed=seed)
    effective = effective_context(result.averages, threshold)
    _print(result, tokens, threshold, effective)
    content = {
        "base": base,
        "context": loaded.context,
        "seed": seed,
        "haystack": {"source": source},
        "skipped": skipped,
        "results": [score.to_json() for score in result.scores],
        "averages": [{"tokens": at, "score": score} for at, score in result.averages.items()],
        "threshold": threshold,
        "effective_context": effective,
    }
    label = loaded.header["model"].split(" (")[0]  # an alias's origin has no room in a picture
    bars = partial(bars_figure, {label: result.averages}, f"RULER: {label}", threshold)
    write_result(loaded.name, loaded.header, "ruler", content, output.json_file, bars)


def _choose(tasks: str | None, given: set[str]) -> tuple[list[str], dict[str, str]]:
    """The tasks to measure, in RULER's order, and those that are skipped, with the reason."""
    from lengthen.evaluation.ruler import TASKS

    named = [part.strip() for part in tasks.split(",")] if tasks is not None else list(TASKS)
    unknown = [name for name in named if name not in TASKS]
    if unknown:
        raise typer.BadParameter(f"no task {unknown[0]!r}; choose from {', '.join(TASKS)}", param_hint="--tasks")
    missing = {name: f"it needs {_FILES[name]} FILE" for name in named if name in _FILES and name not in given}
    if tasks is not None and missing:
        name, reason = next(iter(missing.items()))
        raise typer.BadParameter(f"{name} can't be measured: {reason}", param_hint="--tasks")
    return [name for name in TASKS if name in named and name not in missing], missing


def _print(result: "RulerResult", lengths: list[int], threshold: float, effective: int | None) -> None:
    scores = {(score.task, score.tokens): score for score in result.scores}
    least: dict[str, int] = {}
    for score in result.scores:
        least[score.task] = max(least.get(score.task, 0), score.least_tokens)
    rows: list[list[Any]] = [
        [task, least[task], *(f"{scores[task, tokens].score:.1f}" for tokens in lengths)] for task in least
    ]
    rows.append(["average", "", *(f"{result.averages[tokens]:.1f}" for tokens in lengths)])
    trials = result.scores[0].trials
    print_table(
        f"RULER scores, 0 to 100, by tokens of prompt and answer ({trials} prompts each)",
        ["task", "least tokens", *map(str, lengths)],
        rows,
    )
    print_table(
        "Right answers, teacher-forced: those found, 0 to 100, and nats per token of them",
        ["task", *map(str, lengths)],
        [[task, *(_likelihood(scores[task, tokens]) for tokens in lengths)] for task in least],
    )
    found = f"{effective} tokens" if effective else "none of the lengths"
    right = [score.right_tokens for score in result.scores]
    typer.echo(f"{sum(right) / len(right):.1%} of the right answers' tokens are the most likely ones")
    typer.echo(f"effective context (average of at least {threshold:.1f} there and at all shorter lengths): {found}")


def _likelihood(score: "TaskScore") -> str:
    return f"{score.found:.1f} / {score.nats:.2f}"
