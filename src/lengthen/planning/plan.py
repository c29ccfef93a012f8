"""A plan: does a recipe fit a device, how long does it take, and what would have to change."""

import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from lengthen.planning.base import base_facts
from lengthen.planning.changes import cheapest_first
from lengthen.planning.checks import check_base, check_devices
from lengthen.planning.devices import WIDTHS, Device, find_device
from lengthen.planning.flops import Flops, flops_of
from lengthen.planning.memory import Memory, memory_of
from lengthen.planning.shape import ModelShape
from lengthen.planning.traffic import Traffic, sequence_traffic
from lengthen.recipe import Recipe, parse_recipe

__all__ = ["Advice", "Plan", "plan"]

STEP = 1024
"""Tokens; the longest context is found to this."""

_LONGEST = 1 << 24


@dataclass(frozen=True)
class Advice:
    """A change under which the recipe fits, checked by planning again.

    Attributes:
        overrides: what to add to the command, `section.key=value` each.
        why: what it costs.
        peak_bytes: on each device.
        seconds_per_step: None where the device's speed is not known.
    """

    overrides: tuple[str, ...]
    why: str
    peak_bytes: int
    seconds_per_step: float | None


@dataclass(frozen=True)
class Plan:
    """The time and memory that a recipe needs on each of some devices.

    Attributes:
        device: what it is planned for; `devices` of them.
        dtype: of the arithmetic.
        parameters, trained: of the base, and what the recipe trains.
        fits: whether the peak is within the device's memory.
        memory: bytes on each device.
        max_context: the longest context target that fits, in whole 1,024 tokens; 0 for none; None where memory does not
            depend on it, as with skip-wise sequences.
        flops: of one optimizer step on one device.
        efficiency: share of the device's peak that the times assume, over all operations.
        is_measured: whether that is what was measured on this device.
        seconds_per_step: None where the device's speed is not known; what is sent is not counted.
        traffic: bytes that a device sends in a step to those that share its sequences, by kind.
        steps: of the run; None where the recipe counts epochs.
        advice: for a recipe that does not fit, cheapest first.
    """

    device: Device
    devices: int
    context: int
    sequence_length: int
    dtype: str
    parameters: int
    trained: int
    fits: bool
    memory: Memory
    max_context: int | None
    flops: Flops
    efficiency: float
    is_measured: bool
    seconds_per_step: float | None
    traffic: Traffic
    steps: int | None
    advice: tuple[Advice, ...] = ()

    @property
    def peak_bytes(self) -> int:
        """Bytes on each device at the peak of a step."""
        return self.memory.peak

    @property
    def seconds(self) -> float | None:
        """Seconds of the whole run."""
        return None if self.seconds_per_step is None or self.steps is None else self.seconds_per_step * self.steps

    def to_json(self) -> dict[str, Any]:
        """Everything, in bytes, tokens, seconds and FLOPs."""
        return {
            "device": self.device.name,
            "devices": self.devices,
            "fits": self.fits,
            "peak_bytes": self.peak_bytes,
            "device_bytes": self.device.memory,
            "host_bytes": self.memory.host,
            "breakdown": self.memory.breakdown,
            "moment": self.memory.moment,
            "context": self.context,
            "sequence_length": self.sequence_length,
            "max_context": self.max_context,
            "parameters": self.parameters,
            "trained_parameters": self.trained,
            "dtype": self.dtype,
            "flops": {**asdict(self.flops), "total": self.flops.total},
            "efficiency": self.efficiency,
            "efficiency_is_measured": self.is_measured,
            "seconds_per_step": self.seconds_per_step,
            "sequence_traffic_bytes": {**asdict(self.traffic), "total": self.traffic.total},
            "steps": self.steps,
            "seconds": self.seconds,
            "advice": [asdict(each) for each in self.advice],
        }


def plan(
    recipe: Recipe,
    device: Device | str,
    devices: int = 1,
    *,
    efficiency: float | None = None,
    unfused_loss: bool = False,
) -> Plan:
    """Plan a run from its base's config; no weights are needed.

    Args:
        recipe: the run.
        device: or its name.
        devices: how many share the work, as the recipe's `parallel` says.
        efficiency: share of the device's peak speed that training reaches; default the device's own.
        unfused_loss: plan for a loss that computes all logits at once, as the papers' code did.

    Raises:
        LengthenError: an unknown device, a base whose config is not at hand, without RoPE or with an architecture that
            can't be built, or settings that don't belong together, as a run would refuse them.
    """
    device = find_device(device) if isinstance(device, str) else device
    check_devices(recipe, device, devices, efficiency)
    if device.kind == "cpu":  # its processes share the memory and the cores
        device = replace(
            device,
            memory=device.memory // devices,
            peak_16=device.peak_16 and device.peak_16 / devices,
            peak_32=device.peak_32 and device.peak_32 / devices,
        )
    base = base_facts(recipe)
    check_base(recipe, base.shape)
    for text in base.warnings:
        warnings.warn(text, stacklevel=2)
    if efficiency is not None:
        device = replace(device, efficiency=efficiency, attention_efficiency=None, fused_efficiency=None)
    planner = _Planner(recipe, device, devices, unfused_loss)
    found = planner.plan(recipe)
    found = replace(found, max_context=planner.longest(recipe))
    if not found.fits:
        found = replace(found, advice=tuple(planner.advice(recipe, found, base.context)))
    return found


class _Planner:
    """Plans of one run, and of changes to it, on one kind of device."""

    def __init__(self, recipe: Recipe, device: Device, devices: int, unfused_loss: bool) -> None:
        self._recipe, self._device, self._devices = recipe, device, devices
        self._unfused_loss = unfused_loss
        self._shapes: dict[str, ModelShape] = {}

    def plan(self, recipe: Recipe) -> Plan:
        shape, dtype, memory = self._shape(recipe), self._dtype(recipe), self._memory(recipe)
        flops = flops_of(shape, recipe)
        peak, weights = self._device.peak(dtype), self._device.efficiency
        if recipe.memory.fused_kernels:
            weights = self._device.fused_efficiency or weights
        # Operations that the device could compute at its peak in the time of the step.
        work = flops.linear / weights + flops.attention / (self._device.attention_efficiency or weights)
        return Plan(
            device=self._device,
            devices=self._devices,
            context=recipe.context.target,
            sequence_length=recipe.sequence_length,
            dtype=dtype,
            parameters=shape.parameters,
            trained=shape.trained,
            fits=memory.peak <= self._device.memory,
            memory=memory,
            max_context=0,
            flops=flops,
            efficiency=flops.total / work,
            is_measured=self._device.attention_efficiency is not None,
            seconds_per_step=None if peak is None else work / peak,
            traffic=sequence_traffic(shape, recipe, WIDTHS[dtype]),
            steps=recipe.training.steps,
        )

    def longest(self, recipe: Recipe) -> int | None:
        """The longest context target that fits, sequences as long as it; memory grows with it, so halving finds it.

        Skip-wise sequences have a length of their own: any target fits then, or none.
        """
        if recipe.is_skip_wise:
            return None if self._fits(recipe) else 0
        below, above = 0, _LONGEST // STEP + 1
        while above - below > 1:
            middle = (below + above) // 2
            fits = self._fits(_with_context(recipe, middle * STEP))
            below, above = (middle, above) if fits else (below, middle)
        found = below * STEP
        shortest = recipe.parallel.sequence * _with_context(recipe, found).shard_step  # that so many can share
        return found if found >= shortest else 0

    def advice(self, recipe: Recipe, found: Plan, context: int) -> Iterator[Advice]:
        """Single changes that make it fit; where none does, the fewest together, cheapest first."""
        start: dict[str, Any] = {}
        if self._devices == 1 and recipe.parallel.data in ("zero2", "zero3", "fsdp2"):
            start = {"parallel": "ddp"}  # there is nobody to share with, and a run would say so
        changes = [
            ({**start, **overrides}, why)
            for overrides, why in cheapest_first(_changed(recipe, start), self._device, self._devices)
        ]
        if found.max_context and found.max_context > context:
            changes.append((_shorter(recipe, found.max_context), "the longest context that fits"))
        alone = [each for each in changes if self._fits(_changed(recipe, each[0]))]
        if alone:
            for overrides, why in alone:
                yield self._advise(recipe, overrides, why)
            return
        together: dict[str, Any] = {}
        whys: list[str] = []
        for overrides, why in changes:
            together = _unsharded_if_packed(together | overrides)
            whys.append(why)
            if self._fits(_changed(recipe, together)):
                yield self._advise(recipe, together, "; ".join(whys))
                return
        longest = self.longest(_changed(recipe, together))
        if longest and longest > context:
            yield self._advise(recipe, together | _shorter(recipe, longest), "; ".join([*whys, "less context"]))

    def _advise(self, recipe: Recipe, overrides: dict[str, Any], why: str) -> Advice:
        again = self.plan(_changed(recipe, overrides))
        assert again.fits
        texts = tuple(f"{key}={'null' if value is None else str(value).lower()}" for key, value in overrides.items())
        return Advice(texts, why, again.peak_bytes, again.seconds_per_step)

    def _fits(self, recipe: Recipe) -> bool:
        return self._memory(recipe).peak <= self._device.memory

    def _memory(self, recipe: Recipe) -> Memory:
        shape, dtype = self._shape(recipe), self._dtype(recipe)
        return memory_of(shape, recipe, self._device, self._devices, dtype, unfused_loss=self._unfused_loss)

    def _shape(self, recipe: Recipe) -> ModelShape:
        """Sizes change with the adapter alone, and not with a context that is tried."""
        key = recipe.adapter.model_dump_json()
        if key not in self._shapes:
            self._shapes[key] = base_facts(self._recipe.model_copy(update={"adapter": recipe.adapter})).shape
        return self._shapes[key]

    def _dtype(self, recipe: Recipe) -> str:
        if recipe.training.dtype == "auto":
            return self._device.nf4_dtype if recipe.quantize else self._device.auto_dtype
        return recipe.training.dtype


def _unsharded_if_packed(overrides: dict[str, Any]) -> dict[str, Any]:
    """4-bit weights can't be sharded: what would share them out shares gradients and optimizer only."""
    kind = overrides.get("parallel", "")
    if "quantize" in overrides and kind.startswith(("zero3", "fsdp2")):
        return overrides | {"parallel": kind.replace("zero3", "zero2").replace("fsdp2", "zero2")}
    return overrides


def _with_context(recipe: Recipe, tokens: int) -> Recipe:
    """The recipe for another target; sequences are as long as it, and a given group stays."""
    data = recipe.data.model_copy(update={"sequence_length": None})
    context = recipe.context.model_copy(update={"target": tokens})
    changed = recipe.model_copy(update={"context": context, "data": data})
    chunk = {"sequence_chunk": _whole_groups(changed)}
    return changed.model_copy(update={"memory": recipe.memory.model_copy(update=chunk)})


def _whole_groups(recipe: Recipe) -> int:
    """The chunk of a recipe, made whole groups: these can grow with the target."""
    return -(-recipe.memory.sequence_chunk // recipe.group_size) * recipe.group_size


def _shorter(recipe: Recipe, tokens: int) -> dict[str, Any]:
    """Overrides for another target, sequences as long as it."""
    overrides = {"context.target": tokens} | ({"data.sequence_length": None} if recipe.data.sequence_length else {})
    chunk = _with_context(recipe, tokens).memory.sequence_chunk
    return overrides | ({} if chunk == recipe.memory.sequence_chunk else {"memory.sequence_chunk": chunk})


def _changed(recipe: Recipe, overrides: dict[str, Any]) -> Recipe:
    content = recipe.model_dump()
    for path, value in overrides.items():
        *sections, last = path.split(".")
        place = content
        for section in sections:
            place = place[section]
        place[last] = value
    return parse_recipe(content, "with changes")
