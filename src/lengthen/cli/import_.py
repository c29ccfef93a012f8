"""`lengthen import`."""

from pathlib import Path
from typing import Annotated

import typer

from lengthen.cli._options import Output

__all__ = ["import_"]


def import_(
    folder: Annotated[Path, typer.Argument(help="An adapter folder in LongLoRA's or LongQLoRA's format.")],
    out: Annotated[Path, typer.Argument(help="A new folder, which becomes the run folder.")],
    context: Annotated[int, typer.Option(min=2, help="Context that the adapter was trained for, tokens.")],
    base: Annotated[
        str | None, typer.Option(help="Hub id, model folder, .gguf file or alias; default what the adapter names.")
    ] = None,
    *,
    output: Output,
) -> None:
    """Turn a published LongLoRA or LongQLoRA adapter into a run folder."""
    from dataclasses import asdict

    from lengthen.adapters.longlora import import_published

    imported = import_published(folder, out, context, base)
    output.write({**asdict(imported), "run": str(out), "context": context})
    if not output.quiet:
        print(f"imported {imported.trainable}, over {imported.base['id']}")
        if imported.dropped_rows:
            print("left out: the embedding of the token that was added to the base, such as [PAD]")
        print(out)
