"""How the pictures of measurements look: colors, sizes, axes, legends and labels.

Figures are about as wide as a phone's screen, in points: text stays readable where a page shrinks them to that.
Series differ by marker as well as by color, and the colors are told apart by the color-blind. The last of several
is blue: it is what was made of the others.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure

__all__ = [
    "COLORS",
    "add_legend",
    "figure_style",
    "label_ends",
    "label_extremes",
    "mark_base_context",
    "new_figure",
    "perplexity_axis",
    "with_style",
]

COLORS = {
    "ink": "#22272e",
    "muted": "#6a727c",
    "line": "#e3e6ea",
    "series-1": "#b5510e",
    "series-2": "#858d97",
    "series-3": "#7a4db8",
    "series-4": "#0f7f74",
    "last": "#1f66d1",
}
"""Colors by their use, on a light ground."""

_SERIES = [(COLORS[f"series-{number}"], marker) for number, marker in ((1, "s"), (2, "o"), (3, "^"), (4, "v"))]
_LAST = (COLORS["last"], "D")

_WIDTH, _HEIGHT = 5.2, 3.5  # inches

figure_style = matplotlib.rc_context(
    {
        "axes.axisbelow": True,
        "axes.edgecolor": COLORS["muted"],
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.labelcolor": COLORS["muted"],
        "axes.labelsize": 9,
        "axes.linewidth": 0.8,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "figure.constrained_layout.use": True,
        "figure.dpi": 200,
        "font.size": 9,
        "grid.color": COLORS["line"],
        "grid.linewidth": 0.8,
        "legend.frameon": False,
        "lines.linewidth": 2,
        "lines.markersize": 5,
        "text.color": COLORS["ink"],
        "text.parse_math": False,  # a label is what a user called a file
        "xtick.color": COLORS["muted"],
        "ytick.color": COLORS["muted"],
    }
)


def new_figure(title: str | None = None, height: float = _HEIGHT, rows: Sequence[float] = (1,)) -> tuple[Figure, Any]:
    """A figure and its axes, or a sequence of them that share their horizontal axis.

    Args:
        title: above the picture.
        height: inches.
        rows: relative heights of the axes, from the top.
    """
    figure = Figure(figsize=(_WIDTH, height))
    axes = figure.subplots(len(rows), sharex=True, height_ratios=rows)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=10.5)
    return figure, axes


def with_style(curves: Mapping[str, Any]) -> list[tuple[tuple[str, Any], tuple[str, str]]]:
    """((label, curve), (color, marker)) of each curve.

    Args:
        curves: by label.
    """
    others = [_SERIES[index % len(_SERIES)] for index in range(len(curves) - 1)]
    # A legend leaves labels out that begin with an underscore.
    labeled = [(f" {label}" if label.startswith("_") else label, curve) for label, curve in curves.items()]
    return list(zip(labeled, [*others, _LAST], strict=True))


def label_ends(figure: Figure, axes: Any, curves: Mapping[str, Mapping[int, float]]) -> None:
    """Write each curve's last value beside it, moved up where it would cover the one below.

    Args:
        figure: of the axes.
        axes: with the curves drawn.
        curves: by label, values by x.
    """
    figure.draw_without_rendering()  # places are known once the axes have their final size
    below = float("-inf")
    ends = [(curve[max(curve)], max(curve), color) for (_, curve), (color, _) in with_style(curves)]
    for value, context, color in sorted(ends):
        place = axes.transData.transform((context, value))[1] * 72 / figure.dpi
        below = max(place, below + 10)
        offset = (6, below - place - 3)
        text = f"{value:.1f}" if value < 1000 else f"{value:,.0f}"
        axes.annotate(text, (context, value), textcoords="offset points", xytext=offset, color=color)


def label_extremes(axes: Any, curves: Mapping[str, Mapping[int, float]], lengths: Sequence[int]) -> None:
    """Write the highest share at each length above its point, and the lowest below.

    Args:
        axes: with the curves drawn.
        curves: by label, shares by length.
        lengths: all of them, in rising order.
    """
    for length in lengths:
        points = [(curve[length], color) for (_, curve), (color, _) in with_style(curves) if length in curve]
        highest, lowest = max(points, key=lambda point: point[0]), min(points, key=lambda point: point[0])
        left = -10 if length == lengths[0] else 0  # of a curve that falls from there
        labels = [(highest, (0, 7)), (lowest, (left, -13))] if highest[0] > lowest[0] else [(points[-1], (0, 7))]
        for (share, color), offset in labels:
            axes.annotate(
                f"{share:.0%}", (length, share), textcoords="offset points", xytext=offset, ha="center",
                color=color, fontsize=8,
            )  # fmt: skip


def mark_base_context(axes: Any, base_context: int | None) -> None:
    """Shade what is beyond the base's context, and say so below the axis.

    Args:
        axes: with their label and limits.
        base_context: tokens; None for no shade.
    """
    left, right = axes.get_xlim()
    if base_context is None or not left <= base_context <= right:
        return
    axes.axvspan(base_context, right, color=COLORS["line"], alpha=0.45, linewidth=0, zorder=0)
    axes.set_xlim(left, right)
    axes.set_xlabel(f"{axes.get_xlabel()}; shaded: beyond the base's {base_context:,}")


def perplexity_axis(axes: Any) -> None:
    """Make the vertical axis logarithmic, with round numbers."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    rounded = [digits * 10**power for power in range(6) for digits in (1, 1.5, 2, 3, 5, 7)]
    ticks = [tick for tick in rounded if low <= tick <= high]
    if len(ticks) < 2:  # a nearly flat line
        axes.set_yscale("linear")
        return
    axes.set_yticks(ticks[:: -(-len(ticks) // 9)], [f"{tick:,g}" for tick in ticks[:: -(-len(ticks) // 9)]])
    axes.minorticks_off()


def add_legend(axes: Any, labels: Sequence[str] | Mapping[str, Any]) -> None:
    """Put a legend above the axes, where it can't cover a line; in one row where the labels are short.

    Args:
        axes: with labeled lines.
        labels: theirs; a single one needs no legend.
    """
    if len(labels) > 1:
        in_a_row = sum(len(label) + 5 for label in labels) <= 56
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderpad=0, ncols=len(labels) if in_a_row else 1)
