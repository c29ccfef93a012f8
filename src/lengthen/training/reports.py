"""Loggers beside metrics.jsonl: transformers' own integrations, with their files in the run folder."""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from lengthen.errors import RecipeError, one_line, require

__all__ = ["LOGGERS", "PROJECT", "check_reports", "report_callbacks"]

LOGGERS = ("tensorboard", "wandb", "trackio")
PROJECT = "lengthen"


def check_reports(names: Sequence[str]) -> None:
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


def report_callbacks(names: Sequence[str], run: Path) -> list[TrainerCallback]:
    """The Trainer's callbacks for these loggers; they log in the first process only.

    Args:
        names: `training.report_to`, checked.
        run: the run folder. tensorboard writes to `tensorboard` in it unless $TENSORBOARD_LOGGING_DIR says otherwise,
            wandb to `wandb` in it; trackio has one database for all runs of a user.
    """
    callbacks: list[TrainerCallback] = []
    for name in dict.fromkeys(names):
        if name == "tensorboard":
            from transformers.integrations import TensorBoardCallback

            tensorboard = TensorBoardCallback()
            tensorboard.logging_dir = tensorboard.logging_dir or str(run / "tensorboard")
            callbacks.append(tensorboard)
        elif name == "wandb":
            callbacks.append(_wandb(run))
        else:
            from transformers.integrations import TrackioCallback

            callbacks.append(TrackioCallback())
    return callbacks


def _wandb(run: Path) -> TrainerCallback:
    from transformers.integrations import WandbCallback

    class WandbInRun(WandbCallback):
        def setup(self, args: Any, state: Any, model: Any, **kwargs: Any) -> None:
            if state.is_world_process_zero and self._wandb.run is None:
                project = os.environ.get("WANDB_PROJECT", PROJECT)
                try:
                    self._wandb.init(project=project, name=run.name, dir=str(run))
                except self._wandb.Error as error:
                    raise RecipeError(
                        f"training.report_to=wandb: {one_line(error)}; set WANDB_API_KEY, or WANDB_MODE=offline"
                    ) from error
            super().setup(args, state, model, **kwargs)

    return WandbInRun()
