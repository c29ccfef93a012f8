"""Documents on the command line: options that name them, the check of their ids, and what is printed of them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from rich.console import Console

__all__ = ["Dtype", "Inputs", "print_histogram", "print_packing", "refuse_without_rows"]

Inputs = Annotated[
    list[Path],
    typer.Argument(
        metavar="INPUT...",
        help="Documents (.txt .md .py .json(l) .parquet .pdf .epub .html .docx), folders of these, token files.",
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(metavar="uint16|uint32", help="How token files are read, where the vocabulary does not tell."),
]

_BAR_WIDTH = 40


def refuse_without_rows(model: str, tokenizer: Any, ids: "Iterable[np.ndarray]") -> None:
    """Refuse token ids that MODEL has no embedding row for, as a run over them would be.

    Args:
        model: MODEL.
        tokenizer: that made the ids.
        ids: of each document.

    Raises:
        ModelError: there is one.
    """
    from lengthen.adapters.base import stated_rows
    from lengthen.errors import ModelError
    from lengthen.vocabulary import check_ids, vocabulary_size

    try:
        rows = stated_rows(model)
    except ModelError:  # a tokenizer is all that is needed here, and may be all that there is
        return
    if vocabulary_size(tokenizer) > rows:
        check_ids(max((int(each.max()) for each in ids if each.size), default=0), rows, tokenizer)


def print_histogram(console: "Console", histogram: list[dict[str, Any]]) -> None:
    """Print how many documents there are of which lengths, from `describe_lengths`.

    Args:
        console: to print on.
        histogram: of `describe_lengths`.
    """
    console.print()
    most = max(bucket["documents"] for bucket in histogram)
    for bucket in histogram:
        # A bucket with a single document still shows.
        bar = "#" * -(-bucket["documents"] * _BAR_WIDTH // most)
        console.print(f"{bucket['from']:>12,} - {bucket['to'] - 1:<12,} {bucket['documents']:>9,}  {bar}")


def print_packing(console: "Console", packed: dict[str, Any]) -> None:
    """Print the blocks of `describe_blocks`, with the packing as "kind".

    Args:
        console: to print on.
        packed: of `describe_blocks`, with "kind".
    """
    console.print()
    console.print(f"packing    {packed['kind']}, sequence length {packed['sequence_length']:,}")
    console.print(f"blocks     {packed['blocks']:,} with {packed['segments']:,} segments, {packed['tokens']:,} tokens")
    console.print(f"fill       {packed['fill']:.1%}")
    if "context" in packed:
        console.print(
            f"beyond     {packed['positions_beyond']:.1%} of tokens at positions from {packed['context']:,} on"
        )
