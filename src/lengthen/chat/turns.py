"""Documents, prompts and answers of a conversation."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

__all__ = ["ChatPrompt", "ChatTurn", "Loaded", "Reply"]


@dataclass(frozen=True)
class Loaded:
    """A document as it was taken.

    Attributes:
        name: of the document.
        tokens: of its text, without what was cut out.
        cut: tokens that were cut out of its middle.
        defused: places where its text spells a control token, such as the end of a message; they are read as text.
    """

    name: str
    tokens: int
    cut: int
    defused: int = 0


@dataclass(frozen=True)
class Reply:
    """The answer to one question.

    Attributes:
        question: without the documents before it.
        text: the answer, without white space around it.
        prompt_tokens: of everything before the answer.
        read_tokens: of these, the ones that had to be read for this turn.
        new_tokens: of the answer, its end token included.
        seconds: wall time.
        end: why it ends: the model finished it; `max_new_tokens` or the context were full; it was stopped.
    """

    question: str
    text: str
    prompt_tokens: int
    read_tokens: int
    new_tokens: int
    seconds: float
    end: Literal["finished", "max_new_tokens", "context", "stopped"]


class ChatPrompt(NamedTuple):
    """The prompt of a question."""

    message: str
    """The question, with the documents that stand before it."""
    text: str
    """The whole conversation in the chat template, up to where the answer begins."""
    ids: list[int]
    """Its tokens."""


@dataclass(frozen=True)
class ChatTurn:
    """A finished turn.

    Attributes:
        prompt: what was asked.
        ids: tokens of prompt and answer, as they are in the cache.
        answer: what was answered.
    """

    prompt: ChatPrompt
    ids: list[int]
    answer: Reply
