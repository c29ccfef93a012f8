"""Conditions between keys of a recipe."""

from lengthen.errors import RecipeError
from lengthen.recipe.schema import Recipe

__all__ = ["check_documents", "check_shardable"]


def check_documents(recipe: Recipe) -> None:
    """Refuse a recipe that leaves its documents to whoever trains, where none are given.

    Args:
        recipe: of the run.

    Raises:
        RecipeError: `data.train` is empty.
    """
    if not recipe.data.train:
        raise RecipeError("data.train is empty; name files or folders of long documents, as in data.train=books/")


def check_shardable(recipe: Recipe) -> None:
    """Refuse a recipe whose `parallel` can't be had, wherever and however it is started.

    Args:
        recipe: of the run.

    Raises:
        RecipeError: an optimiser, adapter or 4-bit base that can't be sharded.
    """
    kind = recipe.parallel
    if kind == "ddp":
        return
    if recipe.quantize and kind not in ("zero2", "zero2_offload"):
        raise RecipeError(
            f"parallel={kind} shards the base's weights, and packed 4-bit weights can't be sharded; set parallel=zero2 "
            "or ddp, or quantize=null"
        )
    if recipe.training.optimizer != "adamw":
        raise RecipeError(
            f"training.optimizer={recipe.training.optimizer} keeps states that parallel={kind} can't shard; set "
            "training.optimizer=adamw or parallel=ddp"
        )
    if recipe.adapter.kind not in ("lora", "full"):
        raise RecipeError(
            f"parallel={kind} is for adapter.kind lora and full, not {recipe.adapter.kind}; set parallel=ddp"
        )
