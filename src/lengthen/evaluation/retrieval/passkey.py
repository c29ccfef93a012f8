"""Passkey retrieval: a number in a long text that repeats itself, as Landmark Attention asks for it."""

import random
from collections.abc import Sequence
from functools import partial
from typing import Any

from lengthen.attention.peers import Peers
from lengthen.evaluation.haystack import NOISE, Haystack
from lengthen.evaluation.prompts import Prompt, make_prompt, prompt_of_length
from lengthen.evaluation.retrieval.grid import ANSWER_TOKENS, Cell, random_number, retrieve

__all__ = ["passkey", "passkey_filler", "passkey_prompt"]

# The published prompt, word for word: numbers are comparable only so.
_TASK = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there."
)
_KEY = "The pass key is {key}. Remember it. {key} is the pass key."
_QUESTION = "What is the pass key? The pass key is"

# Where no length fits, it does with the key a token or two away from its depth.
_SHIFTS = (0, 1, -1, 2, -2)


def passkey_prompt(tokenizer: Any, filler: Haystack, tokens: int, depth: float, generator: random.Random) -> Prompt:
    """Make one prompt.

    Args:
        tokenizer: of the model.
        filler: from `passkey_filler`.
        tokens: of prompt and answer; the prompt has `ANSWER_TOKENS` fewer.
        depth: the share of the filler's tokens that lie before the key, 0 to 1.
        generator: draws the key.

    Raises:
        DataError: no prompt of this length can be made.
    """
    key = random_number(generator)

    def build(shift: int, size: int) -> str:
        before = min(max(0, round(depth * size) + shift), size)
        # The published filler begins anew behind the key.
        lines = (_TASK, filler.take(0, before), _KEY.format(key=key), filler.take(0, size - before), _QUESTION)
        return "\n".join(lines)

    text = prompt_of_length(tokenizer, [partial(build, shift) for shift in _SHIFTS], tokens, ANSWER_TOKENS)
    return make_prompt(tokenizer, text.removesuffix(_QUESTION), [(_QUESTION, key)])


def passkey_filler(tokenizer: Any) -> Haystack:
    """The sentences around the key. They repeat; one repetition is not enough, for the first word has no space."""
    return Haystack(tokenizer, f"{NOISE} " * 200)


def passkey(
    model: Any,
    tokenizer: Any,
    lengths: Sequence[int],
    depths: Sequence[float] = (0, 0.25, 0.5, 0.75, 1),
    trials: int = 20,
    *,
    generate: bool = True,
    batch_size: int = 1,
    seed: int = 0,
    peers: Peers | None = None,
) -> list[Cell]:
    """Measure how well a number of five digits is found, at each length and depth.

    Prompt and room for the answer (`ANSWER_TOKENS`) have exactly the length asked for. The first number in a generated
    answer has to be the key; tokens are not compared. There is no chat template, as published.

    Args:
        model: a causal language model of transformers, or a PEFT model around one, in evaluation mode.
        tokenizer: its tokenizer.
        lengths: in tokens.
        depths: shares of the filler before the key, 0 to 1.
        trials: per length and depth, each with a key of its own.
        generate: also let the model answer, and count the right answers.
        batch_size: prompts that are run together; all of a cell have one length.
        seed: of the keys.
        peers: processes that read each prompt together; see `retrieve`.

    Raises:
        LengthenError: there is nothing to measure, or a depth is not from 0 to 1.
        DataError: a length is too short, or this tokenizer can't make it.

    Source: arXiv 2305.16300 (Landmark Attention), section 4.2, and its repository's run_test.py. There keys are drawn
        from 1 to 50,000 and lengths and depths are counted in characters.
    """
    filler = passkey_filler(tokenizer)

    def make(tokens: int, places: Sequence[float], generator: random.Random) -> Prompt:
        return passkey_prompt(tokenizer, filler, tokens, places[0], generator)

    return retrieve(
        model, tokenizer, "passkey", make, lengths, [[depth] for depth in depths], trials,
        generate=generate, batch_size=batch_size, seed=seed, peers=peers,
    )  # fmt: skip
