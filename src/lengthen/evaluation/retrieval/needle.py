"""Needles in a haystack: facts in real prose or code, one at each depth, and each of them asked for."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from lengthen.attention.peers import Peers
from lengthen.errors import LengthenError
from lengthen.evaluation.haystack import Haystack
from lengthen.evaluation.prompts import Prompt, encode, make_prompt, prompt_of_length
from lengthen.evaluation.retrieval.grid import ANSWER_TOKENS, Cell, random_number, retrieve

__all__ = ["DEPTHS", "LOOKUPS", "MOST_NEEDLES", "NEEDLES", "Wording", "hide", "needle", "needle_prompt"]

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)

_CITIES = [
    "Lisbon", "Oslo", "Nairobi", "Lima", "Hanoi", "Cairo", "Toronto", "Vienna", "Santiago", "Jakarta", "Dublin",
    "Bogota", "Helsinki", "Accra", "Manila", "Prague", "Denver", "Osaka", "Sydney", "Warsaw",
]  # fmt: skip
_NAMES = [
    "cache", "color", "domain", "filter", "format", "height", "host", "index", "limit", "module", "network", "offset",
    "owner", "pattern", "port", "queue", "server", "socket", "timeout", "width",
]  # fmt: skip
MOST_NEEDLES = min(len(_CITIES), len(_NAMES))


@dataclass(frozen=True)
class Wording:
    """How facts are stated and asked for.

    Attributes:
        task: what comes before the haystack; nothing where it is empty.
        fact: a line, with {key} and {number} in it.
        question: what the number follows after a space, with {key} in it.
        keys: what has numbers.
    """

    task: str
    fact: str
    question: str
    keys: tuple[str, ...]


NEEDLES = Wording(
    "Somewhere in the following text stand magic numbers of cities. Remember them: they are asked for at the end.",
    "The magic number of {key} is {number}.",
    "What is the magic number of {key}? The magic number of {key} is",
    tuple(_CITIES),
)
"""Sentences, for models of language."""

LOOKUPS = Wording(
    "",
    'numbers["{key}"] = {number}',
    'assert numbers["{key}"] ==',
    tuple(_NAMES),
)
"""Statements of Python, for models of code, which may understand nothing else."""

# A needle is put at a sentence start at most this share of the haystack away from its depth, else into a sentence.
_REACH = 1 / 40
# Where no length fits, another beginning of the haystack may: its last token then ends elsewhere.
_BEGINNINGS = 5


def needle_prompt(
    tokenizer: Any,
    haystack: Haystack,
    tokens: int,
    depths: Sequence[float],
    generator: random.Random,
    wording: Wording = NEEDLES,
) -> Prompt:
    """Make one prompt, with a random beginning in the haystack, random keys and random numbers.

    Args:
        tokenizer: of the model.
        haystack: the prose.
        tokens: of the prompt with its longest question, and `ANSWER_TOKENS` more for the answer.
        depths: for each needle, the share of the haystack's tokens that lie before it, 0 to 1; at most `MOST_NEEDLES`.
        generator: draws all that is random.
        wording: of facts and questions.

    Returns:
        A prompt with a question for each depth, in the order given.

    Raises:
        LengthenError: more depths than there are keys.
        DataError: no prompt of this length can be made.
    """
    if len(depths) > MOST_NEEDLES:
        raise LengthenError(f"{len(depths)} needles were asked for in one prompt; there can be 1 to {MOST_NEEDLES}")
    keys = generator.sample(wording.keys, len(depths))
    values = [random_number(generator) for _ in keys]
    needles = sorted(zip(depths, keys, values, strict=True))
    questions = [wording.question.format(key=key) for key in keys]
    longest = max(questions, key=lambda question: len(encode(tokenizer, question)))

    facts = [(depth, wording.fact.format(key=key, number=number)) for depth, key, number in needles]

    def build(start: int, size: int, question: str) -> str:
        task = [wording.task] if wording.task else []
        return "\n".join([*task, *hide(haystack, start, size, facts), question])

    starts = generator.choices(haystack.sentences, k=_BEGINNINGS)
    builds = [partial(build, start, question=longest) for start in starts]
    text = prompt_of_length(tokenizer, builds, tokens, ANSWER_TOKENS).removesuffix(longest)
    return make_prompt(tokenizer, text, list(zip(questions, values, strict=True)))


def hide(haystack: Haystack, start: int, size: int, facts: Sequence[tuple[float, str]]) -> list[str]:
    """Facts among pieces of the haystack, each before a sentence where one begins near its depth.

    Args:
        haystack: the prose.
        start: token of it at which the pieces begin.
        size: tokens of all pieces together.
        facts: the share of these tokens that lie before each, 0 to 1, in rising order; and its text.

    Returns:
        A piece and a fact in turn, and the last piece.
    """
    pieces, done = [], 0
    for depth, fact in facts:
        place = round(size * depth)
        cut = min(size, max(done, haystack.near_sentence(start + place, int(size * _REACH)) - start))
        pieces += [haystack.take(start + done, cut - done), fact]
        done = cut
    return [*pieces, haystack.take(start + done, size - done)]


def needle(
    model: Any,
    tokenizer: Any,
    haystack: Haystack,
    lengths: Sequence[int],
    depths: Sequence[float] = DEPTHS,
    trials: int = 20,
    *,
    generate: bool = True,
    batch_size: int = 1,
    seed: int = 0,
    peers: Peers | None = None,
) -> list[Cell]:
    """Measure how well numbers hidden in prose are found, at each length and depth.

    A prompt has a needle at every depth and is read once; then each of them is asked for.

    Args:
        model: a causal language model of transformers, or a PEFT model around one, in evaluation mode.
        tokenizer: its tokenizer.
        haystack: the prose, cut by this tokenizer; where it is shorter than a prompt, it repeats.
        lengths: tokens of the prompt with its longest question and answer.
        depths: shares of the haystack before each needle, 0 to 1; at most `MOST_NEEDLES`.
        trials: prompts per length, each with other text, cities and numbers.
        generate: also let the model answer, and count the right answers.
        batch_size: prompts that are run together.
        seed: of all that is random.
        peers: processes that read each prompt together; see `retrieve`.

    Raises:
        LengthenError: there is nothing to measure, a depth is out of range, or there are too many.
        DataError: a length is too short, or this tokenizer can't make it.
    """

    def make(tokens: int, places: Sequence[float], generator: random.Random) -> Prompt:
        return needle_prompt(tokenizer, haystack, tokens, places, generator)

    return retrieve(
        model, tokenizer, "needle", make, lengths, [list(depths)], trials,
        generate=generate, batch_size=batch_size, seed=seed, peers=peers,
    )  # fmt: skip
