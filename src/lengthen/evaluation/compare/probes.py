"""The questions to both models: prompts, and how their answers are scored."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lengthen.errors import DataError
from lengthen.evaluation.answers import ScoredAnswer
from lengthen.evaluation.haystack import Haystack
from lengthen.evaluation.prompts import Prompt, make_prompt
from lengthen.evaluation.retrieval.babilong import TASKS as BABILONG
from lengthen.evaluation.retrieval.babilong import babilong_prompt
from lengthen.evaluation.retrieval.needle import LOOKUPS, NEEDLES, needle_prompt
from lengthen.evaluation.ruler.run import make_prompts
from lengthen.evaluation.ruler.tasks import RulerTexts

__all__ = [
    "Probe",
    "babilong_probe",
    "cloze_probe",
    "copy_probe",
    "default_lengths",
    "needle_probe",
    "ruler_probe",
]

_WORDINGS = {"needle": NEEDLES, "lookup": LOOKUPS}

# Copying: examples that show what is asked, and digits of the numbers that are copied.
_EXAMPLES, _DIGITS = 3, (5, 8, 12)

# Cloze: tokens of the passage and of each continuation, and continuations to choose from.
_PASSAGE, _CONTINUATION, _CHOICES = 96, 12, 4


@dataclass(frozen=True)
class Probe:
    """Prompts of one task at one length.

    Attributes:
        task: its name.
        tokens: of prompt and answer together, or the most that a prompt of several lengths has.
        prompts: with equally many questions.
        depths: of each question's fact, where the task has depths.
        choices: how many candidates each question is asked with, the right one first; 1 where there are none.
    """

    task: str
    tokens: int
    prompts: list[Prompt]
    depths: Sequence[float] | None = None
    choices: int = 1

    def scores(self, answers: Sequence[ScoredAnswer]) -> list[float]:
        """The score of each question of a prompt, 0 to 1.

        With candidates, whether the right one is the likeliest of them as a whole; else the share of what is asked for
        whose every token is the likeliest.
        """
        if self.choices == 1:
            return [answer.found for answer in answers]
        losses = np.array([sum(answer.losses) for answer in answers]).reshape(-1, self.choices)
        return (losses.argmin(axis=1) == 0).astype(float).tolist()


def default_lengths(base_context: int, context: int) -> list[int]:
    """The run's context and halves of it, down to a quarter of the base's, tokens in rising order.

    Args:
        base_context: of the base, tokens.
        context: of the run, tokens.
    """
    least = max(base_context // 4, min(256, context))
    halves = [context // 2**power for power in range(context.bit_length())]
    return [length for length in reversed(halves) if length >= least]


def needle_probe(
    tokenizer: Any,
    haystack: Haystack,
    tokens: int,
    depths: Sequence[float],
    trials: int,
    seed: int,
    task: str = "needle",
) -> Probe:
    """The prompts of `lengthen eval needle`: the same seed, length, depths and number give the same prompt.

    Args:
        tokenizer: of the run.
        haystack: the text around the needles.
        tokens: of a prompt with its answer.
        depths: of the needles, 0 to 1; one question each.
        trials: prompts.
        seed: of what is hidden where.
        task: "needle"; or "lookup", numbers that statements of Python give to keys: the needles of a model of code.

    Raises:
        DataError: no prompt of this length can be made.
    """
    label, wording = " ".join(map(str, depths)), _WORDINGS[task]
    generators = [random.Random(f"{seed} {tokens} {label} {i}") for i in range(trials)]
    prompts = [needle_prompt(tokenizer, haystack, tokens, depths, generator, wording) for generator in generators]
    return Probe(task, tokens, prompts, depths)


def ruler_probe(tokenizer: Any, sources: RulerTexts, task: str, tokens: int, trials: int, seed: int) -> Probe:
    """The prompts of `lengthen eval ruler`.

    Args:
        tokenizer: of the run.
        sources: the texts that tasks are made of.
        task: one of RULER's.
        tokens: of a prompt with its answer.
        trials: prompts.
        seed: of the prompts.

    Raises:
        DataError: no prompt of this length can be made.
    """
    return Probe(task, tokens, make_prompts(task, tokenizer, tokens, trials, seed, sources).prompts)


def babilong_probe(tokenizer: Any, haystack: Haystack, task: str, tokens: int, trials: int, seed: int) -> Probe:
    """The prompts of `lengthen.evaluation.retrieval.babilong`.

    Args:
        tokenizer: of the run.
        haystack: the text around the story.
        task: one of BABILong's.
        tokens: of a prompt with its answer.
        trials: prompts.
        seed: of the stories.

    Raises:
        DataError: no prompt of this length can be made.
    """
    generators = [random.Random(f"{seed} {task} {tokens} {i}") for i in range(trials)]
    prompts = [babilong_prompt(tokenizer, haystack, task, tokens, generator) for generator in generators]
    return Probe(task, tokens, prompts, choices=BABILONG[task].choices)


def copy_probe(tokenizer: Any, trials: int, seed: int) -> Probe:
    """Numbers of 5, 8 and 12 digits to be copied, after examples: what linear interpolation loses at any length.

    Args:
        tokenizer: of the run.
        trials: prompts, each with a number of every size.
        seed: of the numbers.
    """
    prompts = []
    for i in range(trials):
        generator = random.Random(f"{seed} copy {i}")

        def number(digits: int, generator: random.Random = generator) -> str:
            return str(generator.randrange(10 ** (digits - 1), 10**digits))

        shown = [number(digits) for digits in _DIGITS for _ in range(_EXAMPLES)]
        generator.shuffle(shown)
        text = "Each number is written twice.\n" + "".join(f"{each} = {each}\n" for each in shown)
        asked = [number(digits) for digits in _DIGITS]
        prompts.append(make_prompt(tokenizer, text, [(f"{each} =", each) for each in asked]))
    return Probe("copy digits", max(prompt.tokens for prompt in prompts), prompts)


def cloze_probe(tokenizer: Any, haystack: Haystack, trials: int, seed: int) -> Probe:
    """Which of four continuations a passage of the haystack has; the others are from elsewhere in it.

    Args:
        tokenizer: of the run.
        haystack: where the passages are from.
        trials: prompts.
        seed: of the passages.

    Raises:
        DataError: the haystack is too short.
    """
    if haystack.tokens < 4 * (_PASSAGE + _CONTINUATION):
        raise DataError(f"a haystack of {haystack.tokens} tokens is too short for passages; give a longer one")
    prompts = []
    for i in range(trials):
        generator = random.Random(f"{seed} cloze {i}")
        starts = [generator.randrange(haystack.tokens) for _ in range(_CHOICES)]
        passage = haystack.take(starts[0], _PASSAGE).strip()
        ends = [haystack.take(start + _PASSAGE, _CONTINUATION).strip() for start in starts]
        prompts.append(make_prompt(tokenizer, passage, [("", end or ".") for end in ends]))
    return Probe("cloze", max(prompt.tokens for prompt in prompts), prompts, choices=_CHOICES)
