"""What a run tells while it goes on, and how it stops when asked to."""

import json
import resource
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback

from lengthen.attention import set_group_size
from lengthen.errors import OutputError
from lengthen.files import write_text
from lengthen.recipe import BackendName

__all__ = [
    "FullAttentionLast",
    "MetricsLog",
    "StopOnSignal",
    "TrainingProgress",
    "keep_metrics_until",
    "peak_memory",
]


def peak_memory() -> int:
    """Highest memory so far, bytes: of the CUDA device where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def keep_metrics_until(path: Path, step: int) -> None:
    """Drop the lines of metrics.jsonl after `step`: a resumed run writes them again."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # the line in which the killed run died
            continue
        if record["step"] <= step:
            kept.append(line + "\n")
    write_text(path, "".join(kept))


class MetricsLog(TrainerCallback):
    """One line of metrics.jsonl per logged step: loss, learning rate, gradient norm, speed, memory.

    Args:
        path: the file; lines are appended.
        trainer: a `LengthenTrainer`, set after it is built; its token count gives the speed.
    """

    def __init__(self, path: Path):
        self._path = path
        self._tokens, self._step = 0, 0
        self._time = time.perf_counter()
        self.trainer: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._time, self._step = time.perf_counter(), state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Append a line."""
        if not logs or "loss" not in logs or not state.is_world_process_zero:
            return
        now, tokens = time.perf_counter(), self.trainer.tokens_seen * args.world_size
        seconds = (now - self._time) / max(1, state.global_step - self._step)
        record = {
            "step": state.global_step,
            "loss": logs["loss"],
            "learning_rate": logs["learning_rate"],
            "grad_norm": logs.get("grad_norm"),
            "tokens_per_second": round((tokens - self._tokens) / (now - self._time), 1),
            "seconds": round(seconds, 3),
            "peak_memory_bytes": peak_memory(),
        }
        self._time, self._tokens, self._step = now, tokens, state.global_step
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise OutputError(
                f"can't write {self._path}: {error.strerror}; free space and start again with --resume"
            ) from error


class TrainingProgress(TrainerCallback):
    """A bar over the optimiser steps with the latest loss; plain lines where the output is not a terminal."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._lines = None if console.is_terminal else console
        self._bar = Progress(
            TextColumn("Training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps, loss {task.fields[loss]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show the bar."""
        if state.is_world_process_zero:
            self._task = self._bar.add_task("", total=state.max_steps, completed=state.global_step, loss="-")
            self._bar.start()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Move the bar."""
        if logs and "loss" in logs and state.is_world_process_zero:
            self._bar.update(self._task, completed=state.global_step, loss=f"{logs['loss']:.4f}")
            if self._lines is not None:
                self._lines.print(
                    f"step {state.global_step}/{state.max_steps}  loss {logs['loss']:.4f}", highlight=False
                )

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the bar away."""
        if state.is_world_process_zero:
            self._bar.stop()


class FullAttentionLast(TrainerCallback):
    """Take the last steps of a run with S2 at full attention; when is known from the step alone, resumed or not.

    The groups become whole documents, so that packed ones stay apart without a mask.

    Args:
        model: with S2's groups set.
        share: of all optimiser steps, rounded to whole ones, at least one.
        group_size: S2's, tokens.
        backend: what computes the groups.
    """

    def __init__(self, model: torch.nn.Module, share: float, group_size: int, backend: BackendName):
        self._model, self._share = model, share
        self._group_size, self._backend = group_size, backend
        self._is_full = False

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Change to full attention in the first step that is due."""
        last = max(1, round(self._share * state.max_steps))
        if not self._is_full and state.global_step >= state.max_steps - last:
            set_group_size(self._model, self._group_size, pattern="full", backend=self._backend)
            self._is_full = True


class StopOnSignal(TrainerCallback):
    """On Ctrl-C or SIGTERM, end the step, write a checkpoint and stop; on a second one, stop at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take over the signals."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number
        print("stopping after this step; once more to stop at once", file=sys.stderr)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Ask the trainer to save and stop; all processes in the same step, whichever got the signal first."""
        if args.world_size > 1:
            latest = torch.tensor(self.received or 0, device=args.device)
            torch.distributed.all_reduce(latest, torch.distributed.ReduceOp.MAX)
            self.received = int(latest) or None
        if self.received is not None:
            control.should_save = control.should_training_stop = True
        return control

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Give the signals back."""
        self.restore()

    def restore(self) -> None:
        """Give the signals back, also after an error."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
