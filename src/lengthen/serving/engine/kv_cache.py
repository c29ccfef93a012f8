"""Keys and values of the requests that are being continued: one row each, rows of any length, in one batch.

Shapes: R rows that there is memory for, n of them in use (the first ones), K key/value heads, C tokens that there is
memory for in each row, D size of a head.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from lengthen._compat import with_cache

__all__ = ["BatchedKVCache", "padded_tokens"]

# Rows grow in steps of this many tokens, so that a batch of similar requests is not laid out anew for each of them.
_STEP = 64


def padded_tokens(reserved: Sequence[int]) -> int:
    """Tokens in memory of rows that hold at most these numbers of tokens."""
    return len(reserved) * _rounded(max(reserved, default=0))


def _rounded(tokens: int) -> int:
    return -(-tokens // _STEP) * _STEP


class BatchedKVCache(Cache):
    """A cache whose rows come and go, each with its own length.

    All rows have the memory of the longest. In a forward pass of one token a row, the keys of all rows are read up to
    the longest present one, behind a mask; that length goes in steps, so that shapes repeat.

    Args:
        shapes: (heads, size of keys, size of values) of each layer.
        dtype: of keys and values.
        device: of both.
        max_tokens: memory, by `padded_tokens`; who appends sees to it that the rows fit.

    Attributes:
        lengths: tokens in each row.
    """

    def __init__(
        self, shapes: Sequence[tuple[int, int, int]], dtype: torch.dtype, device: torch.device, max_tokens: int
    ):
        self._rows = _Rows()
        self._row_layers = [_RowLayer(shape, dtype, device, self._rows) for shape in shapes]
        super().__init__(layers=list(self._row_layers))
        self._device, self._max_tokens = device, max_tokens
        self.lengths: list[int] = []
        self._max_total_tokens: list[int] = []
        self._size = (0, 0)

    def append(self, read: Cache | None, row: int, length: int, max_total_tokens: int) -> None:
        """Add a row behind the others.

        Args:
            read: an ordinary cache in which its first tokens were read; None where there are none.
            row: which one of that cache.
            length: tokens of it that count.
            max_total_tokens: tokens that the row will have at most.
        """
        self._make_room(len(self.lengths) + 1, max([max_total_tokens, *self._max_total_tokens]))
        for index, layer in enumerate(self._row_layers):
            layer.fill(len(self.lengths), read.layers[index] if read is not None else None, row, length)
        self.lengths.append(length)
        self._rows.positions_n = None
        self._max_total_tokens.append(max_total_tokens)

    def remove(self, row: int) -> None:
        """Drop a row; the last one takes its place."""
        last = len(self.lengths) - 1
        if row != last:
            for layer in self._row_layers:
                layer.move(last, row)
        for values in (self.lengths, self._max_total_tokens):
            values[row] = values[-1]
            values.pop()
        self._rows.positions_n = None
        if not self.lengths:
            self._resize(0, 0)

    def clear(self) -> None:
        """Drop all rows and their memory."""
        self.lengths, self._max_total_tokens = [], []
        self._rows.positions_n = None
        self._resize(0, 0)

    def next_token(self) -> dict[str, Any]:
        """The arguments of a forward pass of one more token in each row, beside the tokens."""
        rows = self._rows
        if rows.positions_n is None:
            rows.positions_n = torch.tensor(self.lengths, device=self._device)
            rows.indices_n = torch.arange(len(self.lengths), device=self._device)
        positions_n = rows.positions_n
        rows.longest = _rounded(max(self.lengths) + 1)
        assert rows.longest <= self._size[1]
        mask_nC = torch.arange(rows.longest, device=self._device) <= positions_n[:, None]
        return {
            "attention_mask": mask_nC[:, None, None],
            "position_ids": positions_n[:, None],
            **with_cache(self),
        }

    def advance(self) -> None:
        """Each row has one token more."""
        self.lengths = [length + 1 for length in self.lengths]
        assert self._rows.positions_n is not None
        self._rows.positions_n += 1

    def _make_room(self, rows: int, tokens: int) -> None:
        if rows <= self._size[0] and tokens <= self._size[1]:
            return
        tokens = _rounded(tokens)
        more = max(rows, self._size[0]) if tokens <= self._size[1] else rows
        spare = rows + rows // 2 if rows > self._size[0] else more
        self._resize(max(rows, min(spare, self._max_tokens // tokens)), tokens)

    def _resize(self, rows: int, tokens: int) -> None:
        for layer in self._row_layers:
            layer.resize(rows, tokens, len(self.lengths), max(self.lengths, default=0))
        self._size = (rows, tokens)


class _Rows:
    """Where the present forward pass writes: one object for all layers.

    Attributes:
        indices_n: the rows.
        positions_n: of their next tokens; None where rows have come or gone since.
        longest: keys of a row that are read.
    """

    indices_n: torch.Tensor
    positions_n: torch.Tensor | None = None
    longest: int = 0


class _RowLayer(CacheLayerMixin):
    """One layer's keys (R, K, C, D) and values.

    What lies behind a row's length is finite: a masked value still is multiplied, by 0, and 0 times NaN is NaN.
    """

    is_sliding = False

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device, rows: _Rows):
        super().__init__()
        heads, key_size, value_size = shape
        self.keys = torch.zeros(0, heads, 0, key_size, dtype=dtype, device=device)
        self.values = torch.zeros(0, heads, 0, value_size, dtype=dtype, device=device)
        self.is_initialized = True
        self._rows = rows

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one token's keys and values (n, K, 1, D) in each row, and return those of all rows."""
        rows = self._rows
        assert rows.positions_n is not None
        self.keys[rows.indices_n, :, rows.positions_n] = key_states[:, :, 0]
        self.values[rows.indices_n, :, rows.positions_n] = value_states[:, :, 0]
        n = len(rows.indices_n)
        return self.keys[:n, :, : rows.longest], self.values[:n, :, : rows.longest]

    def fill(self, row: int, read: Any, read_row: int, length: int) -> None:
        """Copy a row from an ordinary cache's layer."""
        for own, name in ((self.keys, "keys"), (self.values, "values")):
            own[row, :, length:] = 0
            if read is not None:
                own[row, :, :length] = getattr(read, name)[read_row, :, :length]

    def move(self, source: int, target: int) -> None:
        """Copy a row over another."""
        self.keys[target] = self.keys[source]
        self.values[target] = self.values[source]

    def resize(self, rows: int, tokens: int, used_rows: int, used_tokens: int) -> None:
        """Change R and C, and keep what is in use."""
        self.keys = _resized(self.keys, rows, tokens, used_rows, used_tokens)
        self.values = _resized(self.values, rows, tokens, used_rows, used_tokens)

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: shapes are known from the start."""

    def get_seq_length(self) -> int:
        """Tokens of the longest row."""
        return self._rows.longest

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many keys are returned, and the position of the first."""
        return self._rows.longest, 0

    def get_max_length(self) -> int:
        """No maximum."""
        return -1


def _resized(old_RKCD: torch.Tensor, rows: int, tokens: int, used_rows: int, used_tokens: int) -> torch.Tensor:
    new_RKCD = old_RKCD.new_zeros(rows, old_RKCD.shape[1], tokens, old_RKCD.shape[3])
    new_RKCD[:used_rows, :, :used_tokens] = old_RKCD[:used_rows, :, :used_tokens]
    return new_RKCD
