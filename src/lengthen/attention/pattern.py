"""Shifted sparse attention (S2-Attn) as a pattern: which token may look at which.

This file is the only definition. Backends take their groups from `s2_segments` and must equal `s2_mask`.

Source: LongLoRA (arXiv 2309.12307), section 3.2 and figure 3. There, half of the heads roll the sequence by half a
group, so the first half group lands in one group with the last one and sees the future. Here the shifted heads start
with a half group instead, which keeps every token's view causal and its groups local.

Beyond the paper: `sinks`. A pretrained model rests attention that it has no use for on the first tokens of the text
(attention sinks, arXiv 2309.17453). Groups that don't see them break it before training has begun: SmolLM2-135M's loss
rises by 0.96 nats under plain S2, and by 0.07 with one sink (docs/results/smollm2-16k.md). With sinks, the first tokens
of a document are seen by all its groups. 0, the published pattern, is the default.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch

from lengthen.errors import LengthenError

__all__ = ["check_group_size", "s2_first_shifted_head", "s2_mask", "s2_segments"]


def check_group_size(group_size: int, sinks: int = 0) -> int:
    """Return `group_size` if S2 can use it.

    Raises:
        LengthenError: it is below 2, where the shifted heads would have empty half groups, or the sinks don't fit the
            first half group.
    """
    if group_size < 2:
        raise LengthenError(f"attention.group_size is {group_size} tokens; S2 needs at least 2")
    if not 0 <= sinks <= group_size // 2:
        raise LengthenError(
            f"attention.sinks is {sinks}; with groups of {group_size} it must be 0 to {group_size // 2}"
        )
    return group_size


def s2_segments(length: int, group_size: int, shifted: bool) -> list[int]:
    """Cut points of one document: groups are the spans between neighbouring points.

    Plain heads cut at 0, g, 2g, ...; shifted heads at 0, g//2, g//2 + g, g//2 + 2g, ...; both end at `length`, so
    the last group may be short. A document of at most g//2 tokens is one group in both.

    Args:
        length: tokens in the document, at least 1.
        group_size: g, in tokens, at least 2.
        shifted: for the shifted heads.

    Returns:
        Increasing cut points from 0 to `length`.
    """
    first = group_size // 2 if shifted else group_size
    return [0, *range(first, length, check_group_size(group_size)), length]


def s2_first_shifted_head(num_heads: int, num_kv_heads: int) -> int:
    """The first query head that is shifted; all before it are plain.

    Heads that share a key/value head go together: the first ceil(K/2) key/value heads are plain. With one key/value
    head (multi-query attention) the query heads are split themselves and share it.
    """
    if num_kv_heads == 1:
        return (num_heads + 1) // 2
    return (num_kv_heads + 1) // 2 * (num_heads // num_kv_heads)


def s2_mask(segment_lengths: Sequence[int], group_size: int, shifted: bool, sinks: int = 0) -> torch.Tensor:
    """The slow reference: which key (column) each query (row) sees.

    Args:
        segment_lengths: tokens of each document packed in the sequence, in order.
        group_size: g, in tokens.
        shifted: for the shifted heads.
        sinks: first tokens of each document that all its groups see.

    Returns:
        Boolean tensor (T, T), T the sum of `segment_lengths`; True where query t sees key s: s <= t, same
        document, and same group or s among the document's first `sinks` tokens.
    """
    check_group_size(group_size, sinks)
    total = sum(segment_lengths)
    allowed = torch.zeros(total, total, dtype=torch.bool)
    start = 0
    for length in segment_lengths:
        for begin, end in pairwise(s2_segments(length, group_size, shifted)):
            allowed[start + begin : start + end, start + begin : start + end] = True
        allowed[start : start + length, start : start + min(sinks, length)] = True
        start += length
    return allowed.tril()
