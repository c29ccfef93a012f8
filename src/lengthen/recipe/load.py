"""Reading a recipe: YAML files and shipped names, overrides, and one message for all that is wrong.

Overrides are `section.key=value`, with the value read as YAML.
"""

import difflib
import reprlib
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from lengthen.errors import RecipeError
from lengthen.recipe.data import MAPPING, SOURCE_LISTS, SourceRecipe
from lengthen.recipe.schema import Recipe

__all__ = ["apply_overrides", "load_recipe", "parse_recipe", "shipped_recipes"]

# Of a value that is wrong: YAML's aliases can make lists of billions of a few lines.
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200
_SHORT.maxlevel = 2


def shipped_recipes() -> dict[str, Path]:
    """Name and file of every recipe in the package."""
    folder = Path(str(resources.files("lengthen") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides.

    Args:
        name: a YAML file, or the name of a shipped recipe.
        overrides: `section.key=value` each.

    Raises:
        RecipeError: not found, not YAML, or with wrong keys or values; every problem is named at once.
    """
    shipped = shipped_recipes()
    path = shipped.get(str(name), Path(name))
    if not path.is_file():
        raise RecipeError(f"no recipe {str(name)!r}; give a YAML file or one of {', '.join(shipped)}")
    try:
        content = _parse(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise RecipeError(f"{path} is not a YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{path} holds no recipe: it must be a mapping with model, context, data and training")
    apply_overrides(content, overrides)
    content.setdefault("out", f"runs/{path.stem}")
    return parse_recipe(content, str(name))


def apply_overrides(content: dict[str, Any], overrides: Sequence[str]) -> None:
    """Change a recipe given as nested dicts by `section.key=value` each.

    Args:
        content: changed in place.
        overrides: in order.

    Raises:
        RecipeError: an override has another form, or names no section.
    """
    for override in overrides:
        _apply(content, override)


def parse_recipe(content: dict[str, Any], name: str) -> Recipe:
    """Validate a recipe given as nested dicts.

    Args:
        content: sections and keys.
        name: of the recipe, for messages.

    Raises:
        RecipeError: every problem in one line, with the nearest valid name for unknown keys.
    """
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        # A union reports each of its members that does not match.
        problems = "; ".join(dict.fromkeys(_problem(problem) for problem in error.errors()))
        raise RecipeError(f"recipe {name}: {problems}") from error


def _parse(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        ValueError: it is no YAML, nested too deep, or holds a number or date that is none.
    """
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error) or type(error).__name__) from error


def _apply(content: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise RecipeError(f"override {override!r} is not of the form section.key=value")
    try:
        value = _parse(text)
    except ValueError as error:
        raise RecipeError(f"the value in override {override!r} is not YAML; quote it") from error
    *sections, last = key.split(".")
    for section in sections:
        if section == "parallel" and isinstance(content.get(section), str):  # its short form
            content[section] = {"data": content[section]}
        content = content.setdefault(section, {})
        if not isinstance(content, dict):
            raise RecipeError(f"override {override!r}: {section} is not a section of the recipe")
    content[last] = value


def _problem(error: Any) -> str:
    path, field = _follow(error["loc"])
    location = ".".join(path)
    if error["type"] == "extra_forbidden":
        return f"unknown key {location!r}; {_nearest(path)}"
    if error["type"] == "missing":
        return f"{location} is missing"
    message = error["msg"].removeprefix("Value error, ")
    if location == "quantize":
        message = "choose nf4, or leave it out"
    elif field is not None and len([part for part in error["loc"] if part != MAPPING]) > len(path):
        message = f"Input should be: {field.description}"
    given = "" if error["type"] == "value_error" else f" (it is {_SHORT.repr(error['input'])})"
    return f"{location}: {message}{given}" if location else message


def _follow(location: Sequence[Any]) -> tuple[list[str], FieldInfo | None]:
    """The keys of an error's location, without the members of unions and lists that pydantic adds, and the field."""
    path: list[str] = []
    model: Any = Recipe
    field = None
    for part in location:
        if part == MAPPING:
            continue
        path.append(str(part))
        if path[:-1] in SOURCE_LISTS:
            model = SourceRecipe
            continue
        field = model.model_fields.get(part)
        model = field.annotation if field is not None else None
        if path not in SOURCE_LISTS and not (isinstance(model, type) and issubclass(model, BaseModel)):
            break
    return path, field


def _sections(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """The sections of the recipe by their dotted names, those inside of others too."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield prefix + name, kind
            yield from _sections(kind, f"{prefix}{name}.")


def _nearest(path: list[str]) -> str:
    """The valid key that an unknown one was meant to be: in its section, or of the same name in another."""
    keys = {name: list(model.model_fields) for name, model in _sections(Recipe)}
    *section, unknown = path
    if section[:2] in SOURCE_LISTS:
        valid = list(SourceRecipe.model_fields)
    else:
        valid = keys[".".join(section)] if section else list(Recipe.model_fields)
    near = [".".join([*section, key]) for key in difflib.get_close_matches(unknown, valid, n=1, cutoff=0.6)]
    near += [f"{other}.{unknown}" for other, inside in keys.items() if unknown in inside]
    near += [unknown] if unknown in Recipe.model_fields else []
    near += [".".join([*section, key]) for key in difflib.get_close_matches(unknown, valid, n=1, cutoff=0.4)]
    return f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(valid)}"
