"""RULER's 13 tasks (arXiv 2404.06654, section 4 and appendix B), with the settings of its public repository."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Literal

from lengthen.evaluation.haystack import Essay
from lengthen.evaluation.ruler.aggregation import common_words, frequent_words
from lengthen.evaluation.ruler.prompt_builder import PromptBuilder
from lengthen.evaluation.ruler.questions import DocumentQuestions, question_answering
from lengthen.evaluation.ruler.retrieval import Needles, niah
from lengthen.evaluation.ruler.tracing import variable_tracking

__all__ = ["TASKS", "RulerTask", "RulerTexts", "SampleRequest"]


@dataclass(frozen=True)
class RulerTexts:
    """The texts that prompts are made of, beside the word lists.

    Attributes:
        essay: prose for the needle tasks.
        questions: for "qa_1" and "qa_2", where their files were given.
    """

    essay: Essay
    questions: dict[str, DocumentQuestions]


@dataclass(frozen=True)
class SampleRequest:
    """The length, texts and random numbers of a sample.

    Attributes:
        rng: draws all that is random.
        tokens: length of prompt and answer together, which some tasks' settings depend on.
        sources: of text.
        number: which question is asked, for question answering.
    """

    rng: Random
    tokens: int
    sources: RulerTexts
    number: int


@dataclass(frozen=True)
class RulerTask:
    """One task.

    Attributes:
        answer_tokens: what a model may generate; the length measured includes them.
        match: whether the score is the share of the answers found, or any one of them is enough.
        make: builds the prompt of a sample.
    """

    answer_tokens: int
    match: Literal["all", "any"]
    make: Callable[[SampleRequest], PromptBuilder]


def _niah(needles: Needles) -> RulerTask:
    return RulerTask(128, "all", lambda sample: niah(needles, sample.rng, sample.sources.essay))


def _qa(name: str) -> RulerTask:
    def make(sample: SampleRequest) -> PromptBuilder:
        return question_answering(sample.sources.questions[name], sample.number, sample.rng)

    return RulerTask(32, "any", make)


TASKS: dict[str, RulerTask] = {
    "niah_single_1": _niah(Needles("noise")),
    "niah_single_2": _niah(Needles("essay")),
    "niah_single_3": _niah(Needles("essay", values="uuids")),
    "niah_multikey_1": _niah(Needles("essay", key_count=4)),
    "niah_multikey_2": _niah(Needles("needles")),
    "niah_multikey_3": _niah(Needles("needles", keys="uuids", values="uuids")),
    "niah_multivalue": _niah(Needles("essay", value_count=4)),
    "niah_multiquery": _niah(Needles("essay", query_count=4)),
    "vt": RulerTask(30, "all", lambda sample: variable_tracking(sample.rng, sample.tokens)),
    "cwe": RulerTask(120, "all", lambda sample: common_words(sample.rng, sample.tokens)),
    "fwe": RulerTask(50, "all", lambda sample: frequent_words(sample.rng, sample.tokens)),
    "qa_1": _qa("qa_1"),
    "qa_2": _qa("qa_2"),
}
"""By name, in the paper's order."""
