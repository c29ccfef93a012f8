"""The messages of a conversation, as clients of OpenAI's API send them."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from lengthen.files import parse_json
from lengthen.serving.api.fields import Strict, Text

__all__ = ["Message"]


class _Function(Strict):
    name: Text
    arguments: str | None = None


class _ToolCall(Strict):
    id: str | None = None
    type: Literal["function"] = "function"
    index: int | None = None
    function: _Function

    def for_template(self) -> dict[str, Any]:
        """With the arguments as an object, as templates expect them."""
        try:
            arguments = parse_json(self.function.arguments or "{}")
        except ValueError:
            arguments = self.function.arguments
        function = {"name": self.function.name, "arguments": arguments}
        return {"type": "function", "function": function, **({"id": self.id} if self.id else {})}


def _joined_parts(content: Any) -> Any:
    """The text of a message whose content is a list of parts."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ValueError("should be a text or a list of parts of type text")
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str) or len(part) > 2:
            raise ValueError(f"part {number} should be of type text, with its text, and is of type {kind!r}")
    return "".join(part["text"] for part in content)


class Message(Strict):
    """A message as clients send it, above all as they get it: with fields that have no value."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[Any, AfterValidator(_joined_parts)] = None
    name: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_ToolCall] | None = None
    tool_call_id: str | None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates take it."""
        text = self.refusal if self.content is None and self.refusal is not None else self.content
        message: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": text or ""}
        if self.tool_calls:
            message["tool_calls"] = [call.for_template() for call in self.tool_calls]
        for key in ("name", "reasoning_content", "tool_call_id"):
            if getattr(self, key) is not None:
                message[key] = getattr(self, key)
        return message

    @property
    def is_empty(self) -> bool:
        """Whether there is no content at all, not even an empty text."""
        return self.content is None and self.refusal is None and not self.tool_calls
