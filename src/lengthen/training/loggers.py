"""Loggers beside metrics.jsonl: accelerate's trackers, with their files in the run folder."""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path

from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker

from lengthen.errors import RecipeError, one_line, require

__all__ = ["LOGGERS", "check_loggers", "start_loggers"]

LOGGERS = ("tensorboard", "wandb", "trackio")
PROJECT = "lengthen"


def check_loggers(names: Sequence[str]) -> None:
    """Refuse loggers that are not there, before anything is loaded.

    Args:
        names: `training.report_to`.

    Raises:
        RecipeError: a name that is not one of `LOGGERS`, or its package is not installed.
    """
    for name in names:
        if name not in LOGGERS:
            near = difflib.get_close_matches(name, LOGGERS, n=1)
            advice = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(LOGGERS)}"
            raise RecipeError(f"training.report_to: unknown logger {name!r}; {advice}")
        require(f"training.report_to={name}", "loggers", name, error=RecipeError)


def start_loggers(names: Sequence[str], run: Path) -> list[GeneralTracker]:
    """Accelerate's trackers for these loggers; to be called in the first process only.

    Args:
        names: `training.report_to`, checked.
        run: the run folder. tensorboard writes to `tensorboard` in it unless $TENSORBOARD_LOGGING_DIR says otherwise,
            wandb to `wandb` in it; trackio has one database for all runs of a user.

    Raises:
        RecipeError: wandb can't log in.
    """
    return [_start(name, run) for name in dict.fromkeys(names)]


def _start(name: str, run: Path) -> GeneralTracker:
    if name == "tensorboard":
        folder = Path(os.environ.get("TENSORBOARD_LOGGING_DIR", run / "tensorboard"))
        tracker = TensorBoardTracker(folder.name, str(folder.parent))
    elif name == "trackio":
        tracker = TrackioTracker(PROJECT, name=run.name)
    else:
        return _start_wandb(run)
    tracker.start()
    return tracker


def _start_wandb(run: Path) -> GeneralTracker:
    import wandb

    tracker = WandBTracker(os.environ.get("WANDB_PROJECT", PROJECT), name=run.name, dir=str(run))
    try:
        tracker.start()
    except wandb.Error as error:
        raise RecipeError(
            f"training.report_to=wandb: {one_line(error)}; set WANDB_API_KEY, or WANDB_MODE=offline"
        ) from error
    return tracker
