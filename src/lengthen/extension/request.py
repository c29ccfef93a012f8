"""The request for an extension."""

from dataclasses import dataclass

__all__ = ["ExtendRequest"]


@dataclass(frozen=True)
class ExtendRequest:
    """A base, a target context, data and limits.

    Attributes:
        model: the base: hub id, model folder, .gguf file or alias.
        to: the context that is wanted, tokens.
        data: documents, as a recipe's data.train.
        eval_data: documents that are measured on; where none are named, some of `data` are kept from training.
        hours: the most that all of it may take on this device.
        task: what base and run are asked, "needle" or "lookup"; None for what the base can do.
        overrides: of the recipe, `section.key=value` each.
    """

    model: str
    to: int
    data: tuple[str, ...]
    eval_data: tuple[str, ...] = ()
    hours: float = 2.0
    task: str | None = None
    overrides: tuple[str, ...] = ()
