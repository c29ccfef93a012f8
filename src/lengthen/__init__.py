"""lengthen: extend the context window of a pretrained language model, and prove that it is usable.

    lengthen.train(lengthen.load_recipe("llama2-7b-8k", ["data.train=books/"]))
    model, tokenizer = lengthen.load("runs/llama2-7b-8k")

Importing this package is cheap; torch comes in when one of these is first used.
"""

from importlib import import_module
from typing import Any

from lengthen._compat import silence_upstream
from lengthen._lazy import lazy_names

__version__ = "0.1.0"

_HOME = {
    "Interrupted": "lengthen.errors",
    "LengthenError": "lengthen.errors",
    "Recipe": "lengthen.recipe",
    "export": "lengthen.adapters.export",
    "extend": "lengthen.extension",
    "load": "lengthen.adapters.load",
    "load_recipe": "lengthen.recipe",
    "train": "lengthen.training.run",
}

__all__ = ["Interrupted", "LengthenError", "Recipe", "__version__", "export", "extend", "load", "load_recipe", "train"]

silence_upstream()  # before any module of ours brings in what they come from

_imported, __dir__ = lazy_names(__name__, _HOME, __all__)


def __getattr__(name: str) -> Any:
    # "s2" must be known to transformers wherever models are loaded or trained.
    if name in ("extend", "load", "train"):
        import_module("lengthen.attention")
    return _imported(name)
