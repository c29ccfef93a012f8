"""The plan: a recipe that fits this device and the given hours, by the planner and two measured steps."""

import logging
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lengthen.errors import ContextError, Interrupted, LengthenError
from lengthen.extension.draft import draft
from lengthen.extension.fitting import memory_choices, memory_ended, not_readable, nothing_fits
from lengthen.extension.look import Look
from lengthen.extension.questions import MEASURING_SHARE, QuestionPlan, choose_questions
from lengthen.extension.request import ExtendRequest
from lengthen.planning import Device, Plan, plan
from lengthen.planning.flops import model_flops
from lengthen.planning.measure import model_shape
from lengthen.planning.reading_memory import ReadingMemory, reading_memory
from lengthen.progress import is_progress_shown, show_progress
from lengthen.recipe import Recipe
from lengthen.report.numbers import as_count
from lengthen.run_folder import RunFolder
from lengthen.training.run import train

__all__ = ["PROBE", "Planned", "make_plan", "plan_lines"]

PROBE = ".probe"
"""Run folder of the two measured steps, inside of the extension's own; it goes when they are taken."""

_LEAST_STEPS = 20  # fewer hardly teach
_SAVE_EVERY = 300  # seconds between checkpoints, about
_TOKENIZER_BYTES = 4 << 20
_GB = 1e9


@dataclass(frozen=True)
class Planned:
    """The plan, beside the recipe.

    Attributes:
        device: its name.
        steps: of the run.
        wanted_steps: that would suffice; more than `steps` where the hours are too few.
        seconds_per_step: measured, or by the planner for a device that is not this one.
        is_measured: which of these.
        training, measuring: seconds that these take, about; measuring of all sides.
        peak_bytes: of memory, by the planner: of a step, or of reading as many tokens as the target, which of them is
            more.
        disk_bytes: of the run folder, about.
        questions: what base and run are asked.
    """

    device: str
    steps: int
    wanted_steps: int
    seconds_per_step: float | None
    is_measured: bool
    training: float | None
    measuring: float | None
    peak_bytes: int
    disk_bytes: int
    questions: QuestionPlan

    @property
    def seconds(self) -> float | None:
        """Seconds of everything after the plan, about."""
        return None if self.training is None or self.measuring is None else self.training + self.measuring


def make_plan(
    request: ExtendRequest,
    looked: Look,
    documents: int,
    folder: Path,
    device: Device,
    measures: bool,
    say: Callable[[str], None] = lambda _text: None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[Recipe, Planned]:
    """Decide all that the request leaves open.

    Args:
        request: what was asked for.
        looked: what base and data are.
        documents: that can be measured on.
        folder: of the run.
        device: that it is planned for.
        measures: whether to take two steps, which only this machine's own device can.
        say: takes a line for people.
        stop: asked after each of the two steps.

    Returns:
        The recipe, and what else was decided.

    Raises:
        LengthenError: nothing fits the device, or the hours.
        Interrupted: Ctrl-C or SIGTERM while the steps were taken, or `stop`.
    """
    given: dict[str, Any] = {
        "out": str(folder),
        "context.method": looked.method,
        "data.held_out": list(looked.held_out),
    }
    refusal: ContextError | None = None
    for changes in memory_choices(request, device):
        recipe = draft(request, looked.config, given | changes)
        found = plan(recipe, device)
        reading = reading_memory(model_shape(looked.config, recipe.adapter), recipe.quantize, found.dtype, device)
        if reading.peak(request.to) > device.memory:  # it could be trained, and never read
            refusal = not_readable(looked, recipe, device, reading)
            continue
        if not found.fits:
            refusal = nothing_fits(looked, device, found)
            continue
        try:
            seconds = _probe(recipe, folder, say, stop) if measures else found.seconds_per_step
        except torch.OutOfMemoryError:
            say("the planner was wrong: these two steps did not fit the memory; taking settings that need less")
            refusal = memory_ended(looked, recipe, device)
            continue
        questions, steps = _share_hours(request, looked, documents, recipe, found, seconds)
        given |= {**changes, "training.steps": steps}
        if seconds:
            given["training.save_every"] = min(100, max(1, round(_SAVE_EVERY / seconds)))
        final = draft(request, looked.config, given)
        return final, _planned(recipe, final, found, reading, seconds, measures, questions)
    assert refusal is not None
    raise refusal


def _probe(recipe: Recipe, folder: Path, say: Callable[[str], None], stop: Callable[[], bool]) -> float:
    """Seconds of a step: of the second of two, as the first one warms up."""
    say("taking two steps, to measure the time of one")
    probe = folder / PROBE
    shutil.rmtree(probe, ignore_errors=True)
    training = recipe.training.model_copy(update={"steps": 2, "warmup_steps": 1, "log_every": 1})
    try:
        with _silence():
            train(recipe.model_copy(update={"out": str(probe), "training": training}), stop=stop)
        return float(RunFolder(probe).read_metrics()[-1]["seconds"])
    except Interrupted as interruption:  # whose message is about checkpoints, which go
        raise Interrupted("stopped while taking two steps", interruption.signal) from interruption
    finally:
        shutil.rmtree(probe, ignore_errors=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@contextmanager
def _silence() -> Iterator[None]:
    """Silence two measured steps: the run will report the same again."""
    logger, shown = logging.getLogger("lengthen"), is_progress_shown()
    level = logger.level
    logger.setLevel(logging.ERROR)
    show_progress(False)
    try:
        yield
    finally:
        logger.setLevel(level)
        show_progress(shown)


def _share_hours(
    request: ExtendRequest, looked: Look, documents: int, recipe: Recipe, found: Plan, seconds: float | None
) -> tuple[QuestionPlan, int]:
    """The questions and the steps that the hours have room for.

    Raises:
        LengthenError: not for one step.
    """
    shape = model_shape(looked.config, recipe.adapter)

    def reading(lengths: Sequence[int]) -> float:
        """Seconds of a forward pass over texts of these lengths: half of the operations of a step, at its speed."""
        flops = model_flops(shape, recipe, lengths, full_attention=True) / 2
        return 0.0 if seconds is None else flops / (found.flops.total / seconds)

    questions = choose_questions(looked.context, request.to, request.hours, documents, reading)
    measuring = questions.sides * questions.seconds
    wanted = recipe.training.steps
    assert wanted is not None  # a mixture has no epochs
    if seconds is None or any(override.startswith("training.steps=") for override in request.overrides):
        return questions, wanted
    room = int((request.hours * 3600 - measuring) / seconds)
    if room < 1:
        least, enough = (_hours_for(steps * seconds, measuring) for steps in (_LEAST_STEPS, wanted))
        raise LengthenError(
            f"{request.hours:g} hours are too few for one step: measuring takes about {as_time(measuring)} and a step "
            f"{as_time(seconds)}; give at least {least:.2f} hours for {_LEAST_STEPS} steps, {enough:.2f} for the "
            f"{wanted} that suffice"
        )
    return questions, min(wanted, room)


def _hours_for(training: float, measuring: float) -> float:
    """Hours that suffice for so many seconds of both, rounded up; more of them would buy more questions first."""
    return math.ceil(max(measuring + training, training / (1 - MEASURING_SHARE)) / 36) / 100


def _planned(
    draft: Recipe,
    final: Recipe,
    found: Plan,
    reading: ReadingMemory,
    seconds: float | None,
    is_measured: bool,
    questions: QuestionPlan,
) -> Planned:
    steps, wanted = final.training.steps, draft.training.steps
    assert steps is not None
    assert wanted is not None
    return Planned(
        device=found.device.name,
        steps=steps,
        wanted_steps=wanted,
        seconds_per_step=seconds,
        is_measured=is_measured,
        training=None if seconds is None else steps * seconds,
        measuring=None if seconds is None else questions.sides * questions.seconds,
        peak_bytes=max(found.peak_bytes, reading.peak(final.context.target)),
        # The adapter, and two checkpoints of it with the optimizer's two moments, all float32; and the tokenizer.
        disk_bytes=found.trained * 4 * (1 + 2 * 3) + _TOKENIZER_BYTES,
        questions=questions,
    )


def plan_lines(recipe: Recipe, planned: Planned) -> list[str]:
    """The plan for people: what is trained how, time, memory and disk.

    Args:
        recipe: of the run.
        planned: what else was decided.
    """
    data = recipe.data
    how = "positions that jump" if recipe.is_skip_wise else "whole sequences"
    attention = "full attention" if recipe.attention.kind == "full" else f"S2 in groups of {recipe.group_size:,}"
    shares = ", ".join(f"{source.weight or 1:.0%} {source.kind}" for source in data.sources)
    adapter = f"LoRA r={recipe.adapter.rank}" if recipe.adapter.kind == "lora" else recipe.adapter.kind
    memory = f"memory {recipe.memory.preset}{', 4-bit base' if recipe.quantize else ''}"
    training = recipe.training
    per_step = recipe.sequence_length * training.batch_size * training.accumulation
    lines = [
        f"method: {recipe.context.method} to {recipe.context.target:,} tokens, {adapter} on {recipe.adapter.targets}, "
        f"{attention}, {memory}",
        f"training: {planned.steps:,} steps of {per_step:,} tokens at {training.learning_rate:g} ({shares}), sequences "
        f"of {recipe.sequence_length:,}, {how}",
    ]
    questions = planned.questions
    asked = ", ".join(f"{n} x {length:,}" for length, n in zip(questions.lengths, questions.trials, strict=True))
    lines.append(f"measuring: {asked} tokens with 5 questions each; {as_count(questions.documents, 'document')}")
    time = "time: not known for this device"
    if planned.seconds_per_step is not None and planned.seconds is not None:
        source = "measured" if planned.is_measured else "by the planner"
        time = (
            f"time: {as_time(planned.seconds)} ({as_time(planned.training or 0)} training at "
            f"{planned.seconds_per_step:.1f} s a step, {source}; {as_time(planned.measuring or 0)} measuring)"
        )
    lines.append(
        f"{time}; memory {planned.peak_bytes / _GB:.1f} GB on {planned.device}; disk {planned.disk_bytes / 1e6:.0f} MB"
    )
    if planned.steps < min(_LEAST_STEPS, planned.wanted_steps):
        lines.append(f"warning: {planned.steps} steps hardly teach; {planned.wanted_steps} suffice, with more hours")
    elif planned.steps < planned.wanted_steps:
        lines.append(f"note: {planned.wanted_steps} steps would be better, with more hours")
    return lines


def as_time(seconds: float) -> str:
    """Seconds as people say them: "40 s", "35 min", "2.5 h"."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5970 else f"{seconds / 3600:.1f} h"
