"""The facts about a base that a plan needs, found out once.

That takes seconds of imports (`planning/examine.py`). It follows from text: the base's config files, the recipe and the
code. So it is kept in the cache, and the next plan imports neither torch nor transformers.
"""

import json
from contextlib import suppress
from pathlib import Path

from lengthen.models.resolve import is_here, resolve_model
from lengthen.planning.cache import remembered
from lengthen.planning.shape import Base
from lengthen.recipe import Recipe

__all__ = ["base_facts"]


def base_facts(recipe: Recipe) -> Base:
    """The base of a recipe, from the cache where it was found out before.

    Raises:
        LengthenError: its config is not at hand, it has no RoPE or can't be built, or the recipe's context or adapter
            does not suit it.
    """

    def examine() -> Base:
        from lengthen.planning.examine import examine

        return examine(recipe)

    content = _content(recipe)
    inputs = [recipe.context.model_dump_json(), recipe.adapter.model_dump_json()]
    return examine() if content is None else remembered(Base, [content, *inputs], examine)


def _content(recipe: Recipe) -> str | None:
    """The text that a base's config follows from; None where only looking tells."""
    if not is_here(recipe.model):
        return None if recipe.base_config is None else json.dumps(recipe.base_config, sort_keys=True)
    source = resolve_model(recipe.model)
    folder = Path(source.location)
    with suppress(OSError):  # which the examination then names
        if source.gguf:
            found = (folder / source.gguf).stat()
            return f"{folder / source.gguf} {found.st_size} {found.st_mtime_ns}"
        files = sorted([*folder.glob("config*.json"), *folder.glob("tokenizer_config.json")])
        return "\0".join([str(folder), *(file.read_text(encoding="utf-8", errors="replace") for file in files)])
    return None
