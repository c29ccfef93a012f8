"""The model card of an exported run: its verdict, what it finds by length, and how to load it."""

from pathlib import Path

from lengthen.files import write_text
from lengthen.models.resolve import resolve_model
from lengthen.report.comparison import found_by_length, long_perplexity, perplexity_by_position, usable
from lengthen.report.results import read_run
from lengthen.report.setup import introduction
from lengthen.templates import template

__all__ = ["write_model_card"]


def write_model_card(folder: Path, out: Path, name: str) -> Path:
    """Write what a run's newest comparison says into an exported folder, as the Hub shows it.

    Args:
        folder: the run folder.
        out: the exported folder, which gets README.md.
        name: OWNER/NAME on the Hub.

    Returns:
        The card.

    Raises:
        LengthenError: not a run folder, a broken file, or the card can't be written.
    """
    run = read_run(folder)
    judged, positions, evaluation = usable(run), perplexity_by_position(run), run.newest("compare")
    base = str(run.base.get("model", run.recipe.model))
    card = template("lengthen.report", "model_card.md.j2").render(
        name=name,
        # A folder's or a file's name would be a link to nowhere.
        base_id=base if "/" in base and not Path(base).exists() and resolve_model(base).location == base else None,
        verdict=judged.sentence if judged else "What of its context is usable is not measured.",
        introduction=introduction(run),
        found=found_by_length(evaluation) if evaluation else None,
        perplexity=positions.note if positions else "",
        long_perplexity=long_perplexity(evaluation) if evaluation else None,
    )
    path = out / "README.md"
    write_text(path, card)
    return path
