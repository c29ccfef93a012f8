"""Token files: flat arrays of little-endian uint16 ids (uint32 where the vocabulary has more than 65536 tokens).

They have no header, as the published PG19 and proof-pile files. One holds one stream; where documents begin is not in
it, other than by the ids that a tokenizer puts there itself.
"""

from pathlib import Path
from typing import Any

import numpy as np

from lengthen.data.token_store import TokenStore, check_vocabulary, first_outside
from lengthen.errors import DataError
from lengthen.files import write_bytes

__all__ = ["read_token_file", "write_token_file"]

_DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


def read_token_file(path: str | Path, vocab_size: int, dtype: str | None = None) -> TokenStore:
    """Map a token file into memory as one stream named after the file.

    Args:
        path: the file.
        vocab_size: tokens in the model's vocabulary; every id is checked against it.
        dtype: "uint16" or "uint32"; by default uint16 where `vocab_size` is at most 65536.

    Raises:
        DataError: the file is missing or empty, its size is no whole number of ids, or ids are outside the vocabulary.
    """
    path = Path(path)
    if dtype is not None and dtype not in _DTYPES:
        raise DataError(f"dtype {dtype!r} is not one of {', '.join(_DTYPES)}")
    if not path.is_file():
        raise DataError(f"token file {path} {'is a folder' if path.is_dir() else 'does not exist'}; check the name")
    chosen = dtype or _dtype_for(vocab_size)
    other = "uint16" if chosen == "uint32" else "uint32"
    item = _DTYPES[chosen]
    size = path.stat().st_size
    if size == 0:
        raise DataError(f"token file {path} is empty; write it again, such as with `lengthen data tokenize`")
    if size % item.itemsize:
        raise DataError(
            f"token file {path} has {size} bytes, no whole number of {chosen} ids; it is cut short, "
            f"or not an array of {chosen} ids"
        )
    try:
        tokens = np.memmap(path, dtype=item, mode="r").view(np.ndarray)
    except OSError as error:
        raise DataError(f"can't read token file {path}: {error.strerror or error}; check its permissions") from error
    outside = first_outside(tokens, vocab_size)
    if outside is not None:
        raise DataError(
            f"token file {path} has id {tokens[outside]} at position {outside}, but the vocabulary has {vocab_size} "
            f"tokens; it was made for another tokenizer, or holds {other} ids (then read it with dtype {other})"
        )
    if dtype is None and chosen == "uint16" and _looks_like_uint32(tokens):
        raise DataError(
            f"token file {path} seems to hold uint32 ids, as every second uint16 in it is 0; "
            "read it with dtype uint32, or with dtype uint16 if it is right as it is"
        )
    return TokenStore.of_stream(tokens, np.array([0, len(tokens)], dtype=np.int64), [path.name])


def write_token_file(path: str | Path, store: TokenStore, vocab_size: int) -> None:
    """Write all documents of a store, one after another, as a token file.

    Args:
        path: the file; an older one is replaced once the new one is whole.
        store: the tokens.
        vocab_size: tokens in the vocabulary; up to 65536 the ids are uint16, else uint32.

    Raises:
        DataError: an id is outside the vocabulary.
        OutputError: the file can't be written.
    """
    check_vocabulary(store, vocab_size)
    write_bytes(Path(path), store.stream().astype(_DTYPES[_dtype_for(vocab_size)], copy=False).data)


def _dtype_for(vocab_size: int) -> str:
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def _looks_like_uint32(tokens: np.ndarray) -> bool:
    """Whether small uint32 ids were read as uint16: their upper halves, every second value, are all zero."""
    if len(tokens) < 16 or len(tokens) % 2:
        return False
    return not tokens[1:64:2].any() and not tokens[1::2].any() and bool(tokens[0::2].any())
