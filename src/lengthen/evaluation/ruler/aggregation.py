"""RULER's aggregation: the most common words of a list, and the most frequent ones of a coded text."""

import math
import string
from collections.abc import Sequence
from random import Random

from lengthen.evaluation.ruler.prompt_builder import PromptBuilder
from lengthen.evaluation.ruler.words import ADJECTIVES, NOUNS, VERBS

__all__ = ["common_words", "frequent_words"]

_COMMON = 10
_LIST = """Below is a numbered list of words, in which some words appear more often than others. Memorize those that \
appear most often.
{context}
Question: What are the 10 most common words in the list above? Answer: The 10 words that appear most often in the list \
are:"""
# How often common and other words appear, and the example's words with its own two numbers.
_PUBLISHED = ((30, 3), 40, (10, 3))
_SHORT = ((6, 1), 20, (3, 1))
_PUBLISHED_FROM = 4096

_WORDS = sorted({*NOUNS, *ADJECTIVES, *VERBS})
# Longer lists may need more words than there are.
_PAIRS_BEYOND = 16384

# Words that fill a list up to the exact length, and characters of each entry, at most.
_FILLER_WORDS, _ENTRY = 12, 40

_CODED = """Read the coded text below and count how often each coded word appears. {context}
Question: Leaving out the dots '...', which three coded words appear most often in the text above? Answer: The three \
coded words that appear most often are:"""
_NOISE = "..."
_EXPONENT = 2.0
_ZETA = math.pi**2 / 6  # of the exponent
# With fewer, the fourth word is as frequent as the fifth.
_LEAST_CODED = 53
_CODED_FILLER = 64


def common_words(rng: Random, tokens: int) -> PromptBuilder:
    """A sample of common words extraction for a length of `tokens`; an item is a word that is not common.

    Args:
        rng: draws the words and their order.
        tokens: of prompt and answer.
    """
    (common_times, other_times), example_words, example_times = _PUBLISHED if tokens >= _PUBLISHED_FROM else _SHORT
    example = _pick(rng, example_words, tokens)
    solved = _LIST.format(context=_numbered(_repeated(example, *example_times, rng)))
    solved += " " + _numbered(example[:_COMMON]) + "\n"
    # A number with its dot and a word are at least two tokens, so that there are always words enough, or all.
    words = _pick(rng, _COMMON + _FILLER_WORDS + tokens // 2, tokens)
    order = rng.getrandbits(64)

    def render(n_items: int, n_chars: int, n_dots: int) -> str:
        used = _COMMON + n_items
        listed = _repeated(words[:used], common_times, other_times, Random(f"{order} {n_items}"))
        more = _numbered(words[used : used + _FILLER_WORDS], first=len(listed) + 1)
        return solved + _LIST.format(context=_numbered(listed) + f" {more}"[:n_chars] + " ." * n_dots)

    return PromptBuilder(
        tuple(words[:_COMMON]), render, least_items=0, most_items=len(words) - _COMMON - _FILLER_WORDS,
        max_chars=_ENTRY * _FILLER_WORDS,
    )  # fmt: skip


def frequent_words(rng: Random, tokens: int) -> PromptBuilder:
    """A sample of frequent words extraction for a length of `tokens`.

    Words of rank k appear n k^-2 / zeta(2) times, rounded down, the first rank being dots; an item is one of the n.
    There are tokens / 50 words, as published.

    Args:
        rng: draws the words and their order.
        tokens: of prompt and answer.
    """
    words: list[str] = [_NOISE]
    while len(words) < max(6, tokens // 50):
        word = "".join(rng.choices(string.ascii_lowercase, k=6))
        if word not in words:
            words.append(word)
    order = rng.getrandbits(64)

    def render(n_items: int, n_chars: int, n_dots: int) -> str:
        times = [int(n_items * rank**-_EXPONENT / _ZETA) for rank in range(1, len(words) + 1)]
        text = [word for word, count in zip(words, times, strict=True) for _ in range(count)]
        Random(f"{order} {n_items}").shuffle(text)
        context = " ".join(text) + (f" {_NOISE}" * _CODED_FILLER)[:n_chars] + " ." * n_dots
        return _CODED.format(context=context)

    return PromptBuilder(
        tuple(words[1:4]), render, least_items=_LEAST_CODED, most_items=2**31,
        max_chars=_CODED_FILLER * (1 + len(_NOISE)),
    )  # fmt: skip


def _pick(rng: Random, count: int, tokens: int) -> list[str]:
    """`count` different words, or all there are; for long lists pairs of an adjective and a noun."""
    if tokens <= _PAIRS_BEYOND:
        return rng.sample(_WORDS, min(count, len(_WORDS)))
    numbers = rng.sample(range(len(ADJECTIVES) * len(NOUNS)), count)
    return [f"{ADJECTIVES[number // len(NOUNS)]}-{NOUNS[number % len(NOUNS)]}" for number in numbers]


def _repeated(words: Sequence[str], common_times: int, other_times: int, rng: Random) -> list[str]:
    repeated = [*words[:_COMMON]] * common_times + [*words[_COMMON:]] * other_times
    rng.shuffle(repeated)
    return repeated


def _numbered(words: Sequence[str], first: int = 1) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, start=first))
