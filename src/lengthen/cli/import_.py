"""`lengthen import`."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["import_"]


def import_(
    folder: Annotated[Path, typer.Argument(help="an adapter folder in LongLoRA's or LongQLoRA's format")],
    out: Annotated[Path, typer.Argument(help="a new folder, which becomes the run folder")],
    context: Annotated[int, typer.Option(min=2, help="context that the adapter was trained for, tokens")],
    base: Annotated[
        str | None, typer.Option(help="hub id, model folder, .gguf file or alias; default what the adapter names")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="also write the result there")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="print nothing")] = False,
) -> None:
    """Turn a published LongLoRA or LongQLoRA adapter into a run folder."""
    from dataclasses import asdict

    from lengthen.adapters.longlora import import_published
    from lengthen.files import write_json

    imported = import_published(folder, out, context, base)
    if json_file is not None:
        write_json(json_file, {**asdict(imported), "run": str(out), "context": context})
    if not quiet:
        print(f"imported {imported.trainable}, over {imported.base['id']}")
        if imported.dropped_rows:
            print("left out: the embedding of the token that was added to the base, such as [PAD]")
        print(out)
