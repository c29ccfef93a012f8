"""Documents to tokens to packed blocks with segment boundaries.

Names are loaded when they are first used, so that importing one module of the package imports no other.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lengthen.data.documents import Document, read_documents
    from lengthen.data.packing import Block, collate, pack, positions_beyond
    from lengthen.data.stdlib import stdlib_documents
    from lengthen.data.token_file import read_token_file, write_token_file
    from lengthen.data.token_store import TokenStore
    from lengthen.data.tokens import default_cache, load_tokens, tokenize

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
    "token_file": ("read_token_file", "write_token_file"),
    "token_store": ("TokenStore",),
    "tokens": ("default_cache", "load_tokens", "tokenize"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
