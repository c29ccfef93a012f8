"""A prompt whose length is still open, and how it is brought to an exact number of tokens."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from lengthen.errors import DataError

__all__ = ["PromptBuilder"]

_NEIGHBOURS = 8
_FIRST_STEP = 8
_MOST_DOTS = 4


@dataclass(frozen=True)
class PromptBuilder:
    """One sample of a task before its length is chosen.

    Attributes:
        answers: what a right answer holds.
        render: the prompt with `n_items` items of haystack (lines, words or documents), `n_chars` characters of filler,
            which is more haystack that is cut anywhere, and `n_dots` single dots at the cut. The same arguments give
            the same text.
        least_items: the fewest items that make sense.
        most_items: as many items as there are.
        max_chars: the most filler, longer than any three items.
    """

    answers: tuple[str, ...]
    render: Callable[[int, int, int], str]
    least_items: int
    most_items: int
    max_chars: int

    def least_tokens(self, count: Callable[[str], int]) -> int:
        """The tokens of the shortest prompt.

        Args:
            count: the tokens of a text, special tokens included.
        """
        return count(self.render(self.least_items, 0, 0))

    def prompt_of_length(self, count: Callable[[str], int], tokens: int) -> str:
        """The prompt of exactly `tokens` tokens: as many whole items as fit, and filler.

        Args:
            count: the tokens of a text, special tokens included.
            tokens: at least `least_tokens`.

        Raises:
            DataError: there is too little text, or the tokenizer makes no prompt of exactly this length.
        """

        def size(n_dots: int, n_items: int, n_chars: int) -> int:
            return count(self.render(n_items, n_chars, n_dots))

        most = _largest(lambda n_items: size(0, n_items, 0), tokens, self.least_items, self.most_items)
        nearest = size(0, most, self.max_chars if most == self.most_items else 0)
        if nearest < tokens and most == self.most_items:
            raise DataError(
                f"there is text for {nearest} tokens, but {tokens} are needed; give more of it or lower `lengths`"
            )
        # Where no filler ends exactly, another number of items may, or a few dots.
        tries = ((n_dots, most - fewer) for n_dots in range(_MOST_DOTS + 1) for fewer in range(3))
        for n_dots, n_items in tries:
            if n_items < self.least_items or size(n_dots, n_items, 0) > tokens:
                continue
            longest = _largest(partial(size, n_dots, n_items), tokens, 0, self.max_chars)
            # More characters can be fewer tokens, so that the right length may also lie a little further.
            for n_chars in range(longest, min(longest + _NEIGHBOURS, self.max_chars) + 1):
                reached = size(n_dots, n_items, n_chars)
                if reached == tokens:
                    return self.render(n_items, n_chars, n_dots)
                nearest = min(nearest, reached, key=lambda size: abs(size - tokens))
        raise DataError(
            f"this tokenizer makes no prompt of exactly {tokens} tokens, the nearest has {nearest}; choose another "
            "length"
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
