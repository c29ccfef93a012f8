"""A base: which files MODEL names, how they are loaded, what tells its weights from others."""

from typing import TYPE_CHECKING

from lengthen._lazy import lazy_names

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

__getattr__, __dir__ = lazy_names(__name__, _HOME, __all__)
