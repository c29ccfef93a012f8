"""Ctrl-C and SIGTERM: the current step ends, a checkpoint is written, and the run stops."""

import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

import torch
from accelerate import Accelerator

__all__ = ["StopOnSignal"]


class StopOnSignal:
    """A context in which the first SIGINT or SIGTERM is only noted; the second one stops at once.

    Outside of the main thread, which alone gets signals, they are somebody else's, and `stop` is what can stop a run.

    Args:
        accelerator: of the run; all its processes stop in the same step, whichever got the signal.
        stop: asked beside the signals; once it says so, that is as SIGTERM.
    """

    def __init__(self, accelerator: Accelerator, stop: Callable[[], bool] | None = None):
        self._accelerator, self._stop = accelerator, stop
        self._received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopOnSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            raise KeyboardInterrupt
        self._received = number
        print("stopping after this step; once more to stop at once", file=sys.stderr)

    def received(self) -> int | None:
        """The number of a signal that any process got, or None; all processes must ask together."""
        if self._received is None and self._stop is not None and self._stop():
            self._received = signal.SIGTERM
        if self._accelerator.num_processes > 1:
            latest = torch.tensor(self._received or 0, device=self._accelerator.device)
            torch.distributed.all_reduce(latest, torch.distributed.ReduceOp.MAX)
            self._received = int(latest) or None
        return self._received
