"""`lengthen report`."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["report"]


def report(
    run: Annotated[Path, typer.Argument(help="a run folder")],
    out: Annotated[Path | None, typer.Option(help="the HTML file; default report.html in the run folder")] = None,
    compare: Annotated[
        list[Path] | None, typer.Option(help="results file of the base, from `lengthen eval --json`; repeatable")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="also write where the report is")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="print nothing")] = False,
) -> None:
    """Write one HTML file about a run: what it is, what it cost, and what of the longer context is usable."""
    from lengthen.files import write_json
    from lengthen.report import write_report

    written = write_report(run, out, compare or ())
    if json_file is not None:
        write_json(json_file, {"run": str(run), "report": str(written)})
    if not quiet:
        print(written)
