"""A prompt whose length is still open, and the search for an exact number of tokens."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from lengthen.errors import DataError
from lengthen.evaluation.exact_length import exact_size, largest_within

__all__ = ["PromptBuilder"]

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

        most = largest_within(
            lambda n_items: size(0, n_items, 0), tokens, self.least_items, self.most_items, _FIRST_STEP
        )
        nearest = size(0, most, self.max_chars if most == self.most_items else 0)
        if nearest < tokens and most == self.most_items:
            raise DataError(
                f"there is text for {nearest} tokens, but {tokens} are needed; give more of it or lower `lengths`"
            )
        # Where no filler ends exactly, another number of items may, or a few dots.
        for n_dots, n_items in ((n_dots, most - fewer) for n_dots in range(_MOST_DOTS + 1) for fewer in range(3)):
            if n_items < self.least_items or size(n_dots, n_items, 0) > tokens:
                continue
            n_chars, reached = exact_size(partial(size, n_dots, n_items), tokens, self.max_chars, _FIRST_STEP)
            if n_chars is not None:
                return self.render(n_items, n_chars, n_dots)
            nearest = min(nearest, reached, key=lambda length: abs(length - tokens))
        raise DataError(
            f"this tokenizer makes no prompt of exactly {tokens} tokens, the nearest has {nearest}; choose another "
            "length"
        )
