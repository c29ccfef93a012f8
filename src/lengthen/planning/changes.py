"""Changes of a recipe that save memory: overrides, each with its price, the cheapest first."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

from lengthen.planning.devices import Device
from lengthen.recipe import Recipe

__all__ = ["cheapest_first"]

_Change = tuple[dict[str, Any], str]  # overrides, and what they cost


def cheapest_first(recipe: Recipe, device: Device, devices: int) -> Iterator[_Change]:
    """All single changes that a recipe leaves open.

    Args:
        recipe: the run.
        device: what it runs on.
        devices: how many share the work.

    Returns:
        Overrides by their keys, and what they cost.
    """
    can_share = _can_share(recipe, device, devices)
    return chain(
        _fewer_sequences(recipe),
        _shards(recipe) if can_share else (),
        _activations(recipe, device),
        _states_on_the_cpu(recipe, device, can_share),
        _smaller_weights(recipe),
    )


def _can_share(recipe: Recipe, device: Device, devices: int) -> bool:
    """Whether ZeRO is for this run.

    It gathers weights by hooks that chunks don't call, and does not know shards of sequences.
    """
    return (
        devices > 1
        and device.kind == "cuda"
        and recipe.training.optimizer == "adamw"
        and recipe.adapter.kind in ("lora", "full")
        and not recipe.memory.sequence_chunk
        and recipe.parallel.sequence == 1
    )


def _fewer_sequences(recipe: Recipe) -> Iterator[_Change]:
    training = recipe.training
    if training.batch_size > 1:
        less = {"training.batch_size": 1, "training.accumulation": training.accumulation * training.batch_size}
        yield less, "one sequence at a time, as many per step"


def _shards(recipe: Recipe) -> Iterator[_Change]:
    if recipe.parallel.data == "ddp":
        yield {"parallel": "zero2"}, "the devices share gradients and optimizer; more traffic between them"
    if recipe.parallel.data in ("ddp", "zero2") and recipe.quantize is None:
        yield {"parallel": "zero3"}, "the devices share weights too; more traffic between them"


def _activations(recipe: Recipe, device: Device) -> Iterator[_Change]:
    memory = recipe.memory
    if not memory.activation_checkpointing and not memory.sequence_chunk:
        yield {"memory.activation_checkpointing": "keep_attention"}, "layers but their attention computed twice"
    if not memory.mlp_tile:
        yield {"memory.mlp_tile": 2048}, "MLPs in tiles, computed once more"
    if memory.activation_checkpointing is not True and not memory.sequence_chunk:
        yield {"memory.activation_checkpointing": True}, "layers computed twice"
    if device.kind != "cpu" and not memory.offload_activations:
        recomputing = {} if memory.sequence_chunk else {"activation_checkpointing": True}
        least = {**recomputing, "mlp_tile": memory.mlp_tile or 2048, "offload_activations": True}
        changed = {f"memory.{key}": value for key, value in least.items() if getattr(memory, key) != value}
        yield changed, "layers' inputs wait in CPU memory"


def _states_on_the_cpu(recipe: Recipe, device: Device, can_share: bool) -> Iterator[_Change]:
    is_adamw, kind = recipe.training.optimizer == "adamw", recipe.parallel.data
    if can_share and not kind.endswith("_offload"):
        if recipe.quantize:
            yield {"parallel": "zero2_offload"}, "the optimizer on the CPU: slow steps"
        else:
            yield {"parallel": "zero3_offload"}, "weights and optimizer in CPU memory: slow steps"
    elif device.kind == "cuda" and is_adamw and kind == "ddp":
        yield {"training.optimizer": "paged_adamw_32bit"}, "the optimizer's states move to CPU memory when needed"


def _smaller_weights(recipe: Recipe) -> Iterator[_Change]:
    adapter, parallel = recipe.adapter, recipe.parallel
    if recipe.quantize is None and adapter.kind == "lora" and adapter.variant != "pissa":
        unsharded: dict[str, Any] = {}
        if parallel.data not in ("ddp", "zero2", "zero2_offload"):  # 4-bit weights can't be sharded
            unsharded = {"parallel": "ddp" if recipe.memory.sequence_chunk else "zero2"}
            if parallel.sequence > 1:
                unsharded = {"parallel.data": "ddp"}
        yield {"quantize": "nf4", **unsharded}, "the base in 4 bits: slower products, a little less exact"
    if adapter.kind == "full":
        yield {"adapter.kind": "lora"}, "LoRA, embeddings and norms instead of all weights"
