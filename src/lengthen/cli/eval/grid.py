"""What passkey and needle share on the command line: the grid's options, its table, its file and its picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lengthen.cli.eval.subject import Subject, print_table, write_result

if TYPE_CHECKING:
    from lengthen.evaluation.retrieval.grid import Cell

__all__ = ["BatchSize", "Depths", "Generate", "Haystack", "Lengths", "Seed", "Trials", "parse_depths", "report_grid"]

Lengths = Annotated[str, typer.Option(help="Tokens of prompt and answer, such as 2048,4096.")]
Depths = Annotated[str, typer.Option(help="Shares of the text before what is hidden, 0 to 1.")]
Trials = Annotated[int, typer.Option(min=1, help="Prompts for each length (and task, where there are several).")]
Generate = Annotated[
    bool, typer.Option(help="Also let the model answer, beside the likelihood of the right answers; slower.")
]
Haystack = Annotated[
    Path | None, typer.Option(help="File or folder with prose; default: the documentation of this Python.")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Prompts that are run together.")]
Seed = Annotated[int, typer.Option(help="Of all that is random.")]


def parse_depths(text: str) -> list[float]:
    """Parse depths such as "0,0.5,1", in their order and without repetitions."""
    try:
        depths = [float(part) for part in text.split(",")]
    except ValueError:
        depths = [-1.0]
    if not all(0 <= depth <= 1 for depth in depths):
        raise typer.BadParameter(
            f"{text!r} is not a list of depths from 0 (the beginning) to 1 (the end); write it as 0,0.5,1",
            param_hint="--depths",
        )
    return list(dict.fromkeys(depths))


def report_grid(
    subject: Subject, kind: str, cells: Sequence["Cell"], content: dict[str, Any], json_file: Path | None
) -> None:
    """Print the cells, depths down and lengths across, and a summary; write them, and beside the file a heatmap."""
    from lengthen.evaluation.plot import plot_heatmap

    found = {(cell.tokens, cell.depth): _found(cell) for cell in cells}
    lengths, depths = (list(dict.fromkeys(values)) for values in zip(*found, strict=True))
    print_table(
        f"Right answers ({kind}), by depth and by tokens of prompt and answer",
        ["depth", *map(str, lengths)],
        [[f"{depth:g}", *(found[tokens, depth] for tokens in lengths)] for depth in depths],
    )
    print_table(
        "The right answer's tokens, each given those before it",
        ["tokens", "all likeliest", "likeliest", "nats per token"],
        [_summary(tokens, [cell for cell in cells if cell.tokens == tokens]) for tokens in lengths],
    )
    results = [cell.to_json() for cell in cells]
    written = write_result(subject.name, subject.header, kind, {**content, "results": results}, json_file)
    if written is not None and written.is_file():  # and not a pipe or /dev/stdout
        picture = written.with_suffix(".png")
        plot_heatmap(results, picture, f"{kind}: {Path(subject.name).name}")
        typer.echo(f"wrote {picture}", err=True)


def _found(cell: "Cell") -> str:
    """What was generated, where anything was."""
    return f"{cell.exact if cell.correct is None else cell.correct}/{cell.trials}"


def _summary(tokens: int, cells: Sequence["Cell"]) -> list[Any]:
    exact, trials = sum(cell.exact for cell in cells), sum(cell.trials for cell in cells)
    means = [sum(getattr(cell, name) for cell in cells) / len(cells) for name in ("right_tokens", "nats")]
    return [tokens, f"{exact}/{trials}", *means]
