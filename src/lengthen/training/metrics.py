"""What a run tells while it goes on: metrics.jsonl and a progress bar."""

import json
import resource
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import PreTrainedConfig

from lengthen.data.packing import Block
from lengthen.errors import LengthenError, OutputError
from lengthen.files import write_text
from lengthen.planning.devices import this_device
from lengthen.planning.flops import model_flops
from lengthen.planning.shape import model_shape
from lengthen.recipe import Recipe

__all__ = ["METRICS", "Metrics", "TrainingProgress", "Utilization", "append_record", "keep_metrics_until"]

METRICS = "metrics.jsonl"


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


class Utilization:
    """What a run's steps need, beside what the device could do at best.

    Args:
        recipe: of the run.
        config: the model's.
        dtype: of the arithmetic.

    Attributes:
        peak: FLOP/s of the device at best; None where it is not known, or the model's operations can't be counted.
    """

    def __init__(self, recipe: Recipe, config: PreTrainedConfig, dtype: torch.dtype):
        self._recipe = recipe
        self.peak = this_device().peak(dtype)
        try:
            self._shape = model_shape(config, recipe.adapter) if self.peak else None
        except LengthenError:  # what `lengthen plan` can't count is trained all the same
            self.peak = self._shape = None

    def flops(self, blocks: Iterable[Block], full_attention: bool) -> float:
        """Operations that a step on these sequences needs; 0 where they can't be counted."""
        if self._shape is None:
            return 0.0
        documents = (length for block in blocks for length in block.segments)
        return model_flops(self._shape, self._recipe, documents, full_attention)


class Metrics:
    """Adds steps up, and makes one record of those since the last one.

    Args:
        step: that was done before, of a resumed run.
        peak: FLOP/s of the device at best; None: not known, and no MFU.
    """

    def __init__(self, step: int, peak: float | None):
        self._step, self._peak = step, peak
        self._time = time.perf_counter()
        self._loss = self._tokens = self._flops = 0.0
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()  # loading the base is not the run's

    def add(self, loss: float, tokens: float, flops: float) -> None:
        """Count one step.

        Args:
            loss: mean of its targets, nats.
            tokens: it trained on, all processes.
            flops: that this process needed for it, recomputation left out.
        """
        self._loss += loss
        self._tokens += tokens
        self._flops += flops

    def record(self, step: int, learning_rate: float, grad_norm: float) -> dict[str, Any]:
        """The line of metrics.jsonl after a step: loss and speed are means over the steps since the last line."""
        now = time.perf_counter()
        steps, seconds = step - self._step, now - self._time
        record = {
            "step": step,
            "loss": self._loss / steps,
            "learning_rate": learning_rate,
            "grad_norm": grad_norm,
            "tokens_per_second": round(self._tokens / seconds, 1),
            "mfu": round(self._flops / seconds / self._peak, 4) if self._peak else None,
            "seconds": round(seconds / steps, 3),
            **_memory(),
        }
        self._step, self._time = step, now
        self._loss = self._tokens = self._flops = 0.0
        return record


def _memory() -> dict[str, int]:
    """Highest memory so far, bytes: of the CUDA device where there is one, else of this process."""
    if torch.cuda.is_available():
        allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        return {"peak_memory_bytes": allocated, "reserved_memory_bytes": reserved}
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak_memory_bytes": used if sys.platform == "darwin" else used * 1024}


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Append a line to metrics.jsonl.

    Raises:
        OutputError: the disk is full, or the place is not writable.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        raise OutputError(f"can't write {path}: {error.strerror}; free space and start again with --resume") from error


class TrainingProgress:
    """A bar over the optimizer steps with the latest loss; plain lines where the output is not a terminal.

    Args:
        done, steps: optimizer steps.
        quiet: show nothing.
    """

    def __init__(self, done: int, steps: int, quiet: bool):
        console = Console(stderr=True, quiet=quiet)
        self._lines = None if console.is_terminal else console
        self._steps = steps
        self._bar = Progress(
            TextColumn("Training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps, loss {task.fields[loss]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=steps, completed=done, loss="-")

    def __enter__(self) -> "TrainingProgress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, record: dict[str, Any]) -> None:
        """Move the bar to a record of metrics.jsonl."""
        step, loss = record["step"], f"{record['loss']:.4f}"
        self._bar.update(self._task, completed=step, loss=loss)
        if self._lines is not None:
            self._lines.print(f"step {step}/{self._steps}  loss {loss}", highlight=False)
