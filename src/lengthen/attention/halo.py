"""A sequence in slices that can be computed one by one: a chunk, and the tokens before it that it must see.

Under S2 a token sees its group and the sinks of its document, so that a chunk needs, of the tokens before it, those of
the groups that it cuts (the halo, half a group where chunks begin at multiples of the group size in their document) and
the sinks. A layer that is run over [sinks][halo][chunk] gives the chunk's outputs exactly; those of the others are
dropped.

Shape suffixes: B sequences, T tokens, S tokens of a slice.
"""

from bisect import bisect_right
from functools import lru_cache
from typing import NamedTuple

import torch

from lengthen.attention.documents import Documents, Spans
from lengthen.attention_pattern import DocumentPart, Groups

__all__ = ["SinkSums", "Slice", "add_sinks", "slice_of", "slices"]


SinkSums = dict[tuple[int, int], torch.Tensor]
"""Sums over slices for the sinks at a token of a row, in float32."""


class Slice(NamedTuple):
    """A chunk with what it needs. In all rows it has the same tokens but the sinks."""

    begin: int
    """First token of the halo; `start` where there is none."""
    start: int
    """First token of the chunk."""
    stop: int
    """Behind the chunk's last token."""
    sinks: int
    """Tokens that are put in front: sinks of documents that began before the halo."""
    sinks_at: tuple[int, ...]
    """Where they lie in each sequence. A sequence that needs none has others there, which nothing looks at."""
    documents: Documents
    """The layout of the slices; sinks in front, and tokens of the halo that a row doesn't need, are padding."""

    def take(self, x_BT: torch.Tensor) -> torch.Tensor:
        """The slices of a tensor (B, T, ...) or (1, T, ...), as (B, S, ...); (1, S, ...) where that is the same."""
        own_BS = x_BT[:, self.begin : self.stop]
        if not self.sinks:
            return own_BS
        rows, rest = len(self.sinks_at), x_BT.shape[1:]
        sinks = [row[at : at + self.sinks] for row, at in zip(x_BT.expand(rows, *rest), self.sinks_at, strict=True)]
        return torch.cat([torch.stack(sinks), own_BS.expand(rows, *own_BS.shape[1:])], dim=1)

    def add(self, part_BS: torch.Tensor, to_BT: torch.Tensor, sinks: SinkSums) -> None:
        """Add what belongs to the slices' tokens to the whole, for gradients; with `add_sinks`, the reverse of `take`.

        Args:
            part_BS: of the slices.
            to_BT: of the whole sequences; a token is in two slices at most.
            sinks: of the tokens in front, which are in all slices: in 16 bits, their sums would be rounded each time.
        """
        to_BT[:, self.begin : self.stop] += part_BS[:, self.sinks :]
        for row, at in enumerate(self.sinks_at):
            own = part_BS[row, : self.sinks].to(torch.promote_types(part_BS.dtype, torch.float32))
            sinks[row, at] = sinks[row, at] + own if (row, at) in sinks else own


def add_sinks(sinks: SinkSums, to_BT: torch.Tensor) -> None:
    """Add what `Slice.add` has collected to the whole.

    Args:
        sinks: by sequence and first token, what the slices gave of a document's sinks.
        to_BT: (B, T, ...), changed in place.
    """
    for (row, at), sums in sinks.items():
        to_BT[row, at : at + len(sums)] += sums.to(to_BT.dtype)


@lru_cache(maxsize=8)  # asked by every layer
def slices(documents: Documents, groups: Groups, length: int, chunk: int) -> list[Slice]:
    """The slices of a batch, in order; their chunks are all its tokens.

    Args:
        documents: per sequence, (start, length) of each document.
        groups: of the layer.
        length: T, tokens of a sequence.
        chunk: tokens of a chunk; the last one may have fewer.
    """
    return [slice_of(documents, groups, start, min(start + chunk, length)) for start in range(0, length, chunk)]


def slice_of(documents: Documents, groups: Groups, start: int, stop: int) -> Slice:
    """The slice whose chunk is [start, stop) of a batch's sequences.

    Args:
        documents: per sequence, (start, length) of each document.
        groups: of the layer.
        start, stop: tokens of the sequences.
    """
    halos = [_halo(spans, groups, start) for spans in documents]
    begin = min(own for own, _ in halos)
    places = [at for _, at in halos]
    sinks = groups.sinks if any(at is not None for at in places) else 0
    layout = tuple(
        _parts(spans, groups, own, stop, begin - sinks) for spans, (own, _) in zip(documents, halos, strict=True)
    )
    return Slice(begin, start, stop, sinks, tuple(at or 0 for at in places) if sinks else (), layout)


def _halo(spans: Spans, groups: Groups, start: int) -> tuple[int, int | None]:
    """Where a sequence's halo begins; and where the document begins whose sinks lie before it, None for none."""
    cut = next(((first, length) for first, length, *_ in spans if first < start < first + length), None)
    if cut is None:
        return start, None
    first, length = cut
    begin = first + _first_needed(groups, length, start - first)
    # A document that begins in the halo has its sinks there.
    return begin, first if groups.sinks and first < begin else None


def _parts(
    spans: Spans, groups: Groups, begin: int, stop: int, origin: int
) -> tuple[tuple[int, int] | DocumentPart, ...]:
    """The parts of a sequence's documents that are in a slice [begin, stop)."""
    return tuple(
        _part(span, groups, max(begin, span[0]), min(stop, span[0] + span[1]), origin)
        for span in spans
        if span[0] < stop and span[0] + span[1] > begin
    )


def _first_needed(groups: Groups, length: int, token: int) -> int:
    """The first token of the groups, over both halves of the heads, that a token of a document is in."""
    halves = [groups.cuts(length, half) for half in (0, 1)]
    return min(cuts[bisect_right(cuts, token) - 1] for cuts in halves)


def _part(
    span: tuple[int, int] | DocumentPart, groups: Groups, first: int, end: int, origin: int
) -> tuple[int, int] | DocumentPart:
    """The part of a document in a slice, whose first token but for sinks of others is at `origin`: [first, end)."""
    start, length = span[:2]
    if end - first == length:
        return start - origin, length
    cuts = [
        (0, *(start + cut - first for cut in groups.cuts(length, half) if first < start + cut < end), end - first)
        for half in (0, 1)
    ]
    return DocumentPart(first - origin, end - first, (cuts[0], cuts[1]), 0 if start < first else first - origin)
