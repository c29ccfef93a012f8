"""Counts of documents and of training sequences: how many, how long, how full."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lengthen.data.blocks import Block, StoredBlocks

__all__ = ["any_packed", "count_tokens", "describe_blocks", "describe_lengths", "positions_beyond"]


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


def count_tokens(blocks: Sequence[Block]) -> int:
    """Tokens of all blocks."""
    return sum(sum(segments) for segments, _ in _places(blocks))


def any_packed(blocks: Sequence[Block]) -> bool:
    """Whether a block has more than one segment."""
    return any(len(segments) > 1 for segments, _ in _places(blocks))


def positions_beyond(blocks: Sequence[Block], context: int) -> float:
    """Share of all tokens whose position in their segment is `context` or later: what a longer context is for.

    Args:
        blocks: training sequences.
        context: of the base, tokens.
    """
    total = beyond = 0
    for segments, positions in _places(blocks):
        total += sum(segments)
        if positions is not None:
            beyond += int((positions >= context).sum())
        else:
            beyond += sum(max(0, length - context) for length in segments)
    return beyond / total if total else 0.0


def _places(blocks: Sequence[Block]) -> Iterator[tuple[tuple[int, ...], np.ndarray | None]]:
    """Segments and positions of each block; one that is made when it is asked for is not made."""
    if isinstance(blocks, StoredBlocks):
        return ((blocks.segments(index), None) for index in range(len(blocks)))
    return ((block.segments, block.positions) for block in blocks)


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
    tokens = count_tokens(blocks)
    described = {
        "sequence_length": sequence_length,
        "blocks": len(blocks),
        "tokens": tokens,
        "segments": sum(len(segments) for segments, _ in _places(blocks)),
        "fill": tokens / (len(blocks) * sequence_length) if blocks else 0.0,
    }
    if context is not None:
        described |= {"context": context, "positions_beyond": positions_beyond(blocks, context)}
    return described
