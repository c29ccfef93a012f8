"""Documents packed into training blocks, with the document boundaries kept as segments.

Shapes: B blocks in a batch, T tokens of the longest one.

Packing "documents" puts whole documents, or pieces of `sequence_length` tokens of longer ones, beside each other
without padding; attention, positions and labels keep them apart. Packing "concatenate" is the stream of LongLoRA
(arXiv 2309.12307, section 4.1, by way of its training script): all documents after one another, cut every
`sequence_length` tokens, attention across documents and all.

Documents of 5, 3 and 2 tokens in a sequence of 10, packed as "documents"; x is no label, as nothing is predicted across
a boundary:

    input_ids       a b c d e f g h i j
    segments        5         3     2
    position_ids    0 1 2 3 4 0 1 2 0 1
    labels          x b c d e x g h x j
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from lengthen.data.token_store import TokenStore
from lengthen.errors import DataError

__all__ = [
    "PACKINGS",
    "Block",
    "StoredBlocks",
    "best_fit",
    "choose_documents",
    "collate",
    "describe_blocks",
    "describe_lengths",
    "pack",
    "pack_windows",
    "positions_beyond",
]

PACKINGS = ("documents", "concatenate")

# A segment of one token predicts nothing: its only label would be the segment's first token.
_SHORTEST_SEGMENT = 2
_IGNORED_LABEL = -100


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


def pack(
    store: TokenStore,
    sequence_length: int,
    packing: str = "documents",
    min_tokens: int = 1,
    max_tokens: int | None = None,
) -> "StoredBlocks":
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


class StoredBlocks(Sequence[Block]):
    """Blocks that are made when they are asked for: only the store, and where they lie in it, is held.

    Args:
        store: of the documents.
        contents: the pieces of documents in each block, in order.
        joined: whether a block is one segment, whatever documents are in it.
    """

    def __init__(self, store: TokenStore, contents: "list[list[_Piece]]", joined: bool = False):
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
        content = self._contents[index]
        ids = np.concatenate([self._store[which][start:stop] for which, start, stop in content], dtype=np.int64)
        lengths = [stop - start for _, start, stop in content]
        return Block(ids, (len(ids),) if self._joined else tuple(lengths))


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


def describe_lengths(lengths: np.ndarray) -> dict[str, Any]:
    """Count documents and tokens, and describe how long the documents are.

    Args:
        lengths: tokens in each document, at least one.

    Returns:
        "documents", "tokens", "lengths" (min, quantiles, max and mean, in tokens) and "histogram" (a list of
        {"from", "to", "documents", "tokens"}: lengths from `from` up to but not including `to`, powers of two).
    """
    assert len(lengths) > 0
    shares = {"min": 0.0, "p10": 0.1, "p25": 0.25, "median": 0.5, "p75": 0.75, "p90": 0.9, "p99": 0.99, "max": 1.0}
    # "lower" names the length of a document that exists.
    quantiles = {name: int(np.quantile(lengths, share, method="lower")) for name, share in shares.items()}
    bits = np.array([int(length).bit_length() for length in lengths])
    histogram = []
    for bit in range(int(bits.min()), int(bits.max()) + 1):
        inside = lengths[bits == bit]
        start = 1 << (bit - 1) if bit else 0
        histogram.append({"from": start, "to": 1 << bit, "documents": len(inside), "tokens": int(inside.sum())})
    return {
        "documents": len(lengths),
        "tokens": int(lengths.sum()),
        "lengths": {**quantiles, "mean": float(lengths.mean())},
        "histogram": histogram,
    }


def positions_beyond(blocks: Sequence[Block], context: int) -> float:
    """Share of all tokens whose position in their segment is `context` or later: what a longer context is for.

    Args:
        blocks: training sequences.
        context: of the base, tokens.
    """
    total = beyond = 0
    for block in blocks:  # once, as it may be made only now
        total += len(block)
        beyond += _count_beyond(block, context)
    return beyond / total if total else 0.0


def _count_beyond(block: Block, context: int) -> int:
    if block.positions is not None:
        return int((block.positions >= context).sum())
    return sum(max(0, length - context) for length in block.segments)


def describe_blocks(blocks: Sequence[Block], sequence_length: int, context: int | None = None) -> dict[str, Any]:
    """Count what `pack` made.

    Args:
        blocks: what `pack` made.
        sequence_length: tokens of a block, at most.
        context: of the base, tokens; None leaves its keys out.

    Returns:
        "sequence_length", "blocks", "tokens", "segments", "fill" (share of the room in the blocks that holds tokens)
        and, with a `context`, "context" and "positions_beyond".
    """
    tokens = segments = 0
    for block in blocks:  # once, as it may be made only now
        tokens += len(block)
        segments += len(block.segments)
    described = {
        "sequence_length": sequence_length,
        "blocks": len(blocks),
        "tokens": tokens,
        "segments": segments,
        "fill": tokens / (len(blocks) * sequence_length) if blocks else 0.0,
    }
    if context is not None:
        described |= {"context": context, "positions_beyond": positions_beyond(blocks, context)}
    return described


def collate(blocks: Sequence[Block], pad_id: int, shortest: int = 0) -> dict[str, Any]:
    """Make a batch of blocks.

    Shorter blocks are padded on the right. The padding is a segment of its own: positions start again at 0, which
    is how any attention finds every boundary, so a mask is neither needed nor made. Only positions that jump inside a
    segment need one, to say that they are no boundaries; such batches are not padded and have no boundaries at all.

    Args:
        blocks: B blocks, at least one; with positions of their own all or none, and then of one length.
        pad_id: the id that stands in the padding; it is never a label there.
        shortest: tokens that a batch has at least.

    Returns:
        "documents", per sequence (start, length) of each segment and of the padding; "input_ids", "labels" and
        "position_ids", int64, (B, T). Labels are aligned with the ids (the model shifts
        them) and -100 in the padding, at each segment's first token, which nothing before it may predict, and where
        the block says that a token is not trained. For blocks with positions of their own also "attention_mask", all
        ones. Where any block has loss weights also "loss_weights", float32, (B, T), aligned with the labels; 1 for the
        other blocks.
    """
    import torch

    shape = (len(blocks), max(shortest, *(len(block) for block in blocks)))
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    labels = np.full(shape, _IGNORED_LABEL, dtype=np.int64)
    position_ids = np.empty(shape, dtype=np.int64)
    loss_weights = np.ones(shape, dtype=np.float32)
    documents = []
    for row, block in enumerate(blocks):
        input_ids[row, : len(block)] = block.input_ids
        labels[row, : len(block)] = block.input_ids
        if block.trained is not None:
            labels[row, : len(block)][~block.trained] = _IGNORED_LABEL
        lengths = [length for length in (*block.segments, shape[1] - len(block)) if length]
        spans = tuple(zip(np.cumsum([0, *lengths[:-1]]).tolist(), lengths, strict=True))
        documents.append(spans)
        for start, length in spans:
            position_ids[row, start : start + length] = np.arange(length)
            labels[row, start] = _IGNORED_LABEL
        if block.positions is not None:
            assert len(block) == shape[1]
            position_ids[row] = block.positions
        if block.loss_weights is not None:
            loss_weights[row, : len(block)] = block.loss_weights
    batch: dict[str, Any] = {
        "documents": tuple(documents),
        "input_ids": torch.from_numpy(input_ids),
        "labels": torch.from_numpy(labels),
        "position_ids": torch.from_numpy(position_ids),
    }
    if blocks[0].positions is not None:
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    if any(block.loss_weights is not None for block in blocks):
        batch["loss_weights"] = torch.from_numpy(loss_weights)
    return batch


def pack_windows(store: TokenStore, window: int, sequence_length: int, seed: int) -> "StoredBlocks":
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


def _pack_documents(store: TokenStore, chosen: np.ndarray, sequence_length: int) -> "StoredBlocks":
    return _fill(_pieces(store, chosen.tolist(), sequence_length), store, sequence_length)


_Piece = tuple[int, int, int]  # document, start, stop


def _pieces(store: TokenStore, chosen: Iterable[int], longest: int) -> list[_Piece]:
    """Documents cut every `longest` tokens, in the order of the store."""
    pieces = []
    for index in chosen:
        length = int(store.offsets[index + 1] - store.offsets[index])
        for start in range(0, length, longest):
            stop = min(start + longest, length)
            if stop - start >= _SHORTEST_SEGMENT:
                pieces.append((index, start, stop))
    return pieces


def _fill(pieces: Sequence[_Piece], store: TokenStore, sequence_length: int) -> "StoredBlocks":
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


def _concatenate(store: TokenStore, chosen: np.ndarray, sequence_length: int) -> "StoredBlocks":
    contents: list[list[_Piece]] = []
    content: list[_Piece] = []
    room = sequence_length
    for index in chosen.tolist():
        start, length = 0, int(store.offsets[index + 1] - store.offsets[index])
        while start < length:
            stop = min(length, start + room)
            content.append((index, start, stop))
            start, room = stop, room - (stop - start)
            if room == 0:
                contents.append(content)
                content, room = [], sequence_length
    return StoredBlocks(store, contents, joined=True)
