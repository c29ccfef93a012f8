"""Texts of an exact number of tokens: sizes are tried, for only the whole text tells how many tokens it has."""

from collections.abc import Callable
from functools import cache

__all__ = ["exact_size", "largest_within"]

_NEARBY = 8


def exact_size(measure: Callable[[int], int], wanted: int, high: int, first_step: int) -> tuple[int | None, int]:
    """Find a size at which a text has exactly so many tokens.

    Args:
        measure: from a size to the tokens of the text; it grows about evenly. Size 0 is within `wanted`.
        wanted: tokens.
        high: the largest size that there is.
        first_step: a guess of the size that is missing to `wanted`.

    Returns:
        The size; None where none near the right one gives this length (a full stop and a line end can be one token, a
        character three). And the length that came nearest.
    """
    measured = cache(measure)
    longest = largest_within(measured, wanted, 0, high, first_step)
    # More text can be fewer tokens, so that the right length may also lie a little further, or before.
    above = range(longest, min(longest + _NEARBY, high) + 1)
    nearest = measured(longest)
    for size in (*above, *range(longest - 1, max(-1, longest - _NEARBY - 1), -1)):
        if measured(size) == wanted:
            return size, wanted
        nearest = min(nearest, measured(size), key=lambda length: abs(length - wanted))
    return None, nearest


def largest_within(measure: Callable[[int], int], limit: int, low: int, high: int, first_step: int) -> int:
    """The largest size from `low` to `high` whose measure is within `limit`, for a measure that grows about evenly.

    `low` itself is taken to be within. Each guess is drawn from the last two measurements, since measuring is slow.

    Args:
        measure: from a size to tokens.
        limit: tokens.
        low: size to begin at.
        high: the largest size.
        first_step: from `low` to the first guess, at least 1.
    """
    if low == high:
        return high
    size, step = measure(low), first_step
    while True:
        above = min(low + step, high)
        above_size = measure(above)
        if above_size > limit:
            break
        if above == high:
            return high
        grown = above_size - size
        needed = (limit - above_size) * (above - low) // grown + 1 if grown > 0 else 2 * step
        low, size, step = above, above_size, min(needed, 16 * step)
    while above - low > 1:
        guess = low + round((above - low) * (limit - size) / (above_size - size))
        guess = min(max(guess, low + 1), above - 1)
        guessed = measure(guess)
        if guessed <= limit:
            low, size = guess, guessed
        else:
            above, above_size = guess, guessed
    return low
