"""Records of instruction data as conversations, and where the long document in one is.

The values of a record, not its keys, tell its format, as a table of several formats has all columns in every row:

- messages: "messages", "conversations" or "conversation" is a list of messages, each with its role under "role" or
  "from" and its text under "content" or "value" (ShareGPT, OpenAI, LongAlign);
- pair: a question ("instruction", "prompt", "question", "query", "input") with its answer ("output", "completion",
  "response", "answer"), and perhaps "input" or "context" beside the question (alpaca, dolly, LongAlpaca, LongQLoRA,
  swift). "prompt" and "completion" may be lists of messages, of which the completion is trained (TRL).

Beside either, "system" comes first, "history" (pairs of question and answer) before the question, and "tools" goes to
the chat template. Keys that are not read are named in `Example.unused`.
"""

import re
from dataclasses import dataclass, replace
from typing import Any

from lengthen.data.instruct.messages import Turn, as_text, has_value, read_message, refuse_media, take_first
from lengthen.data.records import BrokenRecordError
from lengthen.files import parse_json

__all__ = ["WANTED", "Example", "take_example"]

WANTED = (
    'each record has "instruction" and "output", "input" and "output", "prompt" and "completion", "question" and '
    '"answer", "messages" or "conversations"'
)

_MESSAGES = ("messages", "conversations", "conversation")
_QUESTIONS = ("instruction", "prompt", "question", "query", "input")
_ANSWERS = ("output", "completion", "response", "answer")
_BESIDE = ("input", "context")
_NO_INPUT = "<noinput>"  # what self-instruct wrote for none
_SYSTEMS = ("system", "system_prompt")
_TOOLS = ("tools", "functions")

# Lines that LongAlpaca puts around its papers and books.
_BEGINS = re.compile(r"\bThe [\w ]{1,40} begins\.")
_ENDS = re.compile(r"\bNow the [\w ]{1,40} ends\.")
_NEAR_START = 500
_EDGE = 1000


@dataclass(frozen=True)
class Example:
    """A conversation that ends with an answer.

    Attributes:
        turns: messages in order; which orders make sense, the chat template decides.
        document: what may be cut where the whole is too long, as the index of a turn and the characters in it from
            start to stop; None where there is nothing.
        tools: descriptions of tools, for the chat template.
        unused: keys of the record that were not read and have a value; "messages[].KEY" for those of a message.
    """

    turns: tuple[Turn, ...]
    document: tuple[int, int, int] | None
    tools: tuple[Any, ...] = ()
    unused: tuple[str, ...] = ()


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
        BrokenRecordError: it is of no known format, a message is empty or of an unknown role, it has pictures, or
            nothing in it is to be trained.
    """
    if not isinstance(record, dict):
        raise BrokenRecordError(f"has {type(record).__name__} where an object should be")
    reader = _Reader(record)
    tools = reader.tools()
    before = [*reader.system(), *reader.history()]
    messages = reader.first(_MESSAGES)
    if messages is not None:
        turns, beside = reader.conversation(messages), None
    else:
        turns, beside = reader.pair(joint)
    if before and before[0].role == "system" and turns[0].role == "system":
        if turns[0].text != before[0].text:
            raise BrokenRecordError("has two system messages, one of them beside the conversation")
        before = before[1:]
    turns = reader.checked((*before, *turns))
    if beside is None:
        document = _find_document(turns)
    else:
        index = next(i for i, turn in enumerate(turns) if i >= len(before) and turn.role == "user")
        document = (index, *beside)
    return Example(turns, document, tools, reader.unused())


class _Reader:
    """A record, and which of its keys were read."""

    def __init__(self, record: dict[str, Any]):
        self._record = record
        self._left = {key: value for key, value in record.items() if has_value(value)}
        refuse_media(self._left)
        self._unused_in_messages: dict[str, None] = {}

    def first(self, keys: tuple[str, ...]) -> Any:
        """The value of the first of these keys that has one, None where none has."""
        return take_first(self._left, keys)

    def unused(self) -> tuple[str, ...]:
        return (*self._left, *self._unused_in_messages)

    def system(self) -> list[Turn]:
        text = self.first(_SYSTEMS)
        return [] if text is None or text == "" else [Turn("system", as_text(text, '"system"'))]

    def tools(self) -> tuple[Any, ...]:
        tools = self.first(_TOOLS)
        if isinstance(tools, str):
            try:
                tools = parse_json(tools)
            except ValueError as error:
                raise BrokenRecordError('has "tools" that are not JSON') from error
        if tools is None:
            return ()
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise BrokenRecordError('has "tools" that are no list of objects')
        return tuple(tool if "type" in tool else {"type": "function", "function": tool} for tool in tools)

    def history(self) -> list[Turn]:
        pairs = self.first(("history",)) or []
        if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
            raise BrokenRecordError('has a "history" that is no list of pairs of question and answer')
        turns = []
        for number, pair in enumerate(pairs, start=1):
            for role, text in zip(("user", "assistant"), pair, strict=True):
                turns.append(Turn(role, as_text(text, f'pair {number} of "history"')))
        return turns

    def pair(self, joint: str) -> tuple[tuple[Turn, ...], tuple[int, int] | None]:
        """Question and answer; and where the document in the question is, if it stands under a key of its own."""
        asked_by = next((key for key in _QUESTIONS if key in self._left), None)
        told_by = next((key for key in _ANSWERS if key in self._left), None)
        if asked_by is None or told_by is None:
            raise BrokenRecordError(self._no_pair())
        asked, told = self._left.pop(asked_by), self._left.pop(told_by)
        if isinstance(asked, list):
            # Earlier answers that a prompt quotes are not what the record teaches.
            quoted = (replace(turn, trained=False) for turn in self.conversation(asked))
            return (*quoted, *self._answer(told, told_by)), None
        question = as_text(asked, f'"{asked_by}"')
        extra = None if asked_by == "input" else self.first(_BESIDE)
        added = "" if extra in (None, _NO_INPUT) else as_text(extra, f'what stands beside "{asked_by}"')
        turns = (Turn("user", question + (joint + added if added else "")), *self._answer(told, told_by))
        if len(added) > len(question):
            start = len(question) + len(joint)
            return turns, (start, start + len(added))
        # Without a longer text beside it, the document is within the question itself.
        return turns, _find_block(question) if added else None

    def _answer(self, told: Any, told_by: str) -> tuple[Turn, ...]:
        if isinstance(told, list) and told and isinstance(told[0], dict):
            return self.conversation(told)
        return (Turn("assistant", as_text(told, f'"{told_by}", its answer')),)

    def _no_pair(self) -> str:
        begun = next((key for key in _QUESTIONS if has_value(self._record.get(key))), None)
        keys = ", ".join(list(self._record)[:5]) or "none"
        wanted = {"instruction": "output", "prompt": "completion", "question": "answer", "query": "response"}
        if begun is None:
            blank = next((key for key in _QUESTIONS if isinstance(self._record.get(key), str)), None)
            if blank is not None and any(has_value(self._record.get(key)) for key in _ANSWERS):
                return f'has nothing in "{blank}"'
            if any(isinstance(self._record.get(key), list) for key in _MESSAGES):
                return "has no messages"
            return f"has none of the known formats (its keys: {keys})"
        answer = next((key for key in _ANSWERS if key in self._record), None)
        if answer is not None:
            return f'has nothing in "{answer}", its answer'
        return f'has no "{wanted.get(begun, "output")}" (its keys: {keys})'

    def conversation(self, messages: Any) -> tuple[Turn, ...]:
        if not isinstance(messages, list) or not messages:
            raise BrokenRecordError("has no list of messages")
        turns = []
        for number, message in enumerate(messages, start=1):
            turn, unused = read_message(message, number)
            self._unused_in_messages.update((f"messages[].{key}", None) for key in unused)
            if turn is not None:
                turns.append(turn)
        if not turns:
            raise BrokenRecordError("has no messages")
        return tuple(turns)

    def checked(self, turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
        """The turns up to the last answer that is trained."""
        trained = [index for index, turn in enumerate(turns) if turn.role == "assistant" and turn.trained]
        if not trained:
            if any(turn.role == "assistant" for turn in turns):
                raise BrokenRecordError("has no answer that is to be trained")
            raise BrokenRecordError(f"has no answer to its last message ({turns[-1].role})")
        if trained[-1] == 0:
            raise BrokenRecordError("has nothing before its answer")
        if trained[-1] + 1 < len(turns):
            self._unused_in_messages["messages after the last answer"] = None
        return turns[: trained[-1] + 1]


def _find_document(turns: tuple[Turn, ...]) -> tuple[int, int, int] | None:
    given = [index for index, turn in enumerate(turns) if turn.role != "assistant"]
    index = max(given, key=lambda each: len(turns[each].text), default=None)
    found = None if index is None else _find_block(turns[index].text)
    return None if found is None or index is None else (index, *found)


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
