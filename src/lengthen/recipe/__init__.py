"""The recipe: everything that decides a run, as one frozen, strict, typed object.

A recipe is a YAML file, the name of a shipped one (`lengthen recipes`), or built in Python.
"""

from lengthen.recipe.data import DataRecipe, SourceRecipe
from lengthen.recipe.load import apply_overrides, load_recipe, parse_recipe, shipped_recipes
from lengthen.recipe.rules import PROMPT_KINDS, check_documents, check_heads
from lengthen.recipe.schema import (
    AdapterRecipe,
    AttentionRecipe,
    ContextRecipe,
    MemoryRecipe,
    ParallelRecipe,
    Recipe,
    RestorationRecipe,
    TrainingRecipe,
)

__all__ = [
    "PROMPT_KINDS",
    "AdapterRecipe",
    "AttentionRecipe",
    "ContextRecipe",
    "DataRecipe",
    "MemoryRecipe",
    "ParallelRecipe",
    "Recipe",
    "RestorationRecipe",
    "SourceRecipe",
    "TrainingRecipe",
    "apply_overrides",
    "check_documents",
    "check_heads",
    "load_recipe",
    "parse_recipe",
    "shipped_recipes",
]
