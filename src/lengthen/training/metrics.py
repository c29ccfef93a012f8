"""Metrics of a run in progress: metrics.jsonl and a progress bar."""

import logging
import resource
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from transformers import PreTrainedConfig

from lengthen.data.blocks import Block
from lengthen.data.mixture import Mixture
from lengthen.errors import LengthenError
from lengthen.planning.devices import this_device
from lengthen.planning.flops import model_flops
from lengthen.planning.measure import model_shape
from lengthen.progress import is_progress_shown, progress_columns
from lengthen.recipe import Recipe

__all__ = [
    "BySource",
    "Metrics",
    "StepSums",
    "TrainingProgress",
    "Utilization",
    "flat",
]

_LOG = logging.getLogger(__name__)


class Utilization:
    """A step's operations against the device's peak: model FLOPs utilization.

    Args:
        recipe: of the run.
        config: the model's.
        dtype: of the arithmetic.

    Attributes:
        peak: FLOP/s of the device at best; None where it is not known, or the model's operations can't be counted.
    """

    def __init__(self, recipe: Recipe, config: PreTrainedConfig, dtype: torch.dtype):
        self._recipe = recipe
        self.peak = this_device().peak(str(dtype).removeprefix("torch."))
        try:
            self._shape = model_shape(config, recipe.adapter) if self.peak else None
        except LengthenError:  # what `lengthen plan` can't count is trained all the same
            self.peak = self._shape = None

    def flops(self, blocks: Iterable[Block], full_attention: bool) -> float:
        """Operations that a step on these sequences needs; 0 where they can't be counted.

        Args:
            blocks: sequences of the step.
            full_attention: whether attention is full, whatever the recipe says.
        """
        if self._shape is None:
            return 0.0
        documents = (length for block in blocks for length in block.segments)
        return model_flops(self._shape, self._recipe, documents, full_attention)


@dataclass(frozen=True)
class StepSums:
    """Sums of a step, beside its gradients.

    Attributes:
        loss: mean of its targets, nats.
        divergence: mean of its windows' tokens, nats; None where it had no windows.
        by_source: sum of the losses and of the targets' weights, by source.
        tokens: it trained on, all processes.
        flops: that this process needed for it, recomputation left out.
    """

    loss: float
    divergence: float | None
    by_source: dict[str, tuple[float, float]]
    tokens: float
    flops: float


class BySource:
    """A step's losses by the sources of a mixture; nothing for other data.

    Args:
        blocks: of the run.
    """

    def __init__(self, blocks: Sequence[Block]):
        self._mixture = blocks if isinstance(blocks, Mixture) else None
        self._sums: list[torch.Tensor] = []
        self._places: list[tuple[int, float]] = []

    def add(self, indices: Sequence[int], losses: torch.Tensor | None, weights: Sequence[float]) -> None:
        """Count a batch: which blocks it has, the loss of each and the weight of its targets.

        Args:
            indices: of the blocks.
            losses: (B,), sums; None where they were not kept.
            weights: of each block's targets, added up.
        """
        if self._mixture is not None and losses is not None:
            self._sums.append(losses)
            self._places += [(self._mixture.source_of(i), w) for i, w in zip(indices, weights, strict=True)]

    def sums(self, of_processes: Callable[..., list[float]]) -> dict[str, tuple[float, float]]:
        """Losses and weights of each source, of all processes together."""
        if self._mixture is None:
            return {}
        names = [source.kind for source in self._mixture.sources]
        totals = [0.0] * (2 * len(names))
        for (source, weight), loss in zip(self._places, torch.cat(self._sums).tolist(), strict=True):
            totals[2 * source] += loss
            totals[2 * source + 1] += weight
        totals = of_processes(*totals)
        named = [name if names.count(name) == 1 else f"{name} {number}" for number, name in enumerate(names)]
        return {name: (totals[2 * source], totals[2 * source + 1]) for source, name in enumerate(named)}


class Metrics:
    """Adds steps up, and makes one record of those since the last one.

    Args:
        peak: FLOP/s of the device at best; None: not known, and no MFU.
    """

    def __init__(self, peak: float | None):
        self._peak = peak
        self._time = time.perf_counter()
        self._sums: list[StepSums] = []
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()  # loading the base is not the run's

    def add(self, sums: StepSums) -> None:
        """Count one step."""
        self._sums.append(sums)

    def record(self, step: int, learning_rate: float, grad_norm: float) -> dict[str, Any]:
        """The line of metrics.jsonl after a step: losses and speed are means over the steps since the last line.

        Args:
            step: from 1.
            learning_rate: of the first group.
            grad_norm: before clipping.

        Returns:
            Losses in nats per token, seconds of a step, bytes of memory.
        """
        now, sums = time.perf_counter(), self._sums
        seconds = now - self._time
        flops = sum(each.flops for each in sums)
        divergences = [each.divergence for each in sums if each.divergence is not None]
        record = {
            "step": step,
            "loss": _mean([each.loss for each in sums]),
            **({"losses": _mean_by_source(sums)} if sums[0].by_source else {}),
            **({"kl": _mean(divergences)} if divergences else {}),
            "learning_rate": learning_rate,
            "grad_norm": grad_norm,
            "tokens_per_second": round(sum(each.tokens for each in sums) / seconds, 1),
            "mfu": round(flops / seconds / self._peak, 4) if self._peak else None,
            "seconds": round(seconds / len(sums), 3),
            **_memory(),
        }
        self._time, self._sums = now, []
        return record


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _mean_by_source(sums: Sequence[StepSums]) -> dict[str, float]:
    """The mean loss of each source that had targets in these steps."""
    means = {}
    for name in sums[0].by_source:
        losses, weights = (sum(each.by_source[name][which] for each in sums) for which in (0, 1))
        if weights:
            means[name] = losses / weights
    return means


def flat(record: dict[str, Any]) -> dict[str, float]:
    """A record as loggers take it: "train/loss", and "train/loss of retrieval" for a source's."""
    values = {f"train/{key}": value for key, value in record.items() if key not in ("step", "losses", "mfu")}
    if record["mfu"] is not None:
        values["train/mfu"] = record["mfu"]
    return values | {f"train/loss of {name}": loss for name, loss in record.get("losses", {}).items()}


def _memory() -> dict[str, int]:
    """Highest memory so far, bytes: of the CUDA device where there is one, else of this process."""
    if torch.cuda.is_available():
        allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        return {"peak_memory_bytes": allocated, "reserved_memory_bytes": reserved}
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak_memory_bytes": used if sys.platform == "darwin" else used * 1024}


class TrainingProgress:
    """A bar over the optimizer steps with the latest loss; log records where the output is not a terminal.

    Args:
        done, steps: optimizer steps.
        is_main: whether this is the process that shows them.
    """

    def __init__(self, done: int, steps: int, is_main: bool):
        console = Console(stderr=True)
        self._logs = is_main and not console.is_terminal
        self._steps = steps
        self._bar = Progress(
            *progress_columns("steps, loss {task.fields[loss]}"),
            console=console,
            disable=not (is_main and is_progress_shown() and console.is_terminal),
        )
        self._task = self._bar.add_task("Training", total=steps, completed=done, loss="-")

    def __enter__(self) -> "TrainingProgress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, record: dict[str, Any]) -> None:
        """Move the bar to a record of metrics.jsonl."""
        step, loss = record["step"], f"{record['loss']:.4f}"
        self._bar.update(self._task, completed=step, loss=loss)
        if self._logs:
            _LOG.info("step %d/%d  loss %s", step, self._steps, loss)
