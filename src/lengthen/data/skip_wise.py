"""Positional skip-wise training (PoSE, arXiv 2309.10400): short sequences that meet all distances of a long context.

A sequence is two chunks of one document. The first has the positions 0, 1, 2, ...; those of the second go on after a
jump, so that distances up to the target context are seen at the cost of the sequence's own length. What is between the
chunks is never computed, hence nothing is learned from it either: what is trained is the positions.

Source: section 3.2 with two chunks, as in the revised procedure of the published code: the first chunk has 1 to half of
the tokens, begins its document and has no jump of its own; where the second begins in the text, and how far its
positions jump, are drawn independently and uniformly. We cut documents into windows of the target context first, as
the paper cuts off what is longer, and draw from each window as many sequences as its tokens would make.
"""

from collections.abc import Sequence

import numpy as np

from lengthen.data.blocks import Block
from lengthen.errors import DataError

__all__ = ["skip_positions", "skip_wise"]


def skip_wise(windows: Sequence[Block], sequence_length: int, target: int, seed: int) -> list[Block]:
    """Make short blocks, with positions that jump, of windows of long text.

    Args:
        windows: blocks as `pack` makes them with the target context as their length; segments that are shorter than
            `sequence_length` are left out.
        sequence_length: L, tokens of each block that is made, at least 2.
        target: the context whose positions are to be covered, tokens; above L.
        seed: of all draws.

    Returns:
        For each segment, as many blocks as L fits into it, in the order of the windows.

    Raises:
        DataError: every segment is too short.
    """
    generator = np.random.default_rng(seed)
    blocks = []
    for window in windows:
        for ids in np.split(window.input_ids, np.cumsum(window.segments)[:-1]):
            for _ in range(len(ids) // sequence_length):
                blocks.append(_draw(ids, sequence_length, target, generator))
    if not blocks:
        longest = max(max(window.segments) for window in windows)
        raise DataError(
            f"the longest document has {longest} tokens, below data.sequence_length {sequence_length}; lower it or use "
            "longer documents"
        )
    return blocks


def _draw(ids: np.ndarray, length: int, target: int, generator: np.random.Generator) -> Block:
    first = int(generator.integers(1, (length + 1) // 2, endpoint=True))
    text_skip = int(generator.integers(0, len(ids) - length, endpoint=True))
    jump = int(generator.integers(0, target - length, endpoint=True))
    chosen = np.concatenate([ids[:first], ids[first + text_skip : length + text_skip]])
    positions = np.arange(length, dtype=np.int64)
    positions[first:] += jump
    return Block(chosen, (length,), positions)


def skip_positions(length: int, target: int, generator: np.random.Generator) -> np.ndarray:
    """Positions with one jump for a sequence whose text is whole, int64, (length,).

    What is asked for at the end has to be found at any distance up to the target. Of a jump drawn uniformly the longest
    distances get almost nothing: trained that way, SmolLM2 found at 16,384 tokens everything but the fact at the very
    start. So half of the sequences take the longest jump, from position 0 to the target's last. The jump's place is
    anywhere in the inner three quarters; of the other sequences three in ten do not begin at position 0 either.

    Args:
        length: tokens, at least 2.
        target: the context whose positions are to be covered, at least `length`.
        generator: draws the jump's place and size.
    """
    cut = int(generator.integers(max(1, length // 8), length * 7 // 8, endpoint=True))
    jump, first = target - length, 0
    if generator.random() < 0.5:
        jump = int(generator.integers(0, target - length, endpoint=True))
        if generator.random() < 0.3:
            first = int(generator.integers(0, target - length - jump, endpoint=True))
    positions = np.arange(first, first + length, dtype=np.int64)
    positions[cut:] += jump
    return positions
