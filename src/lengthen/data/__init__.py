"""Documents to tokens to packed blocks with segment boundaries.

Names are loaded when they are first used, so that importing one module of the package imports no other.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lengthen.data.documents import Document, read_documents
    from lengthen.data.packing import Block, collate, pack, positions_beyond
    from lengthen.data.stdlib import stdlib_documents
    from lengthen.data.tokens import (
        TokenStore,
        default_cache,
        load_tokens,
        read_token_file,
        tokenize,
        write_token_file,
    )

__all__ = [
    "Block",
    "Document",
    "TokenStore",
    "collate",
    "default_cache",
    "load_tokens",
    "pack",
    "positions_beyond",
    "read_documents",
    "read_token_file",
    "stdlib_documents",
    "tokenize",
    "write_token_file",
]

_MODULES = {
    "documents": ("Document", "read_documents"),
    "packing": ("Block", "collate", "pack", "positions_beyond"),
    "stdlib": ("stdlib_documents",),
    "tokens": ("TokenStore", "default_cache", "load_tokens", "read_token_file", "tokenize", "write_token_file"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
