"""Measuring a model: perplexity by context length, retrieval, and what of the context is usable."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lengthen.evaluation.perplexity import PerplexityResult, perplexity, token_losses

__all__ = ["PerplexityResult", "perplexity", "token_losses"]

_HOME = {
    "PerplexityResult": "lengthen.evaluation.perplexity",
    "perplexity": "lengthen.evaluation.perplexity",
    "token_losses": "lengthen.evaluation.perplexity",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562), so that the command line starts without torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """This package's class: keeps `lengthen.evaluation.perplexity` the function, whatever was imported before.

    Python binds a submodule to its name in the package once it is imported, by which the module `perplexity` would
    hide the function of that name.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOME and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
