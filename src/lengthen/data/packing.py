"""Documents packed into training sequences.

Packing "documents" puts whole documents, or pieces of `sequence_length` tokens of longer ones, beside each other
without padding; attention, positions and labels keep them apart. Packing "concatenate" is the stream of LongLoRA
(arXiv 2309.12307, section 4.1, by way of its training script): all documents after one another, cut every
`sequence_length` tokens, attention across documents and all.

Documents of 5, 3 and 2 tokens in a sequence of 10, packed as "documents", and in a batch (`data/collate.py`); x is no
label, as nothing is predicted across a boundary:

    input_ids       a b c d e f g h i j
    segments        5         3     2
    position_ids    0 1 2 3 4 0 1 2 0 1
    labels          x b c d e x g h x j
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence

import numpy as np

from lengthen.data.blocks import Piece, StoredBlocks
from lengthen.data.token_store import TokenStore
from lengthen.errors import DataError

__all__ = ["PACKINGS", "best_fit", "choose_documents", "pack", "pack_windows"]

PACKINGS = ("documents", "concatenate")

# A segment of one token predicts nothing: its only label would be the segment's first token.
_SHORTEST_SEGMENT = 2


def pack(
    store: TokenStore,
    sequence_length: int,
    packing: str = "documents",
    min_tokens: int = 1,
    max_tokens: int | None = None,
) -> StoredBlocks:
    """Pack documents into blocks; the same store always gives the same blocks.

    Args:
        store: tokenized documents.
        sequence_length: tokens in a block, at most ("documents") or exactly ("concatenate").
        packing: "documents": pieces of at most `sequence_length` tokens, each a segment, packed best-fit decreasing;
            a last piece of one token is dropped. "concatenate": one segment per block; the incomplete last block is
            dropped.
        min_tokens: documents with fewer tokens are left out.
        max_tokens: documents with more tokens are left out; None for no limit.

    Returns:
        Blocks in the order of their first document.

    Raises:
        DataError: a limit makes no sense, or nothing is left.
    """
    if packing not in PACKINGS:
        raise DataError(f"packing {packing!r} is not one of {', '.join(PACKINGS)}")
    if sequence_length < _SHORTEST_SEGMENT:
        raise DataError(f"sequence_length is {sequence_length}; it must be at least {_SHORTEST_SEGMENT} tokens")
    chosen = choose_documents(store, min_tokens, max_tokens)
    if packing == "documents":
        blocks = _pack_documents(store, chosen, sequence_length)
    else:
        blocks = _concatenate(store, chosen, sequence_length)
    if len(blocks) == 0:
        lengths = store.lengths
        limits = f"min_tokens {min_tokens}, max_tokens {'none' if max_tokens is None else max_tokens}"
        advice = "change these limits" if len(chosen) == 0 else "give more text"
        if packing == "concatenate" and len(chosen):
            advice += " or lower sequence_length"
        raise DataError(
            f"no training block is left: {len(chosen)} of {len(store)} documents ({int(lengths[chosen].sum())} tokens) "
            f"are within {limits}, the longest document has {int(lengths.max(initial=0))} tokens, "
            f"sequence_length is {sequence_length}; {advice}"
        )
    return blocks


def choose_documents(store: TokenStore, min_tokens: int = 1, max_tokens: int | None = None) -> np.ndarray:
    """Indices of the documents whose length is within the limits (in tokens, both included), in order.

    Args:
        store: tokenized documents.
        min_tokens, max_tokens: of a document; no maximum by default.

    Raises:
        DataError: `max_tokens` is below `min_tokens`.
    """
    if max_tokens is not None and max_tokens < min_tokens:
        raise DataError(f"max_tokens {max_tokens} is below min_tokens {min_tokens}; raise the one or lower the other")
    lengths = store.lengths
    inside = lengths >= min_tokens
    if max_tokens is not None:
        inside &= lengths <= max_tokens
    return np.flatnonzero(inside)


def pack_windows(store: TokenStore, window: int, sequence_length: int, seed: int) -> StoredBlocks:
    """Cut documents into short windows, each a segment, and put windows of different places beside each other.

    Args:
        store: tokenized documents.
        window: tokens of a window, at most: as many of one size as fill a block are a little shorter.
        sequence_length: tokens of a block, at most.
        seed: of the windows' order.

    Raises:
        DataError: no document has two tokens.
    """
    per_block = -(-sequence_length // window)
    pieces = _pieces(store, range(len(store)), sequence_length // per_block)
    if not pieces:
        raise DataError("no document has two tokens, the fewest that can be trained on; give more text")
    order = np.random.default_rng(seed).permutation(len(pieces))
    return _fill([pieces[which] for which in order], store, sequence_length)


def _pack_documents(store: TokenStore, chosen: np.ndarray, sequence_length: int) -> StoredBlocks:
    return _fill(_pieces(store, chosen.tolist(), sequence_length), store, sequence_length)


def _pieces(store: TokenStore, chosen: Iterable[int], longest: int) -> list[Piece]:
    """Documents cut every `longest` tokens, in the order of the store."""
    pieces, lengths = [], store.lengths.tolist()
    for index in chosen:
        length = lengths[index]
        for start in range(0, length, longest):
            stop = min(start + longest, length)
            if stop - start >= _SHORTEST_SEGMENT:
                pieces.append((index, start, stop))
    return pieces


def _fill(pieces: Sequence[Piece], store: TokenStore, sequence_length: int) -> StoredBlocks:
    bins = best_fit([stop - start for _, start, stop in pieces], sequence_length)
    return StoredBlocks(store, [[pieces[which] for which in bin_] for bin_ in bins])


def best_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Put pieces into bins, best-fit decreasing: the longest first, each into the fullest bin that has room for it.

    Args:
        lengths: of the pieces, at most `room` each.
        room: of a bin.

    Returns:
        The pieces' indices in each bin, ascending; the bins in the order of their first piece.
    """
    bins: list[list[int]] = []
    spare: list[tuple[int, int]] = []  # (free, bin), sorted, of the bins that can take another piece
    for piece in sorted(range(len(lengths)), key=lambda piece: -lengths[piece]):  # stable: equals stay in order
        place = bisect_left(spare, (lengths[piece], -1))
        if place < len(spare):
            free, which = spare.pop(place)
        else:
            free, which = room, len(bins)
            bins.append([])
        bins[which].append(piece)
        if free - lengths[piece] >= _SHORTEST_SEGMENT:
            insort(spare, (free - lengths[piece], which))
    return sorted(map(sorted, bins))


def _concatenate(store: TokenStore, chosen: np.ndarray, sequence_length: int) -> StoredBlocks:
    contents: list[list[Piece]] = []
    content: list[Piece] = []
    room, lengths = sequence_length, store.lengths.tolist()
    for index in chosen.tolist():
        start, length = 0, lengths[index]
        while start < length:
            stop = min(length, start + room)
            content.append((index, start, stop))
            start, room = stop, room - (stop - start)
            if room == 0:
                contents.append(content)
                content, room = [], sequence_length
    return StoredBlocks(store, contents, joined=True)
