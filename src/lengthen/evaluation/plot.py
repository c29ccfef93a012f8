"""Pictures of measurements."""

import io
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from lengthen.files import write_bytes

__all__ = ["plot_by_context"]

_COLOURS = ("#9a5b13", "#8a8a8a", "#1f6feb", "#2a7f4f")


def plot_by_context(
    curves: Mapping[str, Mapping[int, float]], path: Path, title: str, base_context: int | None = None
) -> None:
    """Draw perplexity against context, one line per model.

    Args:
        curves: for each label, perplexity by context (tokens).
        path: of the picture; .png or .svg.
        title: above the picture.
        base_context: where the base's own context ends; drawn as a line.

    Raises:
        OutputError: the picture can't be written.
    """
    figure = Figure(figsize=(7.2, 4.4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    contexts = sorted({context for curve in curves.values() for context in curve})
    for (label, curve), colour in zip(curves.items(), _COLOURS, strict=False):
        xs = sorted(curve)
        ys = [curve[x] for x in xs]
        axes.plot(xs, ys, marker="o", color=colour, label=label, linewidth=2)
        axes.annotate(f"{ys[-1]:.1f}", (xs[-1], ys[-1]), textcoords="offset points", xytext=(8, -3), color=colour)
    if base_context is not None:
        axes.axvline(base_context, color="#bbbbbb", linestyle="--", linewidth=1, zorder=0)
        axes.annotate(
            f"base context {base_context:,}", (base_context, 1), xycoords=("data", "axes fraction"),
            textcoords="offset points", xytext=(5, -12), fontsize=8, color="#777777",
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(contexts, [f"{context:,}" for context in contexts])
    axes.minorticks_off()
    low, high = axes.get_ylim()
    ticks = [tick for tick in (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 200, 500, 1000) if low <= tick <= high]
    axes.set_yticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlabel("context the model is given (tokens)")
    axes.set_ylabel("perplexity on the same tokens (lower is better)")
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.08)
    axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix.removeprefix("."))
    write_bytes(path, buffer.getvalue())
