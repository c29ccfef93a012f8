"""Token ids of many documents in one flat array."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from lengthen.errors import DataError

__all__ = ["TokenStore", "check_vocabulary", "first_outside"]

_SCAN_TOKENS = 1 << 24


@dataclass(frozen=True, eq=False)
class TokenStore:
    """Token ids of many documents in one flat array.

    Attributes:
        tokens: all ids, uint32; uint16 where it is the memory map of one uint16 token file.
        offsets: where each document starts in `tokens`, and the end of the last one; int64, one more than documents.
        names: the documents' names, for messages.
        spelled: control tokens that are written out in the documents, where they are plain text.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    names: list[str]
    spelled: int = 0

    def __post_init__(self) -> None:
        assert len(self.offsets) == len(self.names) + 1
        assert self.offsets[0] == 0
        assert self.offsets[-1] == len(self.tokens)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> np.ndarray:
        index = range(len(self.names))[index]
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens in each document, int64."""
        return np.diff(self.offsets)

    def take(self, indices: Sequence[int] | np.ndarray) -> "TokenStore":
        """A store of these documents, in this order, as often as they are named; at least one."""
        tokens = np.concatenate([self[index] for index in indices])
        offsets = np.cumsum([0, *self.lengths[list(indices)]], dtype=np.int64)
        return TokenStore(tokens, offsets, [self.names[index] for index in indices], self.spelled)

    def without(self, names: Collection[str]) -> "TokenStore":
        """A store of the documents that have other names than these.

        Raises:
            DataError: none is left.
        """
        kept = [index for index, name in enumerate(self.names) if name not in names]
        if len(kept) == len(self):
            return self
        if not kept:
            raise DataError(
                f"all documents ({', '.join(self.names[:3])}{', ...' if len(self) > 3 else ''}) are held out, so none "
                "is left to train on; shorten data.held_out"
            )
        return self.take(kept)


def check_vocabulary(store: TokenStore, vocab_size: int) -> None:
    """Refuse ids that a vocabulary does not have.

    Args:
        store: the tokens.
        vocab_size: tokens in the vocabulary.

    Raises:
        DataError: there is one; with the document that it is in.
    """
    outside = first_outside(store.tokens, vocab_size)
    if outside is None:
        return
    name = store.names[int(np.searchsorted(store.offsets, outside, side="right")) - 1]
    raise DataError(
        f"{name} has token id {store.tokens[outside]}, but the vocabulary has {vocab_size} tokens; "
        "use the tokenizer that belongs to the model, or resize the model's embeddings"
    )


def first_outside(tokens: np.ndarray, vocab_size: int) -> int | None:
    """Position of the first id that is not in the vocabulary; in parts, as the array can be larger than memory.

    Args:
        tokens: ids.
        vocab_size: tokens in the vocabulary.
    """
    for start in range(0, len(tokens), _SCAN_TOKENS):
        part = tokens[start : start + _SCAN_TOKENS]
        if part.max() >= vocab_size:
            return start + int(np.argmax(part >= vocab_size))
    return None
