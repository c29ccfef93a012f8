"""`lengthen recipes`."""

from typing import Annotated

import typer

from lengthen.cli._options import Output

__all__ = ["recipes"]


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe whole, defaults included.")] = None,
    *,
    output: Output,
) -> None:
    """List the shipped recipes, or print one."""
    from lengthen.recipe import load_recipe, shipped_recipes

    if name is not None:
        recipe = load_recipe(name)
        if not output.quiet:
            print(recipe.to_yaml(), end="")
        output.write(recipe.model_dump())
        return
    rows = []
    for each, path in shipped_recipes().items():
        comment = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        rows.append({"name": each, "about": comment})
    if not output.quiet:
        width = max(len(row["name"]) for row in rows)
        print("\n".join(f"{row['name']:<{width}}  {row['about']}" for row in rows))
    output.write({"recipes": rows})
