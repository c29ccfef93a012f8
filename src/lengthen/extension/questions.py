"""The questions to base and run: at which lengths, how often, about which documents; and the time that they take."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedConfig

from lengthen.data.token_store import TokenStore
from lengthen.errors import DataError
from lengthen.evaluation.answers import ask
from lengthen.evaluation.compare import (
    Questionnaire,
    cloze_probe,
    copy_probe,
    default_lengths,
    needle_probe,
)
from lengthen.evaluation.compare.verdict import RETRIEVAL
from lengthen.evaluation.haystack import Haystack, documentation
from lengthen.evaluation.retrieval.needle import DEPTHS
from lengthen.extension.look import read
from lengthen.extension.request import ExtendRequest
from lengthen.recipe import Recipe

__all__ = [
    "MEASURING_SHARE",
    "SEED",
    "QuestionPlan",
    "choose_questions",
    "choose_task",
    "documents_to_measure",
    "haystack_of",
    "make_asked",
    "spread_documents",
]

# Prompts at the longest length, and documents; shorter prompts get more, as they cost less.
_LEVELS = ((16, 16), (8, 8), (4, 4), (2, 2), (1, 1))
_MOST_TRIALS, _SHORT_TRIALS = 20, 20
_SCALED_SHARE = 0.2  # of the hours that it may take with the base with scaled positions, which decides nothing
_KNOWS = 0.5  # score from which on a base can do a task
_TRY_TOKENS, _TRY_TRIALS = 1024, 4
_HAYSTACK_TOKENS = 1 << 17
_STRIDES = 4  # by which the base's window moves over its width
SEED = 0

MEASURING_SHARE = 0.3
"""Of the hours, what all measuring may take, unless one prompt of each length takes more."""


@dataclass(frozen=True)
class QuestionPlan:
    """How much is asked.

    Attributes:
        lengths: of prompt and answer, tokens.
        trials: prompts at each of these lengths.
        documents: how many are read.
        scaled: whether the base with the run's positions is asked too.
        task: of `lengthen.evaluation.compare.verdict.RETRIEVAL`; None where the base could not be tried, in a plan for
            another device.
        seconds: for a side, about.
    """

    lengths: tuple[int, ...]
    trials: tuple[int, ...]
    documents: int
    scaled: bool
    seconds: float
    task: str | None = None

    @property
    def sides(self) -> int:
        """How many models are asked."""
        return 3 if self.scaled else 2


def choose_questions(
    context: int, target: int, hours: float, documents: int, seconds_of: Callable[[Sequence[int]], float]
) -> QuestionPlan:
    """As many questions as can be had in 30% of the time, at the least one prompt of each length.

    Args:
        context: of the base, tokens.
        target: of the run, tokens.
        hours: for everything.
        documents: that there are.
        seconds_of: the time that a model takes to read texts of so many tokens.
    """
    lengths = tuple(default_lengths(context, target))
    for longest, read_documents in _LEVELS:
        trials = tuple(min(_MOST_TRIALS, longest * target // length) for length in lengths)
        count = min(read_documents, documents)
        prompts = [length for length, times in zip(lengths, trials, strict=True) for _ in range(times)]
        windows = 1 + _STRIDES * (target - context) // context  # in which the base reads a document
        seconds = max(seconds_of([*prompts, *texts]) for texts in ([target] * count, [context] * windows * count))
        scaled = 3 * seconds <= _SCALED_SHARE * hours * 3600
        if (3 if scaled else 2) * seconds <= MEASURING_SHARE * hours * 3600:
            break
    return QuestionPlan(lengths, trials, count, scaled, seconds)


def documents_to_measure(
    request: ExtendRequest,
    recipe: Recipe,
    tokenizer: Any,
    config: PreTrainedConfig,
    on_read: Callable[[], None] = lambda: None,
) -> TokenStore:
    """Documents that are not trained on; all of them where none are kept apart.

    Args:
        request: names documents to measure on, or the data of which some are kept apart.
        recipe: says which these are.
        tokenizer: of the base.
        config: of the base.
        on_read: as in `load_tokens`.

    Raises:
        DataError: the documents can't be read.
    """
    if request.eval_data:
        return read(request.eval_data, tokenizer, config, on_read)[0]
    store, _ = read(request.data, tokenizer, config, on_read)
    chosen = [index for index, name in enumerate(store.names) if name in set(recipe.data.held_out)]
    return store.take(chosen) if chosen else store


def haystack_of(store: TokenStore, tokenizer: Any) -> Haystack:
    """The documents as the text around what is hidden; where they are short, Python's documentation.

    Args:
        store: documents that are not trained on.
        tokenizer: of the base.
    """
    parts: list[str] = []
    tokens = 0
    for index in range(len(store)):
        if tokens >= _HAYSTACK_TOKENS:
            break
        ids = store[index][: _HAYSTACK_TOKENS - tokens]
        text = tokenizer.decode(ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        parts.append(text.strip().strip("\ufffd"))
        tokens += len(ids)
    source, text = ("documents", "\n\n".join(parts)) if tokens >= _TRY_TOKENS else documentation()
    return Haystack(tokenizer, text, source)


def choose_task(
    model: Any, tokenizer: Any, haystack: Haystack, context: int, on_prompt: Callable[[], None] = lambda: None
) -> str:
    """The kind of question about hidden facts that a base is to be asked, by what it answers within its context.

    The first that it answers half of, unless it misses another less than half as often; else the one it answers best.

    Args:
        model: the base, loaded.
        tokenizer: of the base.
        haystack: the text around what is hidden.
        context: of the base, tokens.
        on_prompt: called after each prompt.

    Raises:
        DataError: none can be asked within the context.
    """
    scores = {}
    for task in RETRIEVAL:
        try:
            probe = needle_probe(tokenizer, haystack, min(context, _TRY_TOKENS), DEPTHS, _TRY_TRIALS, SEED, task)
        except DataError as error:
            refused = error
            continue
        answers = []
        for prompt in probe.prompts:
            answers += ask(model, tokenizer, [prompt])
            on_prompt()
        scores[task] = float(np.mean([probe.scores(each) for each in answers]))
    if not scores:
        raise DataError(f"the base's context of {context} tokens has no room for a question: {refused}")
    best = max(scores, key=lambda task: scores[task])
    known = (task for task in scores if scores[task] >= _KNOWS and 1 - scores[task] <= 2 * (1 - scores[best]))
    return next(known, best)


def spread_documents(store: TokenStore, count: int, target: int) -> list[int]:
    """Which documents to measure on: of those that reach the target some from everywhere, else the longest.

    Args:
        store: all that may be measured on.
        count: how many are wanted, at most as many as there are.
        target: context of the run, tokens.

    Returns:
        Their indices in the store.
    """
    longest = np.argsort(-store.lengths, kind="stable")
    chosen = np.sort(longest[store.lengths[longest] >= min(target, int(store.lengths.max()))])
    chosen = chosen if len(chosen) >= count else np.sort(longest[:count])
    return [int(chosen[i * len(chosen) // count]) for i in range(count)]


def make_asked(
    questions: QuestionPlan, store: TokenStore, haystack: Haystack, tokenizer: Any, context: int, target: int
) -> Questionnaire:
    """The prompts and documents themselves, the same for every side and whenever they are made.

    Args:
        questions: how many of which length; `task` must be decided.
        store: documents to measure on.
        haystack: the text around what is hidden.
        tokenizer: of the base.
        context: of the base, tokens.
        target: of the run, tokens.

    Raises:
        DataError: a prompt can't be made with this tokenizer.
    """
    assert questions.task is not None
    probes = []
    for length, trials in zip(questions.lengths, questions.trials, strict=True):
        try:
            probes.append(needle_probe(tokenizer, haystack, length, DEPTHS, trials, SEED, questions.task))
        except DataError:
            if length == questions.lengths[-1]:
                raise
            # Too short for five facts in this tokenizer's tokens; longer ones have room.
    copied = copy_probe(tokenizer, _SHORT_TRIALS, SEED)
    probes += [
        probe for probe in (copied, cloze_probe(tokenizer, haystack, _SHORT_TRIALS, SEED)) if probe.tokens <= context
    ]
    spread = spread_documents(store, questions.documents, target)
    documents = [np.array(store[index][:target]) for index in spread]
    names = [store.names[index] for index in spread]
    return Questionnaire(probes, documents, context, target, names, stride=max(1, context // _STRIDES))
