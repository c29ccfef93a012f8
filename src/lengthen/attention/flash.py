"""S2 through variable-length attention kernels: every group is a sequence of its own, one call a half of the heads.

The kernels take views of the heads of a half, so nothing is copied on the way in; the outputs are joined by one copy,
and so are the gradients of queries, keys and values. Whatever documents a batch has, its shapes are the same: only the
ends of the sequences differ. Sinks are keys in front of a group's own; the kernels align causality at the last query
and key, so every query of the group sees them.

Shape suffixes: B sequences, T tokens, N = B*T, H query heads, K key/value heads, D head size, R heads of one call.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch.nn.functional import pad

from lengthen.attention.documents import Documents, Spans
from lengthen.attention_pattern import Groups, head_parts

__all__ = ["Varlen", "s2_flash"]

Varlen = Callable[..., torch.Tensor]
"""flash-attention's flash_attn_varlen_func; versions 2 and 3 and torch's own share the arguments that are used here."""

_SIZE_STEP = 8
"""Kernels want head sizes that are multiples of it."""


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
    # The kernels want one size for all three; zeros change no score.
    padded = -(-size // _SIZE_STEP) * _SIZE_STEP
    q_NHD, k_NKD, v_NKD = (_tokens(x, padded) for x in (q_BHTD, k_BKTD, v_BKTD))
    parts = head_parts(heads, kv_heads, documents, groups)
    # `split` gives views, whose gradients are put together by one `cat`.
    queries = q_NHD.split([part.heads.stop - part.heads.start for part in parts], dim=1)
    if kv_heads == 1:
        keys, values = ([x] * len(parts) for x in (k_NKD, v_NKD))
    else:
        counts = [part.kv_heads.stop - part.kv_heads.start for part in parts]
        keys, values = k_NKD.split(counts, dim=1), v_NKD.split(counts, dim=1)
    more = {"dropout_p": dropout} if dropout else {}
    outputs = []
    for part, q_NRD, k_NRD, v_NRD in zip(parts, queries, keys, values, strict=True):
        sequences = _sequences(documents, groups, part.half, length, q_BHTD.device)
        if sequences.keys is not None:
            k_NRD, v_NRD = (x.index_select(0, sequences.keys) for x in (k_NRD, v_NRD))
        out_NRD = varlen(
            q_NRD,
            k_NRD,
            v_NRD,
            sequences.query_ends,
            sequences.key_ends,
            sequences.longest_query,
            sequences.longest_key,
            softmax_scale=scaling if scaling is not None else size**-0.5,
            causal=True,
            **more,
        )
        outputs.append(out_NRD)
    out_NHD = torch.cat(outputs, dim=1) if len(outputs) > 1 else outputs[0]
    out_BTHD = out_NHD.unflatten(0, (batch, length))[..., :value_size]
    padding_BT = _padding(documents, length, q_BHTD.device)
    return out_BTHD if padding_BT is None else out_BTHD.masked_fill(padding_BT[:, :, None, None], 0)


def _tokens(x_BHTD: torch.Tensor, size: int) -> torch.Tensor:
    """(B, H, T, D) to (B*T, H, size), a view where the memory is (B, T, H, D) and the size is right."""
    x_NHD = x_BHTD.transpose(1, 2).flatten(0, 1)
    return pad(x_NHD, (0, size - x_NHD.shape[-1])) if x_NHD.shape[-1] < size else x_NHD


class _Sequences(NamedTuple):
    """The groups of one half of the heads as the kernels take them."""

    query_ends: torch.Tensor
    """int32, 0 and then where each sequence ends among the N query tokens: flash-attention's cu_seqlens."""
    key_ends: torch.Tensor
    longest_query: int
    longest_key: int
    keys: torch.Tensor | None
    """Which of the N tokens are keys, in their order, sinks in front of each group; None: each once."""


@lru_cache(maxsize=64)  # both halves, for all layers of a forward pass and of its recomputation, by chunks
def _sequences(documents: Documents, groups: Groups, half: int, length: int, device: torch.device) -> _Sequences:
    query_lengths, key_lengths, keys = [], [], []
    for row, spans in enumerate(documents):
        origin = row * length
        for begin, end, sinks_at in _groups_of(spans, groups, half, length):
            sinks = 0 if sinks_at is None else groups.sinks
            query_lengths.append(end - begin)
            key_lengths.append(sinks + end - begin)
            if sinks_at is not None:
                keys.append(torch.arange(origin + sinks_at, origin + sinks_at + sinks))
            if groups.sinks:
                keys.append(torch.arange(origin + begin, origin + end))

    def ends(lengths: list[int]) -> torch.Tensor:
        return torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)

    # Queries of one token each would be taken for decoding, which has no backward pass.
    return _Sequences(
        ends(query_lengths),
        ends(key_lengths),
        max(2, *query_lengths),
        max(2, *key_lengths),
        torch.cat(keys).to(device) if keys else None,
    )


def _groups_of(spans: Spans, groups: Groups, half: int, length: int) -> list[tuple[int, int, int | None]]:
    """(begin, end, where its sinks lie) of all groups of a sequence; padding becomes groups without sinks."""
    found: list[tuple[int, int, int | None]] = []
    done = 0
    for span in (*spans, (length, 0)):
        start, size = span[:2]
        found += [(begin, min(begin + groups.size, start), None) for begin in range(done, start, groups.size)]
        if size:
            found += groups.bounds(span, half)
        done = start + size
    return found


@lru_cache(maxsize=64)
def _padding(documents: Documents, length: int, device: torch.device) -> torch.Tensor | None:
    """(B, T) bool, True at tokens of no document; None for none."""
    padding_BT = torch.ones(len(documents), length, dtype=torch.bool)
    for row, spans in enumerate(documents):
        for start, size, *_ in spans:
            padding_BT[row, start : start + size] = False
    return padding_BT.to(device) if padding_BT.any() else None
