"""Types of fields in what clients send."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

__all__ = ["Logprobs", "Name", "Penalty", "StopTexts", "Strict", "Text", "Whole"]


def _as_whole(value: Any) -> Any:
    """8.0 as 8: JSON has one kind of number, and clients of languages that have one too write it so."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _without_empty(stop: Any) -> Any:
    """Stop texts without those that are left empty, as forms send them."""
    return None if stop == "" else [text for text in stop if text != ""] if isinstance(stop, list) else stop


Text = Annotated[str, Field(min_length=1)]
Whole = Annotated[int, BeforeValidator(_as_whole)]
Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Logprobs = Annotated[Whole, Field(ge=0, le=20)]
StopTexts = Annotated[str | Annotated[list[str], Field(max_length=16)] | None, BeforeValidator(_without_empty)]


class Strict(BaseModel):
    """An object without unknown fields, whose values are of the types that they should be."""

    model_config = ConfigDict(extra="forbid", strict=True)
