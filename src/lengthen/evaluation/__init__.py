"""Measuring a model: perplexity by context length, retrieval, and what of the context is usable."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lengthen.evaluation.losses import token_losses
    from lengthen.evaluation.sliding_perplexity import PerplexityResult, perplexity

__all__ = ["PerplexityResult", "perplexity", "token_losses"]

# The module is not called `perplexity`: Python would bind it over the function of that name.
_HOME = {
    "PerplexityResult": "lengthen.evaluation.sliding_perplexity",
    "perplexity": "lengthen.evaluation.sliding_perplexity",
    "token_losses": "lengthen.evaluation.losses",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562), so that the command line starts without torch."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
