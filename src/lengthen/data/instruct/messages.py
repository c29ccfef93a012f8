"""The messages of instruction data, each read on its own, whatever its record calls who says what."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lengthen.data.records import BrokenRecordError
from lengthen.files import parse_json

__all__ = ["Turn", "as_text", "has_value", "read_message", "refuse_media", "take_first"]

_ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "bot": "assistant",
    "bing": "assistant", "bard": "assistant", "function_call": "assistant", "tool_call": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "ipython": "tool", "tool_response": "tool",
}  # fmt: skip
_ROLE_KEYS, _TEXT_KEYS = ("role", "from"), ("content", "value")
# Further fields of messages for the chat template, by role.
_FIELDS = {"assistant": ("tool_calls", "reasoning_content"), "tool": ("tool_call_id", "name")}
_TRAINED = ("weight", "train", "loss")
# Records and messages about what can't be read here.
_MEDIA = ("images", "image", "videos", "video", "audios", "audio")


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


def read_message(message: Any, number: int) -> tuple[Turn | None, list[str]]:
    """Read one message of a conversation.

    Args:
        message: as read from JSON.
        number: from 1, for errors.

    Returns:
        The turn, None for a system message that says nothing; and the keys that have a value and were not read.

    Raises:
        BrokenRecordError: it says nothing, nobody known says it, or it is about more than text.
    """
    if not isinstance(message, dict):
        raise BrokenRecordError(f"has {type(message).__name__} where message {number} should be")
    left = {key: value for key, value in message.items() if has_value(value)}
    said_by, role = _role(left, number)
    where = f"message {number} ({said_by})"
    content = take_first(left, _TEXT_KEYS)
    fields = {key: left.pop(key) for key in _FIELDS.get(role, ()) if key in left}
    trained = role == "assistant" and _is_trained(left, number)
    refuse_media(left, f" in message {number}")
    if not fields and not any(key in message for key in _TEXT_KEYS):
        raise BrokenRecordError(f'has neither "content" nor "value" in message {number}')
    text = "" if content is None else as_text(_joined(content, where), where)
    text, fields = _with_calls(said_by, text, fields, where)
    if text or fields.get("tool_calls") or role == "tool":
        return Turn(role, text, trained, fields), list(left)
    if role == "system":
        return None, list(left)
    raise BrokenRecordError(f"has nothing in {where}")


def take_first(fields: dict[str, Any], keys: tuple[str, ...]) -> Any:
    """Take the value of the first of these keys out.

    Args:
        fields: of a record or message.
        keys: in order.

    Returns:
        The value; None where none of them is there.
    """
    return next((fields.pop(key) for key in keys if key in fields), None)


def refuse_media(fields: dict[str, Any], where: str = "") -> None:
    """Refuse pictures, films and sound.

    Args:
        fields: of a record or message.
        where: they stand, such as " in message 3", for the error.

    Raises:
        BrokenRecordError: there are some.
    """
    found = next((key for key in _MEDIA if key in fields), None)
    if found is not None:
        raise BrokenRecordError(f'has "{found}"{where}, and only text can be trained')


def _role(left: dict[str, Any], number: int) -> tuple[str, str]:
    """The role of a message, in the record's word and in ours; taken out of its fields."""
    said_by = take_first(left, _ROLE_KEYS)
    if said_by is None:
        raise BrokenRecordError(f'has neither "role" nor "from" in message {number}')
    role = _ROLES.get(str(said_by).lower())
    if role is None:
        raise BrokenRecordError(f"has the unknown role {said_by!r} in message {number} (known: {', '.join(_ROLES)})")
    return said_by, role


def _with_calls(said_by: str, text: str, fields: dict[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    """Text and fields of a message, with calls of tools in the form that chat templates expect."""
    if said_by in ("function_call", "tool_call"):
        call = _call(text)
        return ("", {"tool_calls": call}) if call else (text, fields)
    if "tool_calls" in fields:
        fields = {**fields, "tool_calls": _calls(fields["tool_calls"], where)}
    return text, fields


def has_value(value: Any) -> bool:
    """Whether there is something in a field; tables have nulls, and empty lists and texts, where a row has none.

    Args:
        value: as read from JSON or a table.
    """
    if isinstance(value, str):
        return bool(value.strip())
    # pandas writes NaN for a missing text, which is not equal to itself.
    return value is not None and value != [] and value != {} and value == value


def _is_trained(left: dict[str, Any], number: int) -> bool:
    """Whether a message is trained, by the fields that say so; true by default."""
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


def as_text(value: Any, where: str) -> str:
    """A text that a tokenizer takes, without white space around it.

    Args:
        value: as read from JSON.
        where: it stands, for messages.

    Raises:
        BrokenRecordError: it is no text, or empty.
    """
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
