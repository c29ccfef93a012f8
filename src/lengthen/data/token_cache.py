"""Tokens that were made before, by what they follow from: the texts and all that decides a tokenizer's ids."""

import hashlib
import json
import warnings
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from lengthen.data.token_store import TokenStore
from lengthen.errors import OutputError
from lengthen.files import write_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["cache_key", "read_cache", "write_cache"]

_CACHE_FORMAT = 2


def cache_key(content: Iterable[str], tokenizer: "PreTrainedTokenizerBase") -> str:
    """A hash of texts, or of what says which they are, and of all that decides a tokenizer's ids.

    Args:
        content: in order.
        tokenizer: that makes the ids.
    """
    digest = hashlib.sha256()
    for part in (str(_CACHE_FORMAT), _tokenizer_identity(tokenizer), *content):
        encoded = part.encode("utf-8")
        # The length before each part, so that moving text from one document to the next changes the key.
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.hexdigest()


def _tokenizer_identity(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Everything that decides which ids a tokenizer gives, as a string."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    identity: dict[str, Any] = {
        "class": type(tokenizer).__qualname__,
        "split_special_tokens": getattr(tokenizer, "split_special_tokens", False),
        "tokenizers": version("tokenizers"),
    }
    if backend is not None:
        identity["backend"] = json.loads(backend.to_str())
        # Left there by earlier calls, and set anew by each: they are no part of what a tokenizer is.
        identity["backend"].update(truncation=None, padding=None)
    else:
        identity["name"] = tokenizer.name_or_path
        identity["vocabulary"] = tokenizer.get_vocab()
        identity["settings"] = repr(sorted(tokenizer.init_kwargs.items()))
    return json.dumps(identity, sort_keys=True)


def read_cache(path: Path) -> tuple[np.ndarray, np.ndarray, int] | None:
    """The tokens, offsets and `spelled` of a cached store, or None where there is none that is whole.

    Args:
        path: its file.
    """
    try:
        with safe_open(path, "numpy") as file:  # maps it, where reading it would hold all bytes beside the arrays
            tokens, offsets, checksum, spelled = map(file.get_tensor, ("tokens", "offsets", "checksum", "spelled"))
    except (OSError, ValueError, SafetensorError):
        return None
    return (tokens, offsets, int(spelled)) if np.array_equal(checksum, _checksum(tokens, offsets)) else None


def write_cache(path: Path, store: TokenStore) -> None:
    """Keep a store; where that is not possible, a warning says so.

    Args:
        path: its file.
        store: the tokens.

    Warns:
        UserWarning: the file can't be written.
    """
    tokens, offsets = store.stream(), store.offsets
    arrays = {"tokens": tokens, "offsets": offsets, "checksum": _checksum(tokens, offsets)}
    arrays["spelled"] = np.asarray(store.spelled)
    try:
        write_bytes(path, safetensors.numpy.save(arrays))
    except (OutputError, OSError) as error:
        warnings.warn(f"tokenized documents are not cached: {error}", stacklevel=3)


def _checksum(tokens: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """A damaged byte in a cache would otherwise be a wrong token that nobody sees."""
    digest = hashlib.sha256(offsets.data)
    digest.update(tokens.data)
    return np.frombuffer(digest.digest(), dtype=np.uint8)
