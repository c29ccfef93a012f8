"""The base of a recipe's sections."""

from collections.abc import Iterable
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict

__all__ = ["Names", "Paths", "Section", "as_list", "checked"]


def as_list(value: Any) -> Any:
    """A list of what is given alone; other values as they are."""
    return [value] if isinstance(value, str | dict) else value


Paths = Annotated[list[str], BeforeValidator(as_list)]
Names = Annotated[list[str], BeforeValidator(as_list)]


class Section(BaseModel):
    """Keys of a recipe, which are never changed; unknown ones are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


AnySection = TypeVar("AnySection", bound=Section)


def checked(section: AnySection, found: Iterable[str]) -> AnySection:
    """The section, if there are no problems.

    Args:
        section: with all keys.
        found: problems of it, a sentence each.

    Raises:
        ValueError: all problems as one message, which pydantic reports.
    """
    if message := "; ".join(dict.fromkeys(found)):
        raise ValueError(message)
    return section
