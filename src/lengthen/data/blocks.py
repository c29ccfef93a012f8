"""Training sequences: tokens of one or several documents, with the document boundaries kept as segments."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from lengthen.data.token_store import TokenStore

__all__ = ["Block", "Piece", "StoredBlocks"]

Piece = tuple[int, int, int]
"""Of a document: its index in the store, and the tokens from `start` up to `stop`."""


@dataclass(frozen=True, eq=False)
class Block:
    """One training sequence.

    Attributes:
        input_ids: token ids, int64, (T,).
        segments: tokens in each document (or piece of one) in the block, in order; their sum is T.
        positions: of each token, int64, (T,), in a block of one segment; None: from 0 on in each segment.
        trained: bool, (T,): which tokens are predicted; None: all but the first of each segment.
        loss_weights: float32, (T,): of each token's loss, where it is predicted; None: 1.
    """

    input_ids: np.ndarray
    segments: tuple[int, ...]
    positions: np.ndarray | None = None
    trained: np.ndarray | None = None
    loss_weights: np.ndarray | None = None

    def __post_init__(self) -> None:
        assert sum(self.segments) == len(self.input_ids)
        assert self.positions is None or len(self.positions) == self.segments[0] == len(self)
        assert self.trained is None or len(self.trained) == len(self)
        assert self.loss_weights is None or len(self.loss_weights) == len(self)

    def __len__(self) -> int:
        return len(self.input_ids)


class StoredBlocks(Sequence[Block]):
    """Blocks that are made when they are asked for: only the store, and where they lie in it, is held.

    Args:
        store: of the documents.
        contents: the pieces of documents in each block, in order.
        joined: whether a block is one segment, whatever documents are in it.
    """

    def __init__(self, store: TokenStore, contents: list[list[Piece]], joined: bool = False):
        self._store, self._contents, self._joined = store, contents, joined

    def __len__(self) -> int:
        return len(self._contents)

    @overload
    def __getitem__(self, index: int) -> Block: ...
    @overload
    def __getitem__(self, index: slice) -> list[Block]: ...
    def __getitem__(self, index: int | slice) -> Block | list[Block]:
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        pieces = [self._store[which][start:stop] for which, start, stop in self._contents[index]]
        return Block(np.concatenate(pieces, dtype=np.int64), self.segments(index))

    def segments(self, index: int) -> tuple[int, ...]:
        """Tokens in each segment of a block, which is not made for it.

        Args:
            index: of the block, from 0 on.
        """
        lengths = tuple(stop - start for _, start, stop in self._contents[index])
        return (sum(lengths),) if self._joined else lengths
