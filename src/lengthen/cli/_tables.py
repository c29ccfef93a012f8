"""Tables on the terminal."""

from collections.abc import Sequence
from typing import Any

__all__ = ["print_table"]


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a title and a table; floats with three decimals.

    Args:
        title: of the table.
        columns: their names.
        rows: a cell for each column.
    """
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(title)  # rich would wrap a table's own title to the width of the table
    built = Table()
    for column in columns:
        built.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        built.add_row(*(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row))
    console.print(built)
