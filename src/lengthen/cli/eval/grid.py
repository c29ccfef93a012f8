"""The results of passkey and needle: table, file and picture."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lengthen.cli._loaded_model import LoadedModel, write_result
from lengthen.cli._tables import print_table

if TYPE_CHECKING:
    from lengthen.evaluation.retrieval.grid import Cell

__all__ = ["report_grid"]


def report_grid(
    loaded: LoadedModel, kind: str, cells: Sequence["Cell"], content: dict[str, Any], json_file: Path | None
) -> None:
    """Print the cells, depths down and lengths across, and a summary; write them, and beside the file a heatmap.

    Args:
        loaded: the model.
        kind: of the measurement.
        cells: one for each length and depth.
        content: what else the results say.
        json_file: as the user named it.
    """
    from lengthen.evaluation.plot import heatmap_figure, right_answers

    results = [cell.to_json() for cell in cells]
    found = {(cell["tokens"], cell["depth"]): f"{right_answers(cell)}/{cell['trials']}" for cell in results}
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
    heatmap = partial(heatmap_figure, results, f"{kind}: {Path(loaded.name).name}")
    write_result(loaded.name, loaded.header, kind, {**content, "results": results}, json_file, heatmap)


def _summary(tokens: int, cells: Sequence["Cell"]) -> list[Any]:
    exact, trials = sum(cell.exact for cell in cells), sum(cell.trials for cell in cells)
    means = [sum(getattr(cell, name) for cell in cells) / len(cells) for name in ("right_tokens", "nats")]
    return [tokens, f"{exact}/{trials}", *means]
