"""Settings that need less and less memory, and the refusals of what does not fit a device with any of them."""

import importlib.util
from collections.abc import Iterator
from typing import Any

from lengthen.errors import ContextError
from lengthen.extension.look import Look
from lengthen.extension.request import ExtendRequest
from lengthen.planning import Device, Plan
from lengthen.planning.reading_memory import ReadingMemory
from lengthen.recipe import Recipe

__all__ = ["memory_choices", "memory_ended", "not_readable", "nothing_fits"]

_SHORTER = (2048, 1024)  # sequence lengths to try where the draft's does not fit, tokens
_GB = 1e9


def memory_choices(request: ExtendRequest, device: Device) -> Iterator[dict[str, Any]]:
    """Overrides that need less and less memory, fastest first; keys that the request sets itself stay.

    Args:
        request: what was asked for.
        device: that it is planned for.
    """
    own = {override.partition("=")[0] for override in request.overrides}
    has_memory = any(key.startswith("memory.") for key in own)
    presets: list[dict[str, Any]] = (
        [{}] if has_memory else [{"memory.preset": preset} for preset in ("fast", "balanced", "low_memory")]
    )
    quantized: list[dict[str, Any]] = [{}]
    if "quantize" not in own and device.kind in ("cuda", "cpu") and importlib.util.find_spec("bitsandbytes"):
        quantized.append({"quantize": "nf4"})
    yield from (preset | bits for bits in quantized for preset in presets)
    if "data.sequence_length" not in own:
        yield from ({"data.sequence_length": length, "data.skip_wise": True} | presets[-1] | quantized[-1]
                    for length in _SHORTER if length < request.to)  # fmt: skip


def not_readable(looked: Look, recipe: Recipe, device: Device, reading: ReadingMemory) -> ContextError:
    """The refusal of a target whose keys and values have no room: it could be trained, and never read.

    Args:
        looked: the base.
        recipe: with the settings that need least.
        device: that it is planned for.
        reading: bytes that it takes.
    """
    target = recipe.context.target
    smaller = "" if recipe.quantize else "quantize=nf4, with bitsandbytes, takes less for the weights; "
    return ContextError(
        f"{target:,} tokens can't be read by {looked.source.id} on {device.name}: their keys and values take "
        f"{reading.cache(target) / _GB:.1f} GB beside {reading.weights / _GB:.1f} of weights"
        f"{' in 4 bits' if recipe.quantize else ''} and {reading.working / _GB:.1f} to compute with, and it has "
        f"{device.memory / _GB:.1f}; the longest that can is {reading.longest(device.memory):,}; {smaller}a device "
        "with more memory reads more"
    )


def nothing_fits(looked: Look, device: Device, found: Plan) -> ContextError:
    """The refusal of a base that can't be trained, with what would fit.

    Args:
        looked: the base.
        device: that it is planned for.
        found: the plan with the settings that need least.
    """
    how = "; or ".join(f"{' '.join(each.overrides)} ({each.why})" for each in found.advice[:3])
    fits = f"the longest context that fits is {found.max_context:,} tokens" if found.max_context else "none fits"
    return ContextError(
        f"{looked.source.id} can't be extended to {found.context:,} tokens on {device.name}: with the settings that "
        f"need least, a step takes {found.peak_bytes / _GB:.1f} GB, and it has {device.memory / _GB:.1f}; {fits}"
        f"{f'; it would fit with {how}' if how else ''}"
    )


def memory_ended(looked: Look, recipe: Recipe, device: Device) -> ContextError:
    """The refusal of a base that fits by the plan, and did not in a measured step.

    Args:
        looked: the base.
        recipe: with the settings that need least.
        device: that it is planned for.
    """
    return ContextError(
        f"{looked.source.id} can't be extended to {recipe.context.target:,} tokens on {device.name}: its memory ended "
        "in a measured step with the settings that need least; end other programs on it, or take a larger one"
    )
