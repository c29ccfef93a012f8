"""RULER's needle-in-a-haystack tasks: values of keys, hidden in noise, in prose, or among other keys."""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from lengthen.evaluation.haystack import NOISE, Essay
from lengthen.evaluation.ruler.prompt_builder import PromptBuilder
from lengthen.evaluation.ruler.words import ADJECTIVES, NOUNS

__all__ = ["Needles", "niah", "spread"]

_NEEDLE = "One of the special magic {things} for {key} is: {value}."
_MANY = """Some special magic {things} are hidden in the text below. Memorize them; you will be asked about them.
{context}
What are all the special magic {things} for {query} in the text above? The special magic {things} for {query} are"""
_ONE = """A special magic {thing} is hidden in the text below. Memorize it; you will be asked about it.
{context}
What is the special magic {thing} for {query} in the text above? The special magic {thing} for {query} is"""

# RULER's 40 even depths, of which each needle gets another one.
_DEPTHS = [step / 39 for step in range(40)]

_FILLER_LINES = 9


@dataclass(frozen=True)
class Needles:
    """The needles of a task.

    Attributes:
        haystack: noise (the same line again and again), essay (prose) or needles (of other keys).
        keys: what keys look like.
        values: what values look like.
        key_count: keys of which only one is asked for.
        value_count: values of each key, all of them asked for.
        query_count: keys that are asked for, when more than one.
    """

    haystack: Literal["noise", "essay", "needles"]
    keys: Literal["words", "uuids"] = "words"
    values: Literal["numbers", "uuids"] = "numbers"
    key_count: int = 1
    value_count: int = 1
    query_count: int = 1


def niah(needles: Needles, rng: Random, essay: Essay) -> PromptBuilder:
    """A sample of a needle task; an item is a line or a sentence of the haystack.

    Args:
        needles: what is hidden, and among what.
        rng: draws keys, values and depths.
        essay: the prose.
    """
    key_count = max(needles.key_count, needles.query_count)
    draw_key, draw_value = _distinct(needles.keys, rng), _distinct(needles.values, rng)
    values = {draw_key(): [draw_value() for _ in range(needles.value_count)] for _ in range(key_count)}

    def sentence(key: str, value: str) -> str:
        return _NEEDLE.format(things=needles.values, key=key, value=value)

    hidden = [sentence(key, value) for key in values for value in values[key]]
    rng.shuffle(hidden)
    depths = sorted(rng.sample(_DEPTHS, len(hidden)))
    queries = rng.sample(sorted(values), needles.query_count)
    query = queries[0] if len(queries) == 1 else ", ".join(queries[:-1]) + ", and " + queries[-1]

    start = rng.randrange(len(essay.sentences))
    distractors: list[str] = []

    def lines(count: int) -> list[str]:
        if needles.haystack == "noise":
            return [NOISE] * count
        if needles.haystack == "essay":
            return essay.take(start, count)
        distractors.extend(sentence(draw_key(), draw_value()) for _ in range(count - len(distractors)))
        return distractors[:count]

    separator = " " if needles.haystack == "essay" else "\n"
    filler_text = separator.join([*lines(_FILLER_LINES), ""])
    answers = tuple(value for key in queries for value in values[key])
    template = _ONE if len(answers) == 1 else _MANY

    def render(n_items: int, n_chars: int, n_dots: int) -> str:
        # As if the haystack had begun earlier, in the middle of a sentence.
        cut = ". " * n_dots + filler_text[len(filler_text) - n_chars :]
        context = cut + separator.join(spread(lines(_FILLER_LINES + n_items)[_FILLER_LINES:], hidden, depths))
        thing = needles.values.removesuffix("s")
        return template.format(things=needles.values, thing=thing, context=context, query=query)

    return PromptBuilder(answers, render, least_items=0, most_items=2**31, max_chars=len(filler_text))


def spread(lines: Sequence[str], hidden: Sequence[str], depths: Sequence[float]) -> list[str]:
    """Put each of `hidden` among the lines at its depth, the share of lines that come before it; depths ascend.

    Args:
        lines: of the haystack.
        hidden: lines to put among them.
        depths: of each, 0 to 1.
    """
    placed = list(lines)
    for text, depth in reversed(list(zip(hidden, depths, strict=True))):
        placed.insert(int(len(lines) * depth), text)
    return placed


def _distinct(kind: str, rng: Random) -> Callable[[], str]:
    """A function that draws keys or values of a kind and never the same one again."""
    drawn: set[str] = set()

    def draw() -> str:
        while True:
            found = _DRAW[kind](rng)
            if found not in drawn:
                drawn.add(found)
                return found

    return draw


_DRAW: dict[str, Callable[[Random], str]] = {
    "words": lambda rng: f"{rng.choice(ADJECTIVES)}-{rng.choice(NOUNS)}",
    "numbers": lambda rng: str(rng.randint(1_000_000, 9_999_999)),
    "uuids": lambda rng: str(uuid.UUID(int=rng.getrandbits(128), version=4)),
}
