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
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lengthen.data.records import BrokenRecordError
from lengthen.files import parse_json

__all__ = ["WANTED", "Example", "Turn", "take_example"]

WANTED = (
    'each record has "instruction" and "output", "input" and "output", "prompt" and "completion", "question" and '
    '"answer", "messages" or "conversations"'
)

_ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant",
    "bing": "assistant", "bard": "assistant", "function_call": "assistant", "tool_call": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "ipython": "tool", "tool_response": "tool",
}  # fmt: skip
_MESSAGES = ("messages", "conversations", "conversation")
_ROLE_KEYS, _TEXT_KEYS = ("role", "from"), ("content", "value")
_QUESTIONS = ("instruction", "prompt", "question", "query", "input")
_ANSWERS = ("output", "completion", "response", "answer")
_BESIDE = ("input", "context")
_NO_INPUT = "<noinput>"  # what self-instruct wrote for none
_SYSTEMS = ("system", "system_prompt")
_TOOLS = ("tools", "functions")
# What messages carry for the chat template, by the role that it belongs to.
_FIELDS = {"assistant": ("tool_calls", "reasoning_content"), "tool": ("tool_call_id", "name")}
_TRAINED = ("weight", "train", "loss")
# Records and messages about what can't be read here.
_MEDIA = ("images", "image", "videos", "video", "audios", "audio")

# What LongAlpaca puts around its papers and books.
_BEGINS = re.compile(r"\bThe [\w ]{1,40} begins\.")
_ENDS = re.compile(r"\bNow the [\w ]{1,40} ends\.")
_NEAR_START = 500
_EDGE = 1000


@dataclass(frozen=True)
class Turn:
    """One message.

    Attributes:
        role: "system", "user", "assistant" or "tool".
        text: what is said, without white space around it; empty where an assistant only calls tools.
        trained: whether an answer is to be learned.
        fields: what else the chat template gets: "tool_calls" and "reasoning_content" of an answer, "tool_call_id" and
            "name" of a tool's message.
    """

    role: str
    text: str
    trained: bool = True
    fields: Mapping[str, Any] = field(default_factory=dict)


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
    reader.refuse_media()
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
        self._left = {key: value for key, value in record.items() if _has_value(value)}
        self._unused_in_messages: dict[str, None] = {}

    def first(self, keys: tuple[str, ...]) -> Any:
        """The value of the first of these keys that has one, None where none has."""
        key = next((key for key in keys if key in self._left), None)
        return None if key is None else self._left.pop(key)

    def unused(self) -> tuple[str, ...]:
        return (*self._left, *self._unused_in_messages)

    def refuse_media(self) -> None:
        for key in _MEDIA:
            if key in self._left:
                raise BrokenRecordError(f'has "{key}", and only text can be trained')

    def system(self) -> list[Turn]:
        text = self.first(_SYSTEMS)
        return [] if text is None or text == "" else [Turn("system", _text(text, '"system"'))]

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
                turns.append(Turn(role, _text(text, f'pair {number} of "history"')))
        return turns

    def pair(self, joint: str) -> tuple[tuple[Turn, ...], tuple[int, int] | None]:
        """Question and answer; and where the document in the question is, if it stands under a key of its own."""
        asked_by = next((key for key in _QUESTIONS if key in self._left), None)
        told_by = next((key for key in _ANSWERS if key in self._left), None)
        if asked_by is None or told_by is None:
            raise BrokenRecordError(self._no_pair())
        asked, told = self._left.pop(asked_by), self._left.pop(told_by)
        turns: list[Turn] = []
        if isinstance(asked, list):
            # What a prompt quotes of earlier answers is not what the record teaches.
            turns += (replace(turn, trained=False) for turn in self.conversation(asked))
            question = ""
        else:
            question = _text(asked, f'"{asked_by}"')
        extra = None if isinstance(asked, list) or asked_by == "input" else self.first(_BESIDE)
        added = "" if extra in (None, _NO_INPUT) else _text(extra, f'what stands beside "{asked_by}"')
        if question:
            turns.append(Turn("user", question + (joint + added if added else "")))
        if isinstance(told, list) and told and isinstance(told[0], dict):
            turns += self.conversation(told)
        else:
            turns.append(Turn("assistant", _text(told, f'"{told_by}", its answer')))
        if len(added) > len(question):
            start = len(question) + len(joint)
            return tuple(turns), (start, start + len(added))
        # Without a longer text beside it, the document is within the question itself.
        return tuple(turns), _find_block(question) if added else None

    def _no_pair(self) -> str:
        begun = next((key for key in _QUESTIONS if _has_value(self._record.get(key))), None)
        keys = ", ".join(list(self._record)[:5]) or "none"
        wanted = {"instruction": "output", "prompt": "completion", "question": "answer", "query": "response"}
        if begun is None:
            blank = next((key for key in _QUESTIONS if isinstance(self._record.get(key), str)), None)
            if blank is not None and any(_has_value(self._record.get(key)) for key in _ANSWERS):
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
            turn = self._message(message, number)
            if turn is not None:
                turns.append(turn)
        if not turns:
            raise BrokenRecordError("has no messages")
        return tuple(turns)

    def _message(self, message: Any, number: int) -> Turn | None:
        if not isinstance(message, dict):
            raise BrokenRecordError(f"has {type(message).__name__} where message {number} should be")
        left = {key: value for key, value in message.items() if _has_value(value)}
        said_by, role = _role(left, number)
        content = next((left.pop(key) for key in _TEXT_KEYS if key in left), None)
        fields = {key: left.pop(key) for key in _FIELDS.get(role, ()) if key in left}
        trained = role == "assistant" and _is_trained(left, number)
        _refuse_media(left, number)
        self._unused_in_messages.update((f"messages[].{key}", None) for key in left)
        where = f"message {number} ({said_by})"
        if content is None and not any(key in message for key in _TEXT_KEYS) and not fields:
            raise BrokenRecordError(f'has neither "content" nor "value" in message {number}')
        text = "" if content is None else _text(_joined(content, where), where)
        text, fields = _with_calls(said_by, text, fields, where)
        if text or fields.get("tool_calls") or role == "tool":
            return Turn(role, text, trained, fields)
        if role == "system":
            return None
        raise BrokenRecordError(f"has nothing in {where}")

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


def _role(left: dict[str, Any], number: int) -> tuple[str, str]:
    """Who says a message, in the record's word and in ours; taken out of its fields."""
    said_by = next((left.pop(key) for key in _ROLE_KEYS if key in left), None)
    if said_by is None:
        raise BrokenRecordError(f'has neither "role" nor "from" in message {number}')
    role = _ROLES.get(str(said_by).lower())
    if role is None:
        raise BrokenRecordError(f"has the unknown role {said_by!r} in message {number} (known: {', '.join(_ROLES)})")
    return said_by, role


def _refuse_media(left: dict[str, Any], number: int) -> None:
    found = next((key for key in _MEDIA if key in left), None)
    if found is not None:
        raise BrokenRecordError(f'has "{found}" in message {number}, and only text can be trained')


def _with_calls(said_by: str, text: str, fields: dict[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    """Text and fields of a message, with calls of tools in the form that chat templates expect."""
    if said_by in ("function_call", "tool_call"):
        call = _call(text)
        return ("", {"tool_calls": call}) if call else (text, fields)
    if "tool_calls" in fields:
        fields = {**fields, "tool_calls": _calls(fields["tool_calls"], where)}
    return text, fields


def _has_value(value: Any) -> bool:
    """Whether there is something in a field; tables have nulls, and empty lists and texts, where a row has none."""
    if isinstance(value, str):
        return bool(value.strip())
    # What pandas writes for a missing text is NaN, which is not equal to itself.
    return value is not None and value != [] and value != {} and value == value


def _is_trained(left: dict[str, Any], number: int) -> bool:
    """What the message says about itself; 1 and true where it says nothing."""
    trained = True
    for key in _TRAINED:
        value = left.pop(key, 1)
        if value not in (0, 1):
            raise BrokenRecordError(
                f'has "{key}" {value!r} in message {number}, and a message is trained (1) or not (0)'
            )
        trained = trained and bool(value)
    return trained


def _joined(content: Any, where: str) -> Any:
    """The text of a message whose content is a list of parts."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, dict) else None
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        if not isinstance(text, str) or kind not in ("text", "input_text", "output_text"):
            raise BrokenRecordError(f"has a part of type {kind!r} in {where}, and only text can be trained")
        texts.append(text)
    return "".join(texts)


def _call(text: str) -> list[dict[str, Any]] | None:
    """ShareGPT's call of a tool, written in JSON; None where it is something else, which is then just what was said."""
    try:
        call = parse_json(text)
    except ValueError:
        return None
    calls = call if isinstance(call, list) else [call]
    if not all(isinstance(each, dict) and isinstance(each.get("name"), str) for each in calls):
        return None
    return [{"type": "function", "function": _with_object(call)} for call in calls]


def _calls(calls: Any, where: str) -> list[dict[str, Any]]:
    functions: list[Any] = [call.get("function", call) if isinstance(call, dict) else None for call in calls]
    if not all(isinstance(each, dict) and isinstance(each.get("name"), str) for each in functions):
        raise BrokenRecordError(f"has tool calls without a function's name in {where}")
    return [
        {**call, "type": "function", "function": _with_object(each)}
        for call, each in zip(calls, functions, strict=True)
    ]


def _with_object(function: dict[str, Any]) -> dict[str, Any]:
    """Arguments as an object, which chat templates expect; OpenAI's API has them as text."""
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = parse_json(arguments)
        except ValueError:
            return dict(function)
    return {**function, "arguments": arguments}


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
