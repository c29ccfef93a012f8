"""Needles in a haystack: facts in real prose, at a grid of depths and lengths."""

import random
from collections.abc import Sequence
from functools import partial
from typing import Any

from lengthen.errors import LengthenError
from lengthen.evaluation.answers import fit
from lengthen.evaluation.haystack import Haystack
from lengthen.evaluation.retrieval import ANSWER_TOKENS, Cell, Trial, random_number, retrieve

__all__ = ["MOST_NEEDLES", "needle", "needle_trial"]

_TASK = "Somewhere in the following text stand magic numbers of cities. Remember them: they are asked for at the end."
_FACT = "The magic number of {city} is {number}."
_CITIES = [
    "Lisbon", "Oslo", "Nairobi", "Lima", "Hanoi", "Cairo", "Toronto", "Vienna", "Santiago", "Jakarta", "Dublin",
    "Bogota", "Helsinki", "Accra", "Manila", "Prague", "Denver", "Osaka", "Sydney", "Warsaw",
]  # fmt: skip
MOST_NEEDLES = len(_CITIES)

# A needle goes to a sentence start at most this share of the haystack away from its depth, else into a sentence.
_REACH = 1 / 40
# Where no length fits, another beginning of the haystack may: its last token then ends elsewhere.
_BEGINNINGS = 5


def needle_trial(
    tokenizer: Any, haystack: Haystack, tokens: int, depth: float, needles: int, generator: random.Random
) -> Trial:
    """Make one prompt, with a random beginning in the haystack, random cities and random numbers.

    Args:
        tokenizer: of the model.
        haystack: the prose.
        tokens: of prompt and answer; the prompt has ``needles * ANSWER_TOKENS`` fewer.
        depth: the share of the haystack's tokens that lie before the first needle, 0 to 1; the others follow at equal
            distances in what is left.
        needles: how many, 1 to `MOST_NEEDLES`.
        generator: draws all that is random.

    Raises:
        DataError: no prompt of this length can be made.
    """
    cities = generator.sample(_CITIES, needles)
    expected = [random_number(generator) for _ in cities]
    facts = [_FACT.format(city=city, number=number) for city, number in zip(cities, expected, strict=True)]
    question = _question(cities)

    def build(start: int, size: int) -> str:
        pieces, done = [_TASK], 0
        for i, fact in enumerate(facts):
            place = round(size * (depth + (1 - depth) * i / needles))
            cut = min(size, haystack.near_sentence(start + place, int(size * _REACH)) - start)
            pieces += [haystack.take(start + done, cut - done), fact]
            done = cut
        return "\n".join([*pieces, haystack.take(start + done, size - done), question])

    starts = generator.choices(haystack.sentences, k=_BEGINNINGS)
    builds = [partial(build, start) for start in starts]
    return Trial(fit(tokenizer, builds, tokens, needles * ANSWER_TOKENS), expected)


def _question(cities: Sequence[str]) -> str:
    if len(cities) == 1:
        return f"What is the magic number of {cities[0]}? The magic number of {cities[0]} is"
    listed = f"{', '.join(cities[:-1])} and {cities[-1]}"
    return f"What are the magic numbers of {listed}, in this order? The magic numbers of {listed} are"


def needle(
    model: Any,
    tokenizer: Any,
    haystack: Haystack,
    lengths: Sequence[int],
    depths: Sequence[float] = (0, 0.25, 0.5, 0.75, 1),
    trials: int = 20,
    *,
    needles: int = 1,
    batch_size: int = 1,
    seed: int = 0,
    quiet: bool = False,
) -> list[Cell]:
    """Count how often the numbers hidden in prose are answered exactly, at each length and depth.

    Args:
        model: a causal language model of transformers, or a PEFT model around one, in evaluation mode.
        tokenizer: its tokenizer.
        haystack: the prose, cut by this tokenizer; where it is shorter than a prompt, it repeats.
        lengths: tokens of prompt and answer together; each needle takes `ANSWER_TOKENS` for its answer.
        depths: shares of the haystack before the first needle, 0 to 1.
        trials: per length and depth, each with other text, cities and numbers.
        needles: facts to be found in one prompt, 1 to `MOST_NEEDLES`; a trial is correct if all are.
        batch_size: prompts that are run together.
        seed: of all that is random.
        quiet: show no progress bar.

    Raises:
        LengthenError: there is nothing to measure, or a depth or the number of needles is out of range.
        DataError: a length is too short, or this tokenizer can't make it.
    """
    if not 1 <= needles <= MOST_NEEDLES:
        raise LengthenError(f"{needles} needles were asked for; there can be 1 to {MOST_NEEDLES}")

    def make(tokens: int, depth: float, generator: random.Random) -> Trial:
        return needle_trial(tokenizer, haystack, tokens, depth, needles, generator)

    room = needles * ANSWER_TOKENS
    return retrieve(model, tokenizer, "needle", make, room, lengths, depths, trials, batch_size, seed, quiet)
