"""Losses of tokens, added up by where they stand.

Shapes: S scored tokens of one window.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lengthen.evaluation.bootstrap import bootstrap_interval
from lengthen.evaluation.windows import Window

__all__ = ["LossAccumulator", "LossSums", "bucket_width", "gain_over"]

_BUCKETS = 8


def bucket_width(positions: int) -> int:
    """The power of two that makes at most 8 buckets of `positions` tokens."""
    return int(2 ** math.ceil(math.log2(max(positions / _BUCKETS, 1))))


class LossSums:
    """Counts and float64 sums of losses for the keys 0 to size - 1.

    Args:
        size: how many keys there are.
    """

    def __init__(self, size: int) -> None:
        self.counts = np.zeros(size, np.int64)
        self.sums = np.zeros(size, np.float64)

    def add(self, keys: np.ndarray, losses: np.ndarray) -> None:
        """Add each loss to its key.

        Args:
            keys: int, (N,).
            losses: (N,), nats.
        """
        np.add.at(self.counts, keys, 1)
        np.add.at(self.sums, keys, losses)

    def mean(self) -> float:
        """The mean of all losses."""
        return float(self.sums.sum() / self.counts.sum())

    def means(self) -> list[tuple[int, int, float]]:
        """Return (key, count, mean) for the keys that have a count."""
        return [
            (int(i), int(self.counts[i]), float(self.sums[i] / self.counts[i])) for i in np.flatnonzero(self.counts)
        ]


class LossAccumulator:
    """Losses by document, by position, and by stretches of `context` tokens of a document.

    Positions are those in the document; for the published protocols, whose windows are means of their own, those in
    the window, and a window belongs as a whole to the stretch that it begins in.

    Args:
        documents: token ids of each, (T,).
        windows: all that are read.
        context: of a window, tokens; also of a stretch.
        protocol: of the perplexity.
        bucket: positions of a bucket, tokens; None for `bucket_width`.
    """

    def __init__(
        self,
        documents: Sequence[np.ndarray],
        windows: Sequence[Window],
        context: int,
        protocol: str,
        bucket: int | None,
    ) -> None:
        self.in_document, self.context = protocol == "strided", context
        longest = max(len(documents[w.document]) for w in windows)
        self.positions = longest if self.in_document else context
        self.bucket = bucket or bucket_width(self.positions)
        self.documents = LossSums(len(documents))
        self.buckets = LossSums(self.positions // self.bucket + 1)
        self.stretches = LossSums(longest // context + 1)

    def add(self, window: Window, losses_S: np.ndarray) -> None:
        """Add the losses of a window's scored tokens.

        Args:
            window: of a document.
            losses_S: (S,), nats of each scored token.
        """
        places = np.arange(window.score, window.end)
        begins = np.full_like(places, window.begin)
        self.documents.add(np.full_like(places, window.document), losses_S)
        self.buckets.add((places if self.in_document else places - begins) // self.bucket, losses_S)
        self.stretches.add((places if self.in_document else begins) // self.context, losses_S)

    def by_position(self) -> list[tuple[dict[str, int], int, float]]:
        """Return ({"from", "to"}, count, mean) for each bucket that has a count."""
        return [
            ({"from": i * self.bucket, "to": min((i + 1) * self.bucket, self.positions)}, n, mean)
            for i, n, mean in self.buckets.means()
        ]

    @property
    def over(self) -> str:
        """Resampling unit of the confidence interval: documents, or segments where there is a single document."""
        return "documents" if np.count_nonzero(self.documents.counts) > 1 else "stretches"

    @property
    def units(self) -> LossSums:
        """Losses per resampling unit (documents or segments)."""
        return self.documents if self.over == "documents" else self.stretches

    def interval(self, less: "LossAccumulator | None" = None) -> tuple[float, float] | None:
        """The 95% interval of the mean loss, or of how far it is above that of the same tokens in `less`.

        Args:
            less: losses of the same tokens, read otherwise.

        Returns:
            (low, high), nats per token; None where there are too few units to resample.
        """
        sums = self.units.sums if less is None else self.units.sums - less.units.sums
        scored = self.units.counts > 0
        return bootstrap_interval(sums[scored], self.units.counts[scored])


def gain_over(short: LossAccumulator, full: LossAccumulator) -> dict[str, Any]:
    """The gain of the full context over a short one, in nats per token, on the same tokens; see `PerplexityResult`.

    Args:
        short: losses with the short context.
        full: losses of the same tokens with all of it.
    """
    assert (full.buckets.counts == short.buckets.counts).all()
    low, high = short.interval(less=full) or (None, None)
    return {
        "loss_short": short.documents.mean(),
        "gain": short.documents.mean() - full.documents.mean(),
        "low": low,
        "high": high,
        "by_position": [
            {**place, "gain": mean_short - mean, "tokens": n}
            for (place, n, mean), (_, _, mean_short) in zip(full.by_position(), short.by_position(), strict=True)
        ],
    }
