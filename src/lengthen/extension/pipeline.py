"""The phases of an extension: its folder, its state, and its events."""

import json
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from lengthen.errors import Interrupted, OutputError
from lengthen.extension.events import Event, OnEvent, Phase
from lengthen.extension.plan import Planned
from lengthen.extension.request import ExtendRequest
from lengthen.extension.state import STATE, State, begin, write_state
from lengthen.files import write_text
from lengthen.recipe import Recipe, load_recipe, parse_recipe
from lengthen.run_folder import RunFolder

__all__ = ["Pipeline", "default_folder"]

_NOTE_EVERY = 30.0  # seconds between notes of the time, which a process that is killed leaves behind

_SAID: dict[Phase, str] = {
    "plan": "looking at base and data",
    "base": "measuring the base",
    "train": "training",
    "run": "measuring the run",
    "report": "writing the report",
}
_DONE: dict[Phase, str] = {
    "base": "the plan is made",
    "train": "the base is measured",
    "run": "the training is done",
    "report": "everything is measured",
}


class Pipeline:
    """State that all phases share.

    Args:
        request: what is asked for.
        out: the run folder; None for `runs/MODEL-TO`.
        on_event: gets each event.
        stop: says whether to stop.

    Attributes:
        run: the run folder.
        state: how far it is.
        phase: the one that is worked at.
    """

    def __init__(self, request: ExtendRequest, out: str | Path | None, on_event: OnEvent, stop: Callable[[], bool]):
        self.request, self.on_event, self.stop = request, on_event, stop
        self.run = RunFolder(Path(out) if out is not None else default_folder(request))
        self.state = State(request)
        self.phase: Phase = "plan"
        self._began = self._noted = time.monotonic()
        self._before = 0.0  # seconds of earlier attempts at the phase

    @property
    def folder(self) -> Path:
        """The run folder's path."""
        return self.run.path

    @property
    def planned(self) -> Planned:
        """The plan, once it is made."""
        assert self.state.plan is not None
        return self.state.plan

    @property
    def recipe(self) -> Recipe:
        """The run's recipe, from its folder."""
        return load_recipe(self.run.recipe, [f"out={json.dumps(str(self.folder))}"])  # which YAML reads as text

    @property
    def elapsed(self) -> float:
        """Seconds of the phase so far, over all attempts."""
        return self._before + time.monotonic() - self._began

    def open(self) -> None:
        """Resume from the folder's state.

        Raises:
            OutputError: it is not this extension's.
            Interrupted: as `check_stop`.
        """
        self.state = begin(self.folder, self.request)
        if self.state.recipe is not None and not self.run.is_run:
            self._write_recipe()  # the process was stopped just before it did
        if self.state.seconds and self.state.phase is not None:
            self.phase = self.state.phase
            self.say(f"going on in {self.folder}, where {_DONE[self.phase]}")

    def do(self, phase: Phase, work: Callable[[], dict[str, Any] | None]) -> None:
        """Do a phase, and note that it is done.

        Args:
            phase: which one.
            work: does it, and returns what of the state it changes, if anything.

        Raises:
            Interrupted: as `check_stop`.
        """
        self.phase, self._before = phase, self.state.unfinished
        self._began = self._noted = time.monotonic()
        try:
            self.say(_SAID[phase])
            changes = work() or {}
        except BaseException:
            self._note_time()
            raise
        self.state = self.state.after(phase, self.elapsed, **changes)
        write_state(self.folder, self.state)
        if phase == "plan":
            self._write_recipe()

    def say(self, text: str) -> None:
        """Send a line of text.

        Raises:
            Interrupted: as `check_stop`.
        """
        self.on_event(Event(self.phase, text))
        self.check_stop()

    def check_stop(self) -> None:
        """Ask whether to stop, which whatever takes long has to do every second or so.

        Raises:
            Interrupted: `stop` says so.
        """
        if self.stop():
            raise Interrupted(f"stopped while {_SAID[self.phase]}", signal.SIGTERM)

    def moved(self, done: float, total: float, unit: str, left: float, loss: float | None = None) -> None:
        """Send the progress of the phase.

        Args:
            done, total, unit: of the phase.
            left: seconds of it that are left, about.
            loss: of a training step.
        """
        planned = self.planned
        measuring = planned.questions.seconds
        later = {"base": (planned.training or 0.0) + measuring, "train": measuring}.get(self.phase, 0.0)
        self.on_event(Event(self.phase, "", min(done, total), total, unit, loss, left + later))
        if time.monotonic() - self._noted > _NOTE_EVERY:
            self._note_time()

    def _note_time(self) -> None:
        """Keep what the phase has taken so far, for the next attempt to add to; of a plan nothing is kept."""
        self._noted = time.monotonic()
        if (self.folder / STATE).is_file():
            self.state = replace(self.state, unfinished=round(self.elapsed, 1))
            with suppress(OutputError):  # no reason to stop, and none to hide why it did
                write_state(self.folder, self.state)

    def _write_recipe(self) -> None:
        assert self.state.recipe is not None
        write_text(self.run.recipe, parse_recipe(self.state.recipe, "of the extension").to_yaml())


def default_folder(request: ExtendRequest) -> Path:
    """`runs/MODEL-TO`, such as runs/tiny-2k."""
    name = Path(request.model).name.removesuffix(".gguf")
    size = f"{request.to // 1024}k" if request.to % 1024 == 0 else str(request.to)
    return Path("runs") / f"{name}-{size}"
