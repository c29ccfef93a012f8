"""A prompt whose length is still open, and how it is brought to an exact number of tokens."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from lengthen.errors import DataError

__all__ = ["Draft", "exact_prompt", "least_tokens"]

_NEIGHBOURS = 8
_FIRST_STEP = 8
_MOST_DOTS = 4


@dataclass(frozen=True)
class Draft:
    """One sample of a task before its length is chosen.

    Attributes:
        answers: what a right answer holds.
        render: the prompt with so many units of haystack (lines, words or documents), so many characters of filler,
            which is more haystack that is cut anywhere, and so many single dots at the cut. The same arguments give
            the same text.
        least_units: the fewest units that make sense.
        most_units: as many units as there are.
        filler: the most filler characters, longer than any three units.
    """

    answers: tuple[str, ...]
    render: Callable[[int, int, int], str]
    least_units: int
    most_units: int
    filler: int


def least_tokens(draft: Draft, count: Callable[[str], int]) -> int:
    """The tokens of the shortest prompt that a draft gives."""
    return count(draft.render(draft.least_units, 0, 0))


def exact_prompt(draft: Draft, count: Callable[[str], int], tokens: int) -> str:
    """The draft's prompt of exactly `tokens` tokens: as many whole units as fit, and filler.

    Args:
        draft: of a task.
        count: the tokens of a text, special tokens included.
        tokens: at least `least_tokens`.

    Raises:
        DataError: there is too little text, or the tokenizer makes no prompt of exactly this length.
    """

    def size(dots: int, units: int, filler: int) -> int:
        return count(draft.render(units, filler, dots))

    most = _largest(lambda units: size(0, units, 0), tokens, draft.least_units, draft.most_units)
    nearest = size(0, most, draft.filler if most == draft.most_units else 0)
    if nearest < tokens and most == draft.most_units:
        raise DataError(
            f"there is text for {nearest} tokens, but {tokens} are needed; give more of it or lower `lengths`"
        )
    # Where no filler ends exactly, another number of units may, or a few dots.
    tries = ((dots, most - fewer) for dots in range(_MOST_DOTS + 1) for fewer in range(3))
    for dots, units in tries:
        if units < draft.least_units or size(dots, units, 0) > tokens:
            continue
        longest = _largest(partial(size, dots, units), tokens, 0, draft.filler)
        # More characters can be fewer tokens, so that the right length may also lie a little further.
        for filler in range(longest, min(longest + _NEIGHBOURS, draft.filler) + 1):
            reached = size(dots, units, filler)
            if reached == tokens:
                return draft.render(units, filler, dots)
            nearest = min(nearest, reached, key=lambda size: abs(size - tokens))
    raise DataError(
        f"this tokenizer makes no prompt of exactly {tokens} tokens, the nearest has {nearest}; choose another length"
    )


def _largest(measure: Callable[[int], int], limit: int, low: int, high: int) -> int:
    """The largest number from `low` to `high` whose measure is within `limit`, for a measure that grows about evenly.

    `low` itself is taken to be within. Each guess is drawn from the last two measurements, since measuring is slow.
    """
    if low == high:
        return high
    size, step = measure(low), _FIRST_STEP
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
        measured = measure(guess)
        if measured <= limit:
            low, size = guess, measured
        else:
            above, above_size = guess, measured
    return low
