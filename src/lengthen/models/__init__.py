"""A base: which files MODEL names, how they are loaded, what tells its weights from others.

Names are loaded when they are first used, so that importing one module of the package imports no other.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lengthen.models.load import load_base, load_config, load_tokenizer
    from lengthen.models.resolve import Source, resolve_model

__all__ = ["Source", "load_base", "load_config", "load_tokenizer", "resolve_model"]

_HOME = {
    "Source": "resolve",
    "resolve_model": "resolve",
    "load_base": "load",
    "load_config": "load",
    "load_tokenizer": "load",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
