"""`lengthen export`."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["export"]


def export(
    run: Annotated[str, typer.Argument(help="a run folder, or a base with --adapter")],
    out: Annotated[Path, typer.Argument(help="a new folder")],
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32")] = "bfloat16",
    adapter: Annotated[str | None, typer.Option(help="a PEFT folder to merge into the base")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="also write the result there")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="print nothing")] = False,
) -> None:
    """Merge a run into one ordinary Hugging Face folder."""
    from lengthen.adapters.export import export as run_export
    from lengthen.files import write_json

    run_export(run, out, dtype, adapter)
    if json_file is not None:
        write_json(json_file, {"model": run, "out": str(out), "dtype": dtype})
    if not quiet:
        print(out)
