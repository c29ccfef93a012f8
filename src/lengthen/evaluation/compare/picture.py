"""A picture of retrieval by length."""

from matplotlib.figure import Figure

from lengthen.evaluation.compare.verdict import RETRIEVAL, SHARE
from lengthen.evaluation.plot import found_figure
from lengthen.results import Comparison, found_curves

__all__ = ["comparison_figure"]


def comparison_figure(found: Comparison, name: str, base_context: int) -> Figure | None:
    """Draw what base and run find, by length; None where nothing was hidden.

    Args:
        found: the comparison.
        name: of the run, for the title.
        base_context: of the base, tokens.
    """
    task = found["verdict"]["task"]
    if task is None:
        return None
    title = f"{RETRIEVAL[task].capitalize()} found: {name}"
    curves = found_curves(found["scores"], task)
    return found_figure(curves, title, base_context, SHARE * (found["verdict"]["best"] or 0))
