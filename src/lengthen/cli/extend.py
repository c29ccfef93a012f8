"""`lengthen extend`."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lengthen.cli._options import Output, Overrides

if TYPE_CHECKING:
    from lengthen.extension import Event

__all__ = ["extend", "stoppable", "teller"]


def extend(
    model: Annotated[str, typer.Argument(help="Hub id, model folder, .gguf file or alias.")],
    overrides: Overrides = None,
    *,
    to: Annotated[int, typer.Option(min=2, help="The context that is wanted, tokens.")],
    data: Annotated[list[str], typer.Option(help="Long documents, as a recipe's data.train; repeatable.")],
    eval_data: Annotated[
        list[str] | None, typer.Option(help="Documents to measure on; default some of --data, kept from training.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/MODEL-TO.")] = None,
    hours: Annotated[float, typer.Option(help="The most that it may take; less is taken where that suffices.")] = 2.0,
    task: Annotated[
        str | None, typer.Option(help="What is hidden to be found: needle or lookup; default what the base can do.")
    ] = None,
    plan_only: Annotated[
        bool, typer.Option("--plan-only", help="Stop after the plan; without this, the same command goes on.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="With --plan-only, what to plan for, such as h100-80gb; default this machine's.")
    ] = None,
    output: Output,
) -> None:
    """Extend a model's context and say what of it is usable. Stopped by whatever, the same command goes on."""
    if device is not None and not plan_only:
        raise typer.BadParameter("a device is chosen for a plan; add --plan-only", param_hint="--device")
    from lengthen.extension import extend as run_extension
    from lengthen.extension import plan_extension, read_state

    given: dict[str, Any] = {
        "out": out,
        "eval_data": eval_data or (),
        "hours": hours,
        "task": task,
        "overrides": overrides or (),
        "on_event": teller(output),
    }
    with stoppable():
        if plan_only:
            output.write(asdict(plan_extension(model, to, data, device=device, **given)))
            return
        run = run_extension(model, to, data, **given)
    state = read_state(run.folder)
    assert state is not None
    output.write({"run": str(run.folder), **asdict(state)})
    print(run.verdict)
    if not output.quiet:
        print("\nnext:", *run.verdict.next, sep="\n  ")
        if run.verdict.advice:
            print("\nwhat to try, cheapest first:", *run.verdict.advice, sep="\n  ")


def teller(output: Output) -> "Callable[[Event], None]":
    """A function that prints the events of an extension, unless it is to be quiet."""

    def tell(event: "Event") -> None:
        if event.text and not output.quiet:
            print(event.text, file=sys.stderr)

    return tell


@contextmanager
def stoppable() -> Iterator[None]:
    """Where an extension is stopped, say that it goes on, and exit as a shell says it of a signal."""
    from lengthen.errors import Interrupted

    try:
        yield
    except Interrupted as interruption:
        print(f"lengthen: {interruption}; the same command goes on", file=sys.stderr)
        raise typer.Exit(128 + interruption.signal) from interruption
    except KeyboardInterrupt as interruption:
        print("lengthen: stopped; the same command goes on", file=sys.stderr)
        raise typer.Exit(128 + signal.SIGINT) from interruption
