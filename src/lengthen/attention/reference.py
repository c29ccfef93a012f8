"""The slow reference of S2: the pattern as a boolean mask, which every backend must equal, forward and backward."""

from collections.abc import Sequence
from itertools import pairwise

import torch

from lengthen.attention_pattern import Groups

__all__ = ["groups_mask", "s2_mask"]


def groups_mask(segment_lengths: Sequence[int], groups: Groups, half: int) -> torch.Tensor:
    """Which key (column) each query (row) sees.

    Args:
        segment_lengths: tokens of each document packed in the sequence, in order.
        groups: of the layer.
        half: 0 for the first half of the heads, 1 for the second.

    Returns:
        Boolean tensor (T, T), T the sum of `segment_lengths`; True where query t sees key s: s <= t, same document,
        and same group or s among the document's first `groups.sinks` tokens.
    """
    total = sum(segment_lengths)
    allowed = torch.zeros(total, total, dtype=torch.bool)
    start = 0
    for length in segment_lengths:
        for begin, end in pairwise(groups.cuts(length, half)):
            allowed[start + begin : start + end, start + begin : start + end] = True
        allowed[start : start + length, start : start + min(groups.sinks, length)] = True
        start += length
    return allowed.tril()


def s2_mask(segment_lengths: Sequence[int], group_size: int, shifted: bool, sinks: int = 0) -> torch.Tensor:
    """`groups_mask` of S2 itself: groups of `group_size` tokens, for the plain or the shifted heads.

    Args:
        segment_lengths: tokens of each document, in order; their sum is T.
        group_size: g, tokens.
        shifted: whether it is the mask of the shifted heads.
        sinks: first tokens of each document that all of it sees.

    Returns:
        bool, (T, T): whether the row's token sees the column's.
    """
    return groups_mask(segment_lengths, Groups(group_size, sinks), int(shifted))
