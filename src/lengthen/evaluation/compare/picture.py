"""A picture of retrieval by length."""

from pathlib import Path

from lengthen.evaluation.compare.verdict import RETRIEVAL, SHARE
from lengthen.evaluation.plot import found_figure, save_figure
from lengthen.results import Comparison, found_curves

__all__ = ["draw_found"]


def draw_found(found: Comparison, path: Path, name: str, base_context: int) -> bool:
    """Save a picture of what base and run find, by length; nothing where nothing was hidden.

    Args:
        found: the comparison.
        path: the file, .png.
        name: of the run, for the title.
        base_context: of the base, tokens.

    Returns:
        Whether there is a picture.
    """
    task = found["verdict"]["task"]
    if task is None:
        return False
    title = f"{RETRIEVAL[task].capitalize()} found: {name}"
    curves = found_curves(found["scores"], task)
    save_figure(found_figure(curves, title, base_context, SHARE * (found["verdict"]["best"] or 0)), path)
    return True
