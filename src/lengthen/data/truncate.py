"""Truncation in the middle of a document, where a text is too long: one way for training, chat and benchmarks."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

__all__ = ["cut_middle", "token_spans"]


def token_spans(tokenizer: Any, text: str) -> list[tuple[int, int]]:
    """The characters of each token of a text; without a fast tokenizer an even spread.

    Args:
        tokenizer: whose tokens are counted; special tokens spelled in the text are plain text.
        text: of any length.
    """
    options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    if tokenizer.is_fast:
        return list(tokenizer(text, return_offsets_mapping=True, **options)["offset_mapping"])
    count = len(tokenizer(text, **options)["input_ids"])
    ends = [round(number * len(text) / max(1, count)) for number in range(count + 1)]
    return list(pairwise(ends))


def cut_middle(
    spans: Sequence[Sequence[int]], excess: int, excess_without: Callable[[int, int, int], int]
) -> tuple[int, int, int] | None:
    """Find how much of a document's middle has to go; half of what is kept is at either end.

    The tokens of the whole prompt are what counts, and the ends of a cut may join into more tokens than they were. So
    each cut is tried, and made longer by what is still too much.

    Args:
        spans: first and last character of each of the document's tokens.
        excess: tokens by which the prompt is too long with the whole document.
        excess_without: from the first character of a cut, the one behind it and the tokens cut, to the tokens by which
            the prompt is still too long.

    Returns:
        First character, the one behind the last, and tokens of the cut; None where a single token of the document would
        be too much.
    """
    while excess < len(spans):
        kept = len(spans) - excess
        left = int(spans[(kept + 1) // 2 - 1][1])
        # A character of several tokens may be on both sides.
        right = max(left, int(spans[len(spans) - kept // 2][0])) if kept > 1 else int(spans[-1][1])
        more = excess_without(left, right, excess)
        if more <= 0:
            return left, right, excess
        excess += more
    return None
