"""`lengthen train`."""

import shlex
import sys
from typing import Annotated

import typer

from lengthen.cli._options import Output, Overrides, RecipeName

__all__ = ["train"]


def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    *,
    output: Output,
) -> None:
    """Extend a base as a recipe says, into a run folder. Runs under torchrun and accelerate launch too."""
    from accelerate import PartialState

    from lengthen.errors import Interrupted
    from lengthen.recipe import load_recipe
    from lengthen.run_folder import RunFolder
    from lengthen.training.run import train as run_training

    try:
        run = run_training(load_recipe(recipe, overrides or ()), resume=resume)
    except Interrupted as interruption:
        print(f"lengthen: {interruption}; go on with --resume", file=sys.stderr)
        raise typer.Exit(128 + interruption.signal) from interruption
    if not PartialState().is_main_process:
        return
    output.write({"run": str(run), "metrics": RunFolder(run).read_metrics()})
    if not output.quiet:
        print(run)
        print(f"next: lengthen eval compare {shlex.quote(str(run))}", file=sys.stderr)
