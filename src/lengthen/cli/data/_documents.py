"""Documents on the command line: options that name them, the check of their ids, and what is printed of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from rich.console import Console

__all__ = ["Dtype", "Inputs", "PackOptions", "print_histogram", "print_packing", "refuse_without_rows"]

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


@dataclass(frozen=True)
class PackOptions:
    """Which documents are packed, and how."""

    sequence_length: Annotated[
        int | None, typer.Option(min=2, help="Pack into blocks of this many tokens and describe them.")
    ] = None
    min_tokens: Annotated[int, typer.Option(min=1, help="Leave out documents with fewer tokens.")] = 1
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Leave out documents with more tokens.")] = None
    packing: Annotated[
        str, typer.Option(metavar="documents|concatenate|none", help="How blocks are made; none: for --kind instruct.")
    ] = "documents"
    context: Annotated[
        int | None,
        typer.Option(min=1, help="The base's context in tokens: say what share of the tokens lies beyond it."),
    ] = None

    @property
    def limits(self) -> tuple[int, int | None]:
        """Fewest and most tokens of a document."""
        return self.min_tokens, self.max_tokens

    def describe(self, blocks: Any) -> dict[str, Any]:
        """What came of packing.

        Args:
            blocks: of `sequence_length` tokens.
        """
        from lengthen.data.counts import describe_blocks

        assert self.sequence_length is not None
        return {"kind": self.packing, **describe_blocks(blocks, self.sequence_length, self.context)}


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
    """Print what came of packing.

    Args:
        console: to print on.
        packed: of `PackOptions.describe`.
    """
    console.print()
    console.print(f"packing    {packed['kind']}, sequence length {packed['sequence_length']:,}")
    console.print(f"blocks     {packed['blocks']:,} with {packed['segments']:,} segments, {packed['tokens']:,} tokens")
    console.print(f"fill       {packed['fill']:.1%}")
    if "context" in packed:
        console.print(
            f"beyond     {packed['positions_beyond']:.1%} of tokens at positions from {packed['context']:,} on"
        )
