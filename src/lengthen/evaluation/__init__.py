"""Measuring a model: perplexity by context length, retrieval, and what of the context is usable."""

from typing import TYPE_CHECKING

from lengthen._lazy import lazy_names

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

__getattr__, __dir__ = lazy_names(__name__, _HOME, __all__)
