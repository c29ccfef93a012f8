"""Which rows of a batch belong to which adapter, and by which of three ways the LoRA of all is computed.

- *segments*: the rows of one adapter lie together, or are brought together; two matrix products per adapter and layer.
  For prefill, where segments are long, and for batches with one adapter.
- *batched*: rows are laid out as slots x rows of a slot, filled up to the largest, and all adapters are computed by one
  batched product. For decoding, where each row is one token. Rows are copied, weights are not: copying each row's
  matrices costs more than the products.
- *grouped*: rows are sorted by slot, and torch's grouped product computes all adapters at once, however many rows each
  has. In place of the others where a GPU has it (`has_grouped_products`), but for one adapter, and for rows that the
  batched way takes as they lie.

Shapes: N rows, M of them with an adapter; S slots, one adapter each; W slots and c rows of each in the batched way.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

import torch

__all__ = ["Routing"]


@dataclass(frozen=True)
class Routing:
    """Which rows of a batch belong to which adapter.

    Attributes:
        rows: N.
        segments: (slot, start, stop) of each run of rows with one adapter, in the order of `order`; for the segments'
            way, none of them empty.
        order: (M,) the rows with an adapter, where not all rows are used as they lie.
        slots: the first slot and the last + 1 that are computed, for the batched way; None for the other.
        filled: (W c,) the row at each place of the batched layout; None where the rows lie so already.
        places: (M,) the place of each of `order`'s rows in that layout.
        ends: (S,) int32, where each slot's rows end in `order`, for the grouped way.
    """

    rows: int
    segments: tuple[tuple[int, int, int], ...] = ()
    order: torch.Tensor | None = None
    slots: tuple[int, int] | None = None
    filled: torch.Tensor | None = None
    places: torch.Tensor | None = None
    ends: torch.Tensor | None = None

    @classmethod
    def of(
        cls,
        slots: Sequence[int | None],
        lengths: Sequence[int] | None = None,
        device: torch.device | None = None,
        grouped: int | None = None,
    ) -> "Routing":
        """Make the routing of a batch.

        Args:
            slots: the slot of each sequence's adapter, None for none.
            lengths: tokens of each sequence in this forward pass; default 1, as in decoding.
            device: of the activations.
            grouped: S, where the grouped way may be taken.

        Returns:
            What every layer of this forward pass uses.
        """
        rows_of = _rows_of(slots)
        if len(rows_of) < 2:
            grouped = None
        is_decoding = lengths is None or all(length == 1 for length in lengths)
        if is_decoding and _batches(rows_of) and (grouped is None or _lie_in_order(slots)):
            return _batched(len(slots), rows_of, device)
        lengths = lengths or [1] * len(slots)
        if grouped is not None:
            return _grouped(slots, lengths, grouped, device)
        runs = tuple(_runs(slots, lengths))
        if not is_decoding or len(runs) == len(rows_of):
            return cls(sum(lengths), runs)
        order = [row for rows in rows_of.values() for row in rows]
        runs = tuple(_runs([slots[row] for row in order], [1] * len(order)))
        return cls(len(slots), runs, torch.tensor(order, device=device))


def _rows_of(slots: Sequence[int | None]) -> dict[int, list[int]]:
    rows_of: dict[int, list[int]] = {}
    for row, slot in enumerate(slots):
        if slot is not None:
            rows_of.setdefault(slot, []).append(row)
    return rows_of


def _batches(rows_of: Mapping[int, Sequence[int]]) -> bool:
    """Whether one batched product is faster than two products per adapter.

    Measured for r=16, hidden size 576 and 32 rows on one core of a CPU with AMX: a batched product costs 25 to 36 us
    per slot, empty ones in between included, two small products 75 (float32) to 215 us (bfloat16); filled-up places
    are cheap beside that until there are many.
    """
    if len(rows_of) < 2:
        return False
    window = max(rows_of) - min(rows_of) + 1
    return window <= 3 * len(rows_of) and max(map(len, rows_of.values())) <= 64


def _batched(count: int, rows_of: Mapping[int, Sequence[int]], device: torch.device | None) -> Routing:
    first, last = min(rows_of), max(rows_of) + 1
    largest = max(map(len, rows_of.values()))
    some = next(iter(rows_of.values()))[0]  # fills the places that nothing is read from
    filled = [some] * ((last - first) * largest)
    place_of = {}
    for slot, rows in rows_of.items():
        for index, row in enumerate(rows):
            place_of[row] = (slot - first) * largest + index
            filled[place_of[row]] = row
    if filled == list(range(count)):
        return Routing(count, slots=(first, last))
    order = sorted(place_of)
    return Routing(
        count,
        slots=(first, last),
        order=torch.tensor(order, device=device),
        filled=torch.tensor(filled, device=device),
        places=torch.tensor([place_of[row] for row in order], device=device),
    )


def _lie_in_order(slots: Sequence[int | None]) -> bool:
    """Whether the batched way takes rows as they lie: one slot after the other, equally many rows of each."""
    return _batched(len(slots), _rows_of(slots), None).filled is None


def _grouped(slots: Sequence[int | None], lengths: Sequence[int], count: int, device: torch.device | None) -> Routing:
    """Rows sorted by slot; those without an adapter are left out."""
    starts = [0, *accumulate(lengths)]
    sequences = sorted((slot, index) for index, slot in enumerate(slots) if slot is not None)
    order = torch.cat([torch.arange(starts[index], starts[index] + lengths[index]) for _, index in sequences])
    rows = torch.zeros(count, dtype=torch.int32)
    for slot, index in sequences:
        rows[slot] += lengths[index]
    is_sorted = len(order) == starts[-1] and bool((order[1:] > order[:-1]).all())
    ends = rows.cumsum(0, dtype=torch.int32).to(device)
    return Routing(starts[-1], order=None if is_sorted else order.to(device), ends=ends)


def _runs(slots: Sequence[int | None], lengths: Sequence[int]) -> list[tuple[int, int, int]]:
    runs, start = [], 0
    for slot, group in groupby(zip(slots, lengths, strict=True), key=lambda pair: pair[0]):
        stop = start + sum(length for _, length in group)
        if slot is not None and stop > start:
            runs.append((slot, start, stop))
        start = stop
    return runs
