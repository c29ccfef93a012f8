"""The facts about a base from its config: the slow half of `planning/base.py`."""

import warnings

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from lengthen.context import base_context, extend, settle_context
from lengthen.errors import ModelError
from lengthen.models.load import load_config, quiet_transformers
from lengthen.models.resolve import is_here, resolve_model
from lengthen.planning.measure import model_shape
from lengthen.planning.shape import Base
from lengthen.quantization import check_not_quantized
from lengthen.recipe import Recipe
from lengthen.upstream import reading

__all__ = ["config_of", "examine"]


def examine(recipe: Recipe) -> Base:
    """Check that the base of a recipe suits it, and measure it.

    Raises:
        LengthenError: as `planning.base.base_facts`.
    """
    config = config_of(recipe)
    check_not_quantized(config)
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", category=UserWarning)
        extend(config, **recipe.context.scaling)
    texts = tuple(str(warning.message) for warning in caught)
    return Base(base_context(config), model_shape(config, recipe.adapter), texts)


def config_of(recipe: Recipe) -> PreTrainedConfig:
    """The base's config: its own where the base is on this machine, else `base_config`, else the hub's config.json.

    Raises:
        ModelError: none of these, or a `base_config` that transformers can't read.
    """
    if recipe.base_config is not None and not is_here(recipe.model):
        fields = dict(recipe.base_config)
        kind = fields.pop("model_type", None)
        if kind not in CONFIG_MAPPING:
            raise ModelError(
                f"base_config.model_type is {kind!r}, which transformers does not know; copy it from config.json"
            )
        with reading(kind, "base_config is no config of a {name} model: {error}"), quiet_transformers():
            return settle_context(AutoConfig.for_model(kind, **fields), recipe.context.base)
    try:
        return load_config(resolve_model(recipe.model), recipe.context.base)
    except ModelError as error:
        raise ModelError(
            f"{error}; for a plan without the base, write the fields of its config.json into the recipe as base_config"
        ) from error
