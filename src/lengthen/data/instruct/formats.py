"""Records of instruction data as conversations, and where the long document in one is.

The format is told by a record's keys: "conversations" (ShareGPT), "messages" (OpenAI), "instruction" with "output" and
perhaps "input" (alpaca, LongAlpaca), "prompt" with "completion", or "input" with "output" (LongQLoRA).
"""

import re
from dataclasses import dataclass
from typing import Any

from lengthen.data.documents import BrokenRecordError

__all__ = ["WANTED", "Example", "Turn", "take_example"]

WANTED = (
    'each record has "instruction" and "output", "input" and "output", "prompt" and "completion", "messages" or '
    '"conversations"'
)

_ROLES = {
    "system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant",
    "chatgpt": "assistant", "model": "assistant",
}  # fmt: skip
_PAIRS = (("instruction", "output"), ("prompt", "completion"), ("input", "output"))

# What LongAlpaca puts around its papers and books.
_BEGINS = re.compile(r"\bThe [\w ]{1,40} begins\.")
_ENDS = re.compile(r"\bNow the [\w ]{1,40} ends\.")
_NEAR_START = 500
_EDGE = 1000


@dataclass(frozen=True)
class Turn:
    """One message: who says it ("system", "user" or "assistant"), and what, without white space around it."""

    role: str
    text: str


@dataclass(frozen=True)
class Example:
    """A conversation that ends with an answer.

    Attributes:
        turns: perhaps a system message, then questions and answers in turn.
        document: what may be cut where the whole is too long, as the index of a turn and the characters in it from
            start to stop; None where there is nothing.
    """

    turns: tuple[Turn, ...]
    document: tuple[int, int, int] | None


def take_example(record: Any, joint: str = "\n\n") -> Example:
    """Read a record of any of the formats.

    The document is an alpaca record's "input" where that is longer than its "instruction". Else it is in the longest
    message that is no answer: what stands between LongAlpaca's "The paper begins." and "Now the paper ends." (or book,
    material and so on), and where these are missing, the message without its first and last paragraph (or line, where
    it has no empty lines; of either at most 1000 characters stay, as a longer one is no question).

    Args:
        record: as read from JSON.
        joint: what to put between an alpaca record's "instruction" and its "input".

    Raises:
        BrokenRecordError: it is of no known format, or a message is missing, empty, of an unknown role or out of order.
    """
    if not isinstance(record, dict):
        raise BrokenRecordError(f"has {type(record).__name__} where an object should be")
    if "conversations" in record:
        turns = _turns(record["conversations"], "from", "value")
    elif "messages" in record:
        turns = _turns(record["messages"], "role", "content")
    else:
        return _take_pair(record, joint)
    return Example(turns, _find_document(turns))


def _take_pair(record: dict[str, Any], joint: str) -> Example:
    # The pair that fits, else the one that is begun, for the message.
    begun = [pair for pair in _PAIRS if pair[0] in record]
    question, answer = next((pair for pair in begun if pair[1] in record), begun[0] if begun else (None, None))
    if question is None or answer is None:
        raise BrokenRecordError(f"has none of the known formats (its keys: {', '.join(list(record)[:5]) or 'none'})")
    if answer not in record:
        raise BrokenRecordError(f'has no "{answer}" (its keys: {", ".join(list(record)[:5])})')
    asked = _text(record[question], f'"{question}"')
    told = Turn("assistant", _text(record[answer], f'"{answer}", its answer'))
    extra = record.get("input") if question == "instruction" else None
    if extra is None or extra == "":
        turns = (Turn("user", asked), told)
        return Example(turns, _find_document(turns))
    added = _text(extra, '"input"')
    turns = (Turn("user", asked + joint + added), told)
    if len(added) > len(asked):
        start = len(asked) + len(joint)
        return Example(turns, (0, start, start + len(added)))
    found = _find_block(asked)
    return Example(turns, None if found is None else (0, *found))


def _turns(messages: Any, role_key: str, text_key: str) -> tuple[Turn, ...]:
    if not isinstance(messages, list) or not messages:
        raise BrokenRecordError("has no list of messages")
    turns: list[Turn] = []
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or role_key not in message or text_key not in message:
            raise BrokenRecordError(f'has no "{role_key}" and "{text_key}" in message {number}')
        role = _ROLES.get(str(message[role_key]).lower())
        if role is None:
            raise BrokenRecordError(
                f"has the unknown role {message[role_key]!r} in message {number} (known: {', '.join(_ROLES)})"
            )
        before = turns[-1].role if turns else None
        expected = {None: ("system", "user"), "system": ("user",), "user": ("assistant",), "assistant": ("user",)}
        if role not in expected[before]:
            raise BrokenRecordError(
                f"has roles out of order: message {number} is of {role} where {' or '.join(expected[before])} should be"
            )
        turns.append(Turn(role, _text(message[text_key], f"message {number} ({role})")))
    if turns[-1].role != "assistant":
        raise BrokenRecordError(f"has no answer to its last message ({turns[-1].role})")
    return tuple(turns)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise BrokenRecordError(f"has {type(value).__name__} where text should be, in {where}")
    text = value.strip()
    if not text:
        raise BrokenRecordError(f"has nothing in {where}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        # JSON can escape half of a surrogate pair, which no tokenizer accepts.
        raise BrokenRecordError(f"has half a surrogate pair at character {error.start} of {where}") from error
    return text


def _find_document(turns: tuple[Turn, ...]) -> tuple[int, int, int] | None:
    given = [index for index, turn in enumerate(turns) if turn.role != "assistant"]
    index = max(given, key=lambda each: len(turns[each].text))
    found = _find_block(turns[index].text)
    return None if found is None else (index, *found)


def _find_block(text: str) -> tuple[int, int] | None:
    """Start and stop of the document in a message."""
    begins = _BEGINS.search(text[:_NEAR_START])
    ends = list(_ENDS.finditer(text))
    breaks = list(re.finditer(r"\n\s*\n", text)) or list(re.finditer(r"\n", text))
    first = breaks[0].end() if breaks else _EDGE
    last = breaks[-1].start() if breaks else 0
    start = begins.end() if begins else min(first, _EDGE)
    stop = ends[-1].start() if ends else max(last, len(text) - _EDGE)
    return (start, stop) if start < stop else None
