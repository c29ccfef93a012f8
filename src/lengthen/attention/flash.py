"""S2 through flash-attention's variable-length kernels: every group is a sequence of its own, in one call.

The two halves of the heads have other groups. They become one call by folding heads into tokens: strips of heads that
share their groups follow each other along the token dimension. Sinks are keys in front of a group's own; the kernels
align causality at the last query and key, so every query of the group sees them.

Shape suffixes: B sequences, T tokens, H query heads, K key/value heads, D head size, S strips of heads, U heads of a
strip, N tokens of all strips.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch.nn.functional import pad

from lengthen.attention.layout import Documents, Spans
from lengthen.attention.pattern import Groups, s2_first_shifted_head

__all__ = ["Varlen", "s2_flash"]

Varlen = Callable[..., torch.Tensor]
"""flash-attention's flash_attn_varlen_func; versions 2 and 3 share the arguments that are used here."""


def s2_flash(
    q_BHTD: torch.Tensor,
    k_BKTD: torch.Tensor,
    v_BKTD: torch.Tensor,
    documents: Documents,
    groups: Groups,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    varlen: Varlen,
) -> torch.Tensor:
    """Shifted sparse attention over the documents of a batch.

    Args:
        q_BHTD: queries (B, H, T, D).
        k_BKTD: keys (B, K, T, D); K divides H.
        v_BKTD: values (B, K, T, D'), D' at most D.
        documents: per sequence, (start, length) of each document; tokens in none get zeros.
        groups: of the layer.
        scaling: factor on the scores; None means 1/sqrt(D).
        dropout: probability of dropping an attention weight.
        varlen: the kernel.

    Returns:
        (B, T, H, D'), equal to full attention under `groups_mask` for either half of the heads.
    """
    batch, heads, length, size = q_BHTD.shape
    kv_heads, value_size = k_BKTD.shape[1], v_BKTD.shape[-1]
    first = s2_first_shifted_head(heads, kv_heads)
    # The largest strips that hold heads of one half only.
    unit = math.gcd(first, heads - first)
    strips, kv_unit = heads // unit, max(1, unit * kv_heads // heads)
    sequences = _sequences(documents, groups, length, first // unit, strips, q_BHTD.device)

    q = _fold(q_BHTD, strips, unit)
    if value_size < size:  # the kernels want keys and values of one size
        v_BKTD = pad(v_BKTD, (0, size - value_size))
    if kv_heads == 1:  # the strips share it
        k_BKTD, v_BKTD = (x.expand(-1, strips, -1, -1) for x in (k_BKTD, v_BKTD))
    k, v = (_fold(x, strips, kv_unit) for x in (k_BKTD, v_BKTD))
    if sequences.keys is not None:
        k, v = k[sequences.keys], v[sequences.keys]
    more = {"dropout_p": dropout} if dropout else {}
    out = varlen(
        q,
        k,
        v,
        sequences.query_ends,
        sequences.key_ends,
        sequences.longest_query,
        sequences.longest_key,
        softmax_scale=scaling if scaling is not None else size**-0.5,
        causal=True,
        **more,
    )
    out_BTHD = out.view(strips, batch, length, unit, size).permute(1, 2, 0, 3, 4).flatten(2, 3)[..., :value_size]
    if sequences.padding is not None:
        out_BTHD = out_BTHD.masked_fill(sequences.padding[:, :, None, None], 0)
    return out_BTHD


def _fold(x_BHTD: torch.Tensor, strips: int, unit: int) -> torch.Tensor:
    """(B, S*U, T, D) -> (S*B*T, U, D)."""
    x_BSUTD = x_BHTD.unflatten(1, (strips, unit))
    return x_BSUTD.permute(1, 0, 3, 2, 4).reshape(-1, unit, x_BHTD.shape[-1])


class _Sequences(NamedTuple):
    query_ends: torch.Tensor
    """int32, 0 and then where each sequence ends among the N query tokens: flash-attention's cu_seqlens."""
    key_ends: torch.Tensor
    longest_query: int
    longest_key: int
    keys: torch.Tensor | None
    """Which of the N tokens are keys, in their order; None: each once."""
    padding: torch.Tensor | None
    """(B, T) bool, True at tokens of no document; None for none."""


@lru_cache(maxsize=8)  # all layers of a forward pass, and of its recomputation, share one
def _sequences(
    documents: Documents, groups: Groups, length: int, first_strips: int, strips: int, device: torch.device
) -> _Sequences:
    query_lengths, key_lengths, keys = [], [], []
    for strip in range(strips):
        for row, spans in enumerate(documents):
            origin = (strip * len(documents) + row) * length
            for start, begin, end in _groups_of(spans, groups, int(strip >= first_strips), length):
                sinks = range(origin + start, origin + start + groups.sinks) if begin > start else range(0)
                query_lengths.append(end - begin)
                key_lengths.append(len(sinks) + end - begin)
                keys += [*sinks, *range(origin + begin, origin + end)] if groups.sinks else []

    def ends(lengths: list[int]) -> torch.Tensor:
        return torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)

    padding = torch.ones(len(documents), length, dtype=torch.bool)
    for row, spans in enumerate(documents):
        for start, size in spans:
            padding[row, start : start + size] = False
    return _Sequences(
        ends(query_lengths),
        ends(key_lengths),
        max(query_lengths),
        max(key_lengths),
        torch.tensor(keys, device=device) if groups.sinks else None,
        padding.to(device) if padding.any() else None,
    )


def _groups_of(spans: Spans, groups: Groups, half: int, length: int) -> list[tuple[int, int, int]]:
    """(document's start, begin, end) of all groups of a sequence; padding becomes groups without sinks."""
    found, done = [], 0
    for start, size in (*spans, (length, 0)):
        found += [(begin, begin, min(begin + groups.size, start)) for begin in range(done, start, groups.size)]
        if size:
            found += [(start, start + a, start + b) for a, b in pairwise(groups.cuts(size, half))]
        done = start + size
    return found
