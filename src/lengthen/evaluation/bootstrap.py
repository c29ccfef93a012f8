"""Confidence intervals of means over units that are drawn again and again."""

import numpy as np

__all__ = ["bootstrap_interval"]

_RESAMPLES = 2000
_SEED = 0
_PERCENT = (2.5, 97.5)


def bootstrap_interval(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float] | None:
    """The 95% percentile interval of the pooled mean ``sum(sums) / sum(counts)``, units drawn with replacement.

    Args:
        sums: (units,) sum of the values in each unit, such as a document's losses.
        counts: (units,) how many values each unit has, at least 1.

    Returns:
        Lower and upper end, the same for the same input; None for fewer than two units.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    units = len(sums)
    if units < 2:
        return None
    generator = np.random.default_rng(_SEED)
    means = np.empty(_RESAMPLES)
    for i in range(_RESAMPLES):
        drawn = generator.integers(units, size=units)
        means[i] = sums[drawn].sum() / counts[drawn].sum()
    low, high = np.percentile(means, _PERCENT)
    return float(low), float(high)
