"""The reference pages of the documentation, from the package itself (a hook of mkdocs; see mkdocs.yml).

python scripts/docs_pages.py cli | recipe        # prints a page
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer.main
from pydantic import BaseModel
from pydantic.fields import FieldInfo


def commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Each command with its full name, in the order of `--help`; groups before what is in them."""
    yield name, command
    for inner, each in getattr(command, "commands", {}).items():
        yield from commands(each, f"{name} {inner}")


def cli_page() -> str:
    """Every command with its arguments and options."""
    from lengthen.cli import app

    lines = ["# Command line", "", "Exit code 2: the input has to change, and one line says how.", ""]
    for name, command in commands(typer.main.get_command(app), "lengthen"):
        lines += [f"## `{name}`" if name.count(" ") < 2 else f"### `{name}`", "", command.help or "", ""]
        if hasattr(command, "commands"):
            lines += [f"- `{name} {inner}`: {each.get_short_help_str(200)}" for inner, each in command.commands.items()]
            lines.append("")
            continue
        arguments = [each for each in command.params if each.param_type_name == "argument"]
        usage = [f"{each.name}{'...' if each.nargs == -1 else ''}".upper() for each in arguments]
        lines += ["```console", " ".join([name, *usage, "[OPTIONS]"]), "```", "", "| | |", "|---|---|"]
        for each in command.params:
            shown = [*each.opts, *each.secondary_opts] if each.param_type_name == "option" else [str(each.name).upper()]
            text = " ".join((getattr(each, "help", None) or "").split())
            default = each.default
            if default not in (None, False, True, [], ()) and not callable(default) and default is not Ellipsis:
                text += f" Default `{default}`."
            lines.append(f"| {', '.join(f'`{word}`' for word in shown)} | {_cell(text)} |")
        lines.append("")
    return "\n".join(lines)


def recipe_page() -> str:
    """Every key of a recipe, by section."""
    from lengthen.recipe import Recipe

    lines = [
        "# Recipe",
        "",
        "Keys are written as `section: {key: value}` in YAML and as `section.key=value` on the command line.",
        "[Write a recipe](../how-to/recipes.md) has a worked example.",
        "",
    ]
    for title, section in _sections(Recipe, ""):
        lines += [f"## {title}", "", (section.__doc__ or "").split("\n\n")[0], ""]
        lines += ["| key | values | default | |", "|---|---|---|---|"]
        for key, field in section.model_fields.items():
            if _model_in(field.annotation) is None or field.description:
                cells = [f"`{key}`", _type(field.annotation), _default(field), field.description or ""]
                lines.append(f"| {' | '.join(map(_cell, cells))} |")
        lines.append("")
    return "\n".join(lines)


def _sections(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, type[BaseModel]]]:
    yield f"`{prefix}`" if prefix else "The recipe", model
    for key, field in model.model_fields.items():
        inner = _model_in(field.annotation)
        if inner is not None and key != "beside":
            yield from _sections(inner, f"{prefix}.{key}" if prefix else key)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The section that an annotation holds, by itself or in a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)


def _type(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(inner[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, UnionType):
        return " or ".join(_type(each) for each in inner if each is not type(None))
    if origin in (list, tuple):
        return f"list of {_type(inner[0])}"
    if origin is dict:
        return f"{_type(inner[0])}: {_type(inner[1])}"
    names = {"bool": "true or false", "int": "integer", "float": "number", "str": "text", "Any": "any value"}
    name = getattr(annotation, "__name__", str(annotation))
    return names.get(name, "section" if _model_in(annotation) else name)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value in ([], {}) or isinstance(value, BaseModel):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


PAGES = {"reference/cli.md": cli_page, "reference/recipe.md": recipe_page}


def on_files(files: Any, config: Any) -> Any:
    """Called by mkdocs: add the generated pages."""
    from mkdocs.structure.files import File

    for path, make in PAGES.items():
        files.append(File.generated(config, path, content=make()))
    return files


if __name__ == "__main__":
    sys.stdout.write(PAGES[f"reference/{Path(sys.argv[1]).name}.md"]())
