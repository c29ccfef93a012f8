"""``lengthen eval tasks``."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from lengthen.cli._loaded_model import LoadedModel, load_model, write_result
from lengthen.cli._options import EvalOptions, Model, Output
from lengthen.cli._tables import print_table

__all__ = ["tasks"]


def tasks(
    model: Model,
    tasks: Annotated[str | None, typer.Option(help="lm-eval tasks, such as hellaswag,longbench_*.")] = None,
    data: Annotated[
        list[Path] | None, typer.Option(help="JSONL of LongBench, L-Eval, SQuALITY or QMSum, or a folder; repeatable.")
    ] = None,
    metric: Annotated[str, typer.Option(help="With --data: auto (each data set's own), f1, rouge-l, ...")] = "auto",
    include: Annotated[Path | None, typer.Option(help="With --tasks: folder with more task configurations.")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Prompts of each task, the first; default all.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of an answer, at most; default each task's own.")
    ] = None,
    context: Annotated[
        int | None, typer.Option(min=2, help="Tokens of prompt and answer; default the model's.")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put the tokenizer's chat template around prompts.")] = False,
    predictions: Annotated[Path | None, typer.Option(help="Also write each answer to this JSONL file.")] = None,
    *,
    options: EvalOptions,
    output: Output,
) -> None:
    """Measure a model on benchmark tasks: files of long-document suites, or tasks of lm-eval."""
    from lengthen.files import write_json_lines

    measure = _pick_measure(tasks, include, data, metric, trials)
    loaded = load_model(model, options)
    size = context or loaded.context
    loaded.check_lengths([size], options.beyond)
    results, answers = measure(loaded, size, max_new_tokens, chat)

    columns = [name for name in ("task", "metric", "score", "stderr", "samples", "truncated") if name in results[0]]
    print_table(f"Tasks, context {size}", columns, [[result[name] for name in columns] for result in results])
    if predictions is not None:
        write_json_lines(predictions, answers)
        typer.echo(f"wrote {predictions}", err=True)
    content = {
        "data": [str(path) for path in data or []],
        "context": size,
        "chat": chat,
        "max_new_tokens": max_new_tokens,
        "results": results,
    }
    write_result(loaded.name, loaded.header, "tasks", content, output.json_file)


_Measure = Callable[[LoadedModel, int, int | None, bool], tuple[list[dict[str, Any]], list[dict[str, Any]]]]


def _pick_measure(
    tasks: str | None, include: Path | None, data: list[Path] | None, metric: str, trials: int | None
) -> _Measure:
    from lengthen.errors import LengthenError

    if (tasks is None) == (not data):
        raise LengthenError("give one of `data` (files of long-document suites) and `tasks` (names of lm-eval tasks)")
    if tasks is None:
        if include is not None:
            raise LengthenError("`include` goes with `tasks`: it adds configurations of lm-eval tasks")
        return _suites(data or [], metric, trials)
    if metric != "auto":
        raise LengthenError(f"`metric={metric}` goes with `data`; lm-eval's tasks say themselves how they are scored")
    return _lm_eval(tasks, include, trials)


def _lm_eval(tasks: str, include: Path | None, trials: int | None) -> _Measure:
    """A function that measures lm-eval's tasks; that lm-eval is there is checked before the model is loaded."""
    from lengthen.errors import require

    require("--tasks", "tasks", "lm_eval")
    from lengthen.evaluation.tasks.harness import evaluate_tasks

    names = [name.strip() for name in tasks.split(",") if name.strip()]

    def measure(loaded: LoadedModel, context: int, max_new_tokens: int | None, chat: bool) -> Any:
        return evaluate_tasks(
            loaded.model, loaded.tokenizer, names, context, include, trials, max_new_tokens=max_new_tokens, chat=chat
        )

    return measure


def _suites(data: list[Path], metric: str, trials: int | None) -> _Measure:
    """A function that has the questions of files answered; the files are read before the model is loaded."""
    from lengthen.evaluation.tasks.files import choose, read_samples
    from lengthen.evaluation.tasks.metrics import check_metric
    from lengthen.evaluation.tasks.scoring import answer_samples, summarize

    check_metric(metric)
    samples, left_out = choose(read_samples(data), metric, trials)
    if left_out:
        typer.echo(f"warning: {left_out} answers are left out: L-Eval has them judged, not scored", err=True)

    def measure(loaded: LoadedModel, context: int, max_new_tokens: int | None, chat: bool) -> Any:
        scored = answer_samples(
            loaded.model, loaded.tokenizer, samples, context, metric, max_new_tokens=max_new_tokens, chat=chat
        )
        return summarize(scored), [answer.to_json() for answer in scored]

    return measure
