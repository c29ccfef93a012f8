"""Events of an extension in progress."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

__all__ = ["PHASES", "Event", "OnEvent", "Phase"]

Phase = Literal["plan", "base", "train", "run", "report"]
PHASES: tuple[Phase, ...] = ("plan", "base", "train", "run", "report")
"""In their order: plan; measure the base; train; measure the run; report and verdict."""


@dataclass(frozen=True)
class Event:
    """One thing that happened: something to be said, or progress.

    Attributes:
        phase: in which.
        text: a line for people; empty where this is progress alone.
        done, total: of the phase, in `unit`; total 0 where nothing is counted.
        unit: "steps" or "tokens".
        loss: of the newest training step.
        seconds_left: until the verdict, about; None while that can't be said.
    """

    phase: Phase
    text: str = ""
    done: float = 0
    total: float = 0
    unit: str = ""
    loss: float | None = None
    seconds_left: float | None = None


OnEvent = Callable[[Event], None]
