"""`lengthen recipes`."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["recipes"]


def recipes(
    name: Annotated[str | None, typer.Argument(help="print this recipe whole, defaults included")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="also write the result there")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="print nothing")] = False,
) -> None:
    """List the shipped recipes, or print one."""
    from lengthen.files import write_json
    from lengthen.recipe import load_recipe, shipped_recipes

    if name is not None:
        recipe = load_recipe(name)
        if not quiet:
            print(recipe.to_yaml(), end="")
        if json_file is not None:
            write_json(json_file, recipe.model_dump())
        return
    rows = []
    for each, path in shipped_recipes().items():
        comment = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        rows.append({"name": each, "about": comment})
    if not quiet:
        width = max(len(row["name"]) for row in rows)
        print("\n".join(f"{row['name']:<{width}}  {row['about']}" for row in rows))
    if json_file is not None:
        write_json(json_file, {"recipes": rows})
