"""One extension at a time, in a thread of this process, for everyone who has the page open.

An extension keeps all that it comes to in its run folder (`lengthen.extension`), so the job keeps nothing: after a
restart the same wishes go on where the folder is.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lengthen.errors import Interrupted, LengthenError, one_line
from lengthen.extension import Event, ExtendRequest, State, extend, plan_extension, read_state

__all__ = ["ExtensionJob", "ExtensionProgress", "unfinished_first"]

_LOG = logging.getLogger(__name__)
_PATIENCE = 30.0  # seconds that a training step may take to end when the page closes


@dataclass(frozen=True)
class ExtensionProgress:
    """Progress of the job, the same for everyone.

    Attributes:
        version: grows with every change.
        folder: of the newest extension; None before the first.
        state: of it; "planned" and "stopped" ones can be gone on with.
        lines: what it said, oldest first.
        event: its newest progress.
        error: why it failed, else None.
    """

    version: int = 0
    folder: Path | None = None
    state: Literal["idle", "running", "stopping", "planned", "stopped", "failed", "finished"] = "idle"
    lines: tuple[str, ...] = ()
    event: Event | None = None
    error: str | None = None

    @property
    def is_busy(self) -> bool:
        """Whether its thread is at work."""
        return self.state in ("running", "stopping")


class ExtensionJob:
    """The extension in progress, or the last one."""

    def __init__(self) -> None:
        self._progress = ExtensionProgress()
        self._lock = threading.Lock()
        self._wanted_stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def progress(self) -> ExtensionProgress:
        """How far it is."""
        return self._progress

    def begin(self, request: ExtendRequest, folder: Path, only_plan: bool = False) -> None:
        """Extend in the background, or go on with the same; returns at once.

        Args:
            request: what is asked for.
            folder: of the run.
            only_plan: stop after the plan.

        Raises:
            LengthenError: another one is going on.
        """
        with self._lock:
            if self._progress.is_busy:
                raise LengthenError(f"{self._progress.folder} is being extended; wait for it, or cancel it")
            self._wanted_stop.clear()
            version = self._progress.version + 1
            self._progress = ExtensionProgress(version, folder, "running")
            work = plan_extension if only_plan else extend
            self._thread = threading.Thread(
                target=self._work, args=(work, request, folder, only_plan), name="lengthen-extension", daemon=True
            )
            self._thread.start()

    def cancel(self) -> None:
        """Stop after the step that is being taken; what is done is kept."""
        with self._lock:
            if self._progress.state == "running":
                self._wanted_stop.set()
                self._change(state="stopping")

    def close(self) -> None:
        """Stop, and wait until it has."""
        self.cancel()
        if self._thread is not None:
            self._thread.join(_PATIENCE)

    def _work(self, work: Callable[..., Any], request: ExtendRequest, folder: Path, only_plan: bool) -> None:
        try:
            work(
                request.model,
                request.to,
                request.data,
                out=folder,
                eval_data=request.eval_data,
                hours=request.hours,
                task=request.task,
                overrides=request.overrides,
                on_event=self._tell,
                stop=self._wanted_stop.is_set,
            )
        except Interrupted:
            self._end(state="stopped")
        except Exception as error:  # whatever it is, the next one can begin
            if not isinstance(error, LengthenError):
                _LOG.exception("the extension failed")
            self._end(state="failed", error=one_line(error))
        else:
            self._end(state="planned" if only_plan else "finished")

    def _tell(self, event: Event) -> None:
        with self._lock:
            if event.text:
                self._change(lines=(*self._progress.lines, event.text))
            else:
                self._change(event=event)

    def _end(self, **changes: Any) -> None:
        with self._lock:
            self._change(event=None, **changes)

    def _change(self, **changes: Any) -> None:
        self._progress = replace(self._progress, version=self._progress.version + 1, **changes)


def unfinished_first(runs: Path) -> dict[Path, State]:
    """The extensions in the folders of `runs`: those that can be gone on with, then the finished ones."""
    states = {}
    for folder in sorted(runs.iterdir()) if runs.is_dir() else []:
        try:
            state = read_state(folder)
        except LengthenError:  # a damaged one is named when it is gone on with
            continue
        if state is not None:
            states[folder] = state
    return dict(sorted(states.items(), key=lambda each: each[1].phase is None))
