"""Prompts as tokens: of an exact length, and with several questions about one text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from lengthen.errors import DataError
from lengthen.evaluation.exact_length import exact_size

__all__ = ["Prompt", "Question", "encode", "make_prompt", "prompt_of_length"]

_LARGEST = 2**31  # size of a filler that repeats


@dataclass(frozen=True)
class Question:
    """One question about the text of a prompt.

    Attributes:
        ids: the tokens after the prompt's context and before the answer, at least one.
        answer: the right answer's tokens, at least one.
        expected: the right answer as text.
        items: for each thing that is asked for, the places of its tokens in the answer. Only these are scored: not the
            commas between several, and no blank at the beginning, which says nothing of what a model found.
        accepted: for each scored token, in order, all that are as right there: several things may come in any order.
    """

    ids: list[int]
    answer: list[int]
    expected: str
    items: list[list[int]]
    accepted: list[list[int]]


@dataclass(frozen=True)
class Prompt:
    """A text that is read once, and what is asked about it.

    Attributes:
        context: the tokens that all questions share.
        questions: in the order in which they are asked.
    """

    context: list[int]
    questions: list[Question]

    @property
    def tokens(self) -> int:
        """The longest question's tokens, with the context before it and without its answer."""
        return len(self.context) + max(len(question.ids) for question in self.questions)


def make_prompt(tokenizer: Any, text: str, questions: Sequence[tuple[str, str | Sequence[str]]]) -> Prompt:
    """The tokens of a text and of questions about it.

    Each question is tokenized as the one text it is (text, question, answer), and the context is what all of them
    begin with. So nothing is glued together from pieces, whatever the tokenizer makes of the seams.

    Args:
        tokenizer: of the model.
        text: what comes before every question.
        questions: each question and its right answer, or several things that are asked for in any order; a space comes
            before the answer, and a comma between several.
    """
    asked = []
    for question, answer in questions:
        wanted = [answer] if isinstance(answer, str) else list(answer)
        bare = encode(tokenizer, text + question)
        full = encode(tokenizer, f"{text}{question} {', '.join(wanted)}")
        asked.append((full, min(_common([bare, full]), len(full) - 1), wanted))
    # One token before each answer is left to the question: what it predicts is the answer's first.
    shared = min(_common([full for full, _, _ in asked]), *(begin - 1 for _, begin, _ in asked))
    return Prompt(
        asked[0][0][:shared],
        [_question(tokenizer, full[shared:begin], full[begin:], wanted) for full, begin, wanted in asked],
    )


def _question(tokenizer: Any, ids: list[int], answer: list[int], wanted: list[str]) -> Question:
    expected = ", ".join(wanted)
    items = _items(tokenizer, answer, wanted)
    tokens = [[answer[place] for place in places] for places in items]
    # Of the things that have not come yet, all that begin as this one has so far are as right.
    accepted = [
        [
            own[at],
            *sorted({other[at] for other in tokens[i + 1 :] if other[:at] == own[:at] and at < len(other)} - {own[at]}),
        ]
        for i, own in enumerate(tokens)
        for at in range(len(own))
    ]
    return Question(ids, answer, expected, items, accepted)


def _items(tokenizer: Any, answer: list[int], wanted: list[str]) -> list[list[int]]:
    """The places of each wanted thing's tokens: those whose characters are among its own."""
    expected = ", ".join(wanted)
    # Counted from the end: what comes before (a space, the end of the question) is in the tokens in many ways.
    ends = [len(tokenizer.decode(answer[i:], clean_up_tokenization_spaces=False)) for i in range(len(answer) + 1)]
    items, left = [], len(expected)
    for each in wanted:
        right = left - len(each)
        found = [i for i in range(len(answer)) if ends[i + 1] < left and ends[i] > right and ends[i] > ends[i + 1]]
        items.append(found)
        left = right - len(", ")
    return items


def _common(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with."""
    shortest = min(map(len, rows))
    return next((i for i in range(shortest) if len({row[i] for row in rows}) > 1), shortest)


def encode(tokenizer: Any, text: str) -> list[int]:
    """The token ids of a prompt: leading special tokens (BOS) are kept, trailing ones removed.

    An end token behind a prompt would tell the model that there is nothing to answer.

    Args:
        tokenizer: of the model.
        text: the prompt.
    """
    ids = list(tokenizer(text, verbose=False, split_special_tokens=True)["input_ids"])
    while ids and ids[-1] in tokenizer.all_special_ids:
        ids.pop()
    return ids


def prompt_of_length(tokenizer: Any, builds: Sequence[Callable[[int], str]], tokens: int, answer_tokens: int) -> str:
    """Make a prompt that, with room for its answer, is exactly `tokens` long.

    The tokens counted are those that the tokenizer makes of one text; nothing is glued together from pieces. So the
    length is found by trying (`exact_size`).

    Args:
        tokenizer: of the model.
        builds: from a size to the prompt; size 0 is the shortest, and one more adds about one token (see
            `Haystack.take`). Some tokenizers leave lengths out (a full stop and a line end as one token, a character
            as three); then the next of these is tried, which should cut its text at other places.
        tokens: the length of prompt and answer, BOS included where the tokenizer adds it.
        answer_tokens: tokens kept free for the answer, so that it has its place inside the context.

    Returns:
        The text, of ``tokens - answer_tokens`` tokens.

    Raises:
        DataError: even size 0 is too long (the message says how much is needed), or no size tried gives exactly this
            length (it says how near they came).
    """
    wanted = tokens - answer_tokens
    reached = []
    for build in builds:

        @cache
        def count(size: int, build: Callable[[int], str] = build) -> int:
            return len(encode(tokenizer, build(size)))

        least = count(0)
        if least > wanted:
            raise DataError(
                f"a length of {tokens} tokens is too short: the prompt without filler has {least} and its answer gets "
                f"{answer_tokens}; use at least {least + answer_tokens}"
            )
        size, length = exact_size(count, wanted, _LARGEST, first_step=max(1, wanted - least))
        if size is not None:
            return build(size)
        reached.append(length)
    nearest = min(reached, key=lambda length: abs(length - wanted))
    raise DataError(
        f"this tokenizer makes no prompt of exactly {wanted} tokens here (length {tokens} less {answer_tokens} for the "
        f"answer); the nearest has {nearest}; choose another length, such as {nearest + answer_tokens}"
    )
