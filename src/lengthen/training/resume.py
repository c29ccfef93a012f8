"""The recipes with which a run can go on: its own, or one with another length, interval or logger."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lengthen.errors import RecipeError
from lengthen.recipe import Recipe

__all__ = ["check_recipe"]

# Keys that change no step that was taken, nor one that would have been.
_FREE = {"out", "training.save_every", "training.log_every", "training.report_to"}
_LENGTHS = {"training.steps", "training.epochs"}


def check_recipe(run: Path, recipe: Recipe, earlier: Recipe) -> bool:
    """Check that a run can go on with this recipe.

    Args:
        run: its folder, for messages.
        recipe: the new one.
        earlier: the one that the folder was begun with.

    Returns:
        Whether the run is to be longer than it was.

    Raises:
        RecipeError: something else is different, or the run's steps are and what was done so far depends on them.
    """
    changes = dict(_differences(recipe.model_dump(), earlier.model_dump()))
    other = sorted(changes.keys() - _FREE - _LENGTHS)
    if other:
        raise RecipeError(
            f"{run} was started with another recipe (different: {', '.join(other)}); choose another out. Only "
            f"{', '.join(sorted(_LENGTHS | _FREE))} may change"
        )
    lengths = changes.keys() & _LENGTHS
    for name in sorted(lengths):
        now, before = changes[name]
        if now is None or before is None or now < before:
            raise RecipeError(f"{run} was started with {name} {before}, and can only go on with more, not with {now}")
    if lengths and (recipe.data.is_mixture or recipe.attention.full_last):
        reason = "sources are mixed" if recipe.data.is_mixture else "attention.full_last is a share"
        raise RecipeError(
            f"{run} can't be made longer: its {reason} over all steps of a run; choose another out, or leave "
            f"{', '.join(sorted(lengths))} as it was"
        )
    return bool(lengths)


def _differences(
    ours: dict[str, Any], theirs: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """The dotted names of what differs, with both values."""
    for key in ours:
        if isinstance(ours[key], dict) and isinstance(theirs[key], dict):
            yield from _differences(ours[key], theirs[key], f"{prefix}{key}.")
        elif ours[key] != theirs[key]:
            yield prefix + key, (ours[key], theirs[key])
