"""What both models are asked: prompts with questions, and how their answers are scored."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lengthen.evaluation.answers import Answer
from lengthen.evaluation.haystack import Haystack
from lengthen.evaluation.needle import needle_prompt
from lengthen.evaluation.prompts import Prompt

__all__ = ["Probe", "needle_probes"]


@dataclass(frozen=True)
class Probe:
    """Prompts of one task at one length.

    Attributes:
        task: its name.
        tokens: of prompt and answer together.
        prompts: with equally many questions.
        depths: of each question's fact, where the task has depths.
    """

    task: str
    tokens: int
    prompts: list[Prompt]
    depths: Sequence[float] | None = None

    def scores(self, answers: Sequence[Answer]) -> list[float]:
        """The score of each question of a prompt, 0 to 1: whether every token of the right answer is the likeliest."""
        return [float(answer.exact) for answer in answers]


def needle_probes(
    tokenizer: Any, haystack: Haystack, lengths: Sequence[int], depths: Sequence[float], trials: int, seed: int
) -> list[Probe]:
    """The prompts of `lengthen eval needle`: the same seed, length, depths and number give the same prompt.

    Raises:
        DataError: no prompt of a length can be made.
    """
    label = " ".join(map(str, depths))

    def prompts(tokens: int) -> list[Prompt]:
        generators = [random.Random(f"{seed} {tokens} {label} {i}") for i in range(trials)]
        return [needle_prompt(tokenizer, haystack, tokens, depths, generator) for generator in generators]

    return [Probe("needle", tokens, prompts(tokens), depths) for tokens in lengths]
