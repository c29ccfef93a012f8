"""What a plan refuses before it counts anything, as a run would refuse it."""

from lengthen.errors import LengthenError, ModelError, RecipeError
from lengthen.planning.devices import Device
from lengthen.planning.shape import ModelShape
from lengthen.recipe import Recipe, check_heads

__all__ = ["check_base", "check_devices"]


def check_devices(recipe: Recipe, device: Device, devices: int, efficiency: float | None) -> None:
    """Refuse what is out of range, or what the devices can't do.

    Args:
        recipe: the run.
        device: what it is planned for.
        devices: how many there are.
        efficiency: share of the peak speed; None for the device's own.

    Raises:
        LengthenError: with what to change.
    """
    if devices < 1:
        raise LengthenError(f"`devices={devices}` is too low; give at least 1")
    if efficiency is not None and not 0 < efficiency <= 1:
        raise LengthenError(f"`efficiency={efficiency:g}` is no share; give one of the peak, above 0 and at most 1")
    if recipe.training.optimizer.startswith("paged") and device.kind != "cuda":
        raise RecipeError(
            f"training.optimizer={recipe.training.optimizer} needs CUDA, which {device.name} has not; choose adamw"
        )
    share = recipe.parallel.sequence
    if devices % share:
        raise RecipeError(f"parallel.sequence={share} wants a multiple of {share} devices, not `devices={devices}`")


def check_base(recipe: Recipe, shape: ModelShape) -> None:
    """Refuse a base that a run would refuse, as far as sizes tell.

    Args:
        recipe: the run.
        shape: of its base.

    Raises:
        ModelError: S2, or shards or chunks of sequences, can't be had with its layers.
    """
    _check_s2(recipe, shape)
    _check_parts(recipe, shape)


def _check_s2(recipe: Recipe, shape: ModelShape) -> None:
    attending = [layer for layer in shape.layers if layer.heads]
    if recipe.attention.kind != "s2" or not attending:
        return
    if any(layer.score_copies for layer in attending):
        raise ModelError(
            f"the attention of {recipe.model} has capped scores or learned sinks, which S2 can't do exactly; set "
            "attention.kind=full"
        )
    if all(layer.window is not None for layer in attending):
        raise ModelError(
            f"every attention layer of {recipe.model} has a window of its own, so S2 has none; set attention.kind=full"
        )


def _check_parts(recipe: Recipe, shape: ModelShape) -> None:
    for layer in shape.layers:
        check_heads(recipe, layer.heads, layer.kv_heads)
    by_shards = recipe.parallel.sequence > 1
    if not by_shards and not recipe.memory.sequence_chunk:
        return
    otherwise = "parallel.sequence=1" if by_shards else "memory.sequence_chunk=0"
    if any(layer.window is not None or not layer.heads for layer in shape.layers):
        raise ModelError(
            f"{recipe.model} has layers without attention or with a window of their own, which can't be computed by "
            f"parts of a sequence; set {otherwise}"
        )
