"""A base: which files MODEL names, how they are loaded, what tells its weights from others."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lengthen.models.load import load_base, load_config, load_tokenizer
    from lengthen.models.resolve import resolve_model

__all__ = ["load_base", "load_config", "load_tokenizer", "resolve_model"]

_HOME = {
    "load_base": "lengthen.models.load",
    "load_config": "lengthen.models.load",
    "load_tokenizer": "lengthen.models.load",
    "resolve_model": "lengthen.models.resolve",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562), so that the command line starts without torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
