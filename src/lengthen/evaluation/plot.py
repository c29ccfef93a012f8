"""Pictures of measurements.

The report takes the same figures as SVG (`lengthen.report.figures`), where each color of `COLORS` becomes a variable of
the page, so that one picture serves a light and a dark page.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from lengthen.evaluation.plot_style import (
    COLORS,
    add_legend,
    figure_style,
    label_ends,
    label_extremes,
    mark_base_context,
    new_figure,
    perplexity_axis,
    with_style,
)
from lengthen.files import write_bytes

__all__ = [
    "bars_figure",
    "context_figure",
    "found_figure",
    "heatmap_figure",
    "position_figure",
    "right_answers",
    "save_figure",
    "training_figure",
]

# Failure stands out from success without red against green. The cells look the same on a light and on a dark page.
_SCORES = LinearSegmentedColormap.from_list("scores", ["#c4560f", "#f0b884", "#f2efe6", "#93b9e6", "#1d5cb8"])


@figure_style
def context_figure(curves: Mapping[str, Mapping[int, float]], base_context: int | None = None) -> Figure:
    """Perplexity against context, one line per model.

    Args:
        curves: for each label, perplexity by context (tokens).
        base_context: where the base's own context ends; what is beyond it is shaded.
    """
    figure, axes = new_figure()
    contexts = sorted({context for curve in curves.values() for context in curve})
    for (label, curve), (color, marker) in with_style(curves):
        xs = sorted(curve)
        axes.plot(xs, [curve[x] for x in xs], color=color, marker=marker, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(contexts, [f"{context:,}" for context in contexts])
    axes.minorticks_off()
    perplexity_axis(axes)
    axes.margins(x=0.09)
    axes.set_xlabel("context the model is given (tokens)")
    mark_base_context(axes, base_context)
    axes.set_ylabel("perplexity (lower is better)")
    add_legend(axes, curves)
    label_ends(figure, axes, curves)
    return figure


@figure_style
def position_figure(curves: Mapping[str, Sequence[Mapping[str, Any]]], base_context: int | None = None) -> Figure:
    """Perplexity against the position in the document, one line per model.

    Args:
        curves: for each label {"from", "to", "perplexity"} by bucket of positions, in tokens; a perplexity of None
            (too large for a float) is left out.
        base_context: where the base's own context ends; what is beyond it is shaded.
    """
    figure, axes = new_figure()
    for (label, buckets), (color, marker) in with_style(curves):
        drawn = [bucket for bucket in buckets if bucket["perplexity"] is not None]
        middles = [(bucket["from"] + bucket["to"]) / 2 for bucket in drawn]
        axes.plot(middles, [bucket["perplexity"] for bucket in drawn], color=color, marker=marker, label=label)
    edges = sorted({bucket[end] for buckets in curves.values() for bucket in buckets for end in ("from", "to")})
    step = -(-(len(edges) - 1) // 4) or 1
    axes.set_xticks(edges[::step], [f"{edge:,}" for edge in edges[::step]])
    axes.set_xlim(0, edges[-1] if edges else None)
    perplexity_axis(axes)
    axes.set_xlabel("position of the predicted token")
    mark_base_context(axes, base_context)
    axes.set_ylabel("perplexity (lower is better)")
    add_legend(axes, curves)
    return figure


@figure_style
def found_figure(
    curves: Mapping[str, Mapping[int, float]],
    title: str | None = None,
    base_context: int | None = None,
    bar: float | None = None,
) -> Figure:
    """The share of what is hidden that a model finds, against the length of the text, one line per model.

    Args:
        curves: for each label, the share by length (tokens).
        title: above the picture.
        base_context: where the base's own context ends; what is beyond it is shaded.
        bar: the least share of a usable length; drawn as a line.
    """
    figure, axes = new_figure(title)
    lengths = sorted({length for curve in curves.values() for length in curve})
    if bar is not None:
        axes.axhline(bar, color=COLORS["muted"], linestyle=":", linewidth=1.2, zorder=0)
    for (label, curve), (color, marker) in with_style(curves):
        xs = sorted(curve)
        axes.plot(xs, [curve[x] for x in xs], color=color, marker=marker, label=label, clip_on=False)
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.minorticks_off()
    axes.set_ylim(-0.12, 1.25)  # room for the values above and below the points
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
    axes.margins(x=0.09)
    label_extremes(axes, curves, lengths)
    axes.set_xlabel("length (tokens)")
    mark_base_context(axes, base_context)
    axes.set_ylabel("found (higher is better)" if bar is None else f"found (usable from {bar:.0%} on, dotted)")
    add_legend(axes, curves)
    return figure


@figure_style
def heatmap_figure(results: Sequence[Mapping[str, Any]], title: str | None = None) -> Figure:
    """Share of right answers by length (across) and depth (down).

    Args:
        results: {"tokens", "depth", "trials", "correct", "exact"} for each cell (see `right_answers`); depth is the
            share of the text, 0 to 1, that comes before what is looked for. Cells without a result stay empty.
        title: above the picture.
    """
    lengths = sorted({result["tokens"] for result in results})
    depths = sorted({result["depth"] for result in results})
    figure, axes = new_figure(title, height=1.1 + 0.34 * len(depths))
    shares = [[float("nan")] * len(lengths) for _ in depths]
    for result in results:
        row, column = depths.index(result["depth"]), lengths.index(result["tokens"])
        share = right_answers(result) / result["trials"]
        shares[row][column] = share
        axes.text(column, row, f"{share:.0%}", ha="center", va="center", color=_readable_on(_SCORES(share)))
    edges = [[index - 0.5 for index in range(len(ticks) + 1)] for ticks in (lengths, depths)]
    axes.pcolormesh(*edges, shares, cmap=_SCORES, vmin=0, vmax=1, edgecolors="face", linewidth=0.5)
    axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
    axes.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
    axes.set_ylim(len(depths) - 0.5, -0.5)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("length (tokens)")
    axes.set_ylabel("depth")
    return figure


@figure_style
def bars_figure(
    series: Mapping[str, Mapping[int, float]],
    title: str | None = None,
    threshold: float | None = None,
) -> Figure:
    """Scores by length, one bar per length and model.

    Args:
        series: for each label, the score by length (tokens).
        title: above the picture.
        threshold: drawn as a line.
    """
    figure, axes = new_figure(title)
    lengths = sorted({length for scores in series.values() for length in scores})
    width = 0.76 / len(series)
    for index, ((label, scores), (color, _)) in enumerate(with_style(series)):
        places = [lengths.index(length) + (index - (len(series) - 1) / 2) * width for length in scores]
        bars = axes.bar(places, list(scores.values()), width * 0.92, color=color, label=label)
        axes.bar_label(bars, [f"{value:.0f}" for value in scores.values()], padding=2, color=color, fontsize=8)
    if threshold is not None:
        axes.axhline(threshold, color=COLORS["ink"], linestyle="--", linewidth=1)
        axes.annotate(
            f"threshold {threshold:.1f}", (1, threshold), xycoords=("axes fraction", "data"), ha="right",
            textcoords="offset points", xytext=(0, 3), fontsize=8,
        )  # fmt: skip
    axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
    axes.set_xlim(-0.6, len(lengths) - 0.4)
    axes.margins(y=0.12)
    axes.set_ylim(0, max(1, axes.get_ylim()[1]))  # also where all scores are 0
    axes.tick_params(axis="x", length=0)
    axes.set_xlabel("length (tokens)")
    axes.set_ylabel("mean score of the tasks (%)")
    add_legend(axes, series)
    return figure


@figure_style
def training_figure(metrics: Sequence[Mapping[str, Any]]) -> Figure:
    """Loss and learning rate against the optimizer step.

    Args:
        metrics: lines of metrics.jsonl: {"step", "loss", "learning_rate"}.
    """
    figure, (above, below) = new_figure(rows=(3, 1))
    steps = [record["step"] for record in metrics]
    losses = [record["loss"] for record in metrics]
    smooth = _smoothed(losses)
    above.plot(steps, losses, color=COLORS["series-2"], marker=".", linewidth=1, label="each logged step")
    above.plot(steps, smooth, color=COLORS["last"], label="mean of the nearest 9")
    above.annotate(
        f"{smooth[-1]:.2f}", (steps[-1], smooth[-1]), textcoords="offset points", xytext=(6, -3), color=COLORS["last"]
    )
    below.plot(steps, [record["learning_rate"] for record in metrics], color=COLORS["series-3"], linewidth=1.5)
    below.ticklabel_format(axis="y", scilimits=(-2, 3), useMathText=False)
    below.yaxis.get_offset_text().set_fontsize(8)
    below.set_ylim(bottom=0)
    below.locator_params(axis="y", nbins=2)
    below.xaxis.get_major_locator().set_params(integer=True)
    above.margins(x=0.07)
    above.set_ylabel("loss (nats per token)")
    below.set_ylabel("learning rate")
    below.set_xlabel("optimizer step")
    add_legend(above, ["each logged step", "mean of the nearest 9"])
    return figure


def right_answers(cell: Mapping[str, Any]) -> int:
    """The generated answers of a cell that are right, or, where none were generated, those that are the likeliest."""
    return cell["exact"] if cell["correct"] is None else cell["correct"]


def _smoothed(values: Sequence[float]) -> list[float]:
    """The mean of each value and of up to 4 on either side."""
    windows = [values[max(0, index - 4) : index + 5] for index in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def _readable_on(ground: tuple[float, ...]) -> str:
    """White or nearly black, whichever contrasts more with a color (luminance as WCAG 2 defines it)."""
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in ground[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#ffffff" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.06 else "#1b1b1b"


@figure_style
def save_figure(figure: Figure, path: Path) -> None:
    """Write a picture, whole or not at all.

    Args:
        figure: one of those above.
        path: of the picture; .png or .svg.

    Raises:
        OutputError: the picture can't be written.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix.removeprefix("."))
    write_bytes(path, buffer.getvalue())
