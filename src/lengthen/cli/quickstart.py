"""`lengthen quickstart`."""

from pathlib import Path
from typing import Annotated

import typer

from lengthen.cli._options import Output

__all__ = ["quickstart"]


def quickstart(
    out: Annotated[Path, typer.Option(help="Run folder, new or empty.")] = Path("runs/quickstart"),
    *,
    output: Output,
) -> None:
    """Extend the shipped base from 256 to 2048 tokens and measure it before and after: two minutes on a laptop."""
    from rich.console import Console
    from rich.table import Table

    from lengthen.quickstart import CONTEXTS
    from lengthen.quickstart import quickstart as run_quickstart

    result = run_quickstart(out)
    output.write(result)
    if output.quiet:
        return
    table = Table(title=f"Perplexity on {result['documents']} held-out files, the same tokens at every context")
    table.add_column("context")
    for context in CONTEXTS:
        table.add_column(f"{context:,}", justify="right")
    rows = {
        "base": "base (256 tokens)",
        "scaled": "positions scaled, untrained",
        "extended": "extended to 2,048",
    }
    for key, label in rows.items():
        table.add_row(label, *(f"{result[key][str(context)]:.2f}" for context in CONTEXTS))
    console = Console()
    console.print(table)
    console.print(f"{result['seconds']:.0f} s. Report: {result['run']}/report.html", highlight=False, soft_wrap=True)
