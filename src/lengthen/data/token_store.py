"""Token ids of many documents in one flat array, which is held once."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from lengthen.errors import DataError

__all__ = ["TokenStore", "check_vocabulary", "first_outside"]

_SCAN_TOKENS = 1 << 24


@dataclass(frozen=True, eq=False)
class TokenStore:
    """Token ids of many documents, spans of one flat array; stores that are taken of another one share its array.

    Attributes:
        tokens: (N,) ids, uint32; uint16 where it is the memory map of one uint16 token file.
        spans: (documents, 2) int64, where each document begins and ends in `tokens`.
        names: the documents' names, for messages.
        spelled: control tokens that are written out in the documents, where they are plain text.
    """

    tokens: np.ndarray
    spans: np.ndarray
    names: list[str]
    spelled: int = 0

    def __post_init__(self) -> None:
        assert self.spans.shape == (len(self.names), 2)
        assert self.spans.max(initial=0) <= len(self.tokens)

    @classmethod
    def of_stream(cls, tokens: np.ndarray, offsets: np.ndarray, names: list[str], spelled: int = 0) -> "TokenStore":
        """Documents that stand one after another.

        Args:
            tokens: all ids, (N,).
            offsets: where each document begins, and N; int64, one more than documents.
            names, spelled: as the attributes.
        """
        assert offsets[0] == 0
        assert offsets[-1] == len(tokens)
        return cls(tokens, np.stack([offsets[:-1], offsets[1:]], axis=1), names, spelled)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> np.ndarray:
        start, stop = self.spans[range(len(self.names))[index]]
        return self.tokens[start:stop]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens in each document, int64."""
        return self.spans[:, 1] - self.spans[:, 0]

    @property
    def offsets(self) -> np.ndarray:
        """Where each document begins in the stream of all, and its end; int64, one more than documents."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.lengths)])

    def stream(self) -> np.ndarray:
        """All documents' ids, one after another: a view where they stand so, else a copy."""
        starts, stops = self.spans[:, 0], self.spans[:, 1]
        if len(self) and np.array_equal(starts[1:], stops[:-1]):
            return self.tokens[starts[0] : stops[-1]]
        return np.concatenate([self.tokens[:0], *(self[index] for index in range(len(self)))])

    def take(self, indices: Sequence[int] | np.ndarray) -> "TokenStore":
        """A store of these documents, in this order, as often as they are named; nothing is copied."""
        chosen = np.asarray(indices, dtype=np.int64)
        return TokenStore(self.tokens, self.spans[chosen], [self.names[index] for index in chosen], self.spelled)

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
    tokens = store.stream()
    outside = first_outside(tokens, vocab_size)
    if outside is None:
        return
    name = store.names[int(np.searchsorted(store.offsets, outside, side="right")) - 1]
    raise DataError(
        f"{name} has token id {tokens[outside]}, but the vocabulary has {vocab_size} tokens; "
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
