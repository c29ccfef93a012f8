"""`lengthen report`."""

from pathlib import Path
from typing import Annotated

import typer

from lengthen.cli._options import Output

__all__ = ["report"]


def report(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    out: Annotated[Path | None, typer.Option(help="The HTML file; default report.html in the run folder.")] = None,
    compare: Annotated[
        list[Path] | None, typer.Option(help="Results file of the base, from `lengthen eval --json`; repeatable.")
    ] = None,
    *,
    output: Output,
) -> None:
    """Write one HTML file about a run: what it is, what it cost, and what of the longer context is usable."""
    from lengthen.report import write_report

    written = write_report(run, out, compare or ())
    output.write({"run": str(run), "report": str(written)})
    if not output.quiet:
        print(written)
