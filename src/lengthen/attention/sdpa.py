"""S2 on torch's scaled_dot_product_attention: groups become the batch; no mask, no roll, no repeated keys and values.

Shape suffixes: B sequences, N groups of one size, T tokens, G tokens of a group, H query heads, K key/value heads,
R = H/K query heads per key/value head, D head size.
"""

from itertools import pairwise

import torch
from torch.nn.functional import scaled_dot_product_attention

from lengthen.attention.pattern import s2_first_shifted_head, s2_segments

__all__ = ["s2_sdpa"]

Documents = list[tuple[int, int]]


def s2_sdpa(
    q_BHTD: torch.Tensor,
    k_BKTD: torch.Tensor,
    v_BKTD: torch.Tensor,
    documents: list[Documents],
    group_size: int,
    scaling: float | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Shifted sparse attention over the documents of a batch.

    Args:
        q_BHTD: queries (B, H, T, D).
        k_BKTD: keys (B, K, T, D); K divides H.
        v_BKTD: values (B, K, T, D'); D' may differ from D.
        documents: per sequence, (start, length) of each document; tokens in none get zeros.
        group_size: g, in tokens.
        scaling: factor on the scores; None means 1/sqrt(D).
        dropout: probability of dropping an attention weight.

    Returns:
        (B, T, H, D'), equal to full attention under `s2_mask` for the plain and the shifted heads.
    """
    heads, kv_heads = q_BHTD.shape[1], k_BKTD.shape[1]
    first = s2_first_shifted_head(heads, kv_heads)
    kv_first = kv_heads if kv_heads == 1 else first * kv_heads // heads
    kv_shifted = slice(0 if kv_heads == 1 else kv_first, kv_heads)
    halves = [(slice(0, first), slice(0, kv_first), False), (slice(first, heads), kv_shifted, True)]
    same_everywhere = all(row == documents[0] for row in documents)
    rows = [slice(None)] if same_everywhere else [slice(b, b + 1) for b in range(len(documents))]
    outputs = []
    for row in rows:
        row_documents = documents[row.start or 0]
        half_outputs = [
            _half(
                q_BHTD[row, q_heads],
                k_BKTD[row, kv],
                v_BKTD[row, kv],
                row_documents,
                group_size,
                shifted,
                scaling,
                dropout,
            )
            for q_heads, kv, shifted in halves
            if q_heads.start < q_heads.stop
        ]
        outputs.append(torch.cat(half_outputs, dim=2))
    return torch.cat(outputs) if len(outputs) > 1 else outputs[0]


def _half(
    q_BHTD: torch.Tensor,
    k_BKTD: torch.Tensor,
    v_BKTD: torch.Tensor,
    documents: Documents,
    group_size: int,
    shifted: bool,
    scaling: float | None,
    dropout: float,
) -> torch.Tensor:
    """One head half of sequences that share a layout; returns (B, T, H, D')."""
    batch, heads, length, _ = q_BHTD.shape
    pieces, done = [], 0
    for start, count, size in _equal_runs(documents, group_size, shifted):
        if start > done:  # padding
            pieces.append(q_BHTD.new_zeros(batch, start - done, heads, v_BKTD.shape[-1]))
        done = start + count * size
        q, k, v = (x[:, :, start:done] for x in (q_BHTD, k_BKTD, v_BKTD))
        pieces.append(_grouped(q, k, v, count, scaling, dropout))
    if done < length:
        pieces.append(q_BHTD.new_zeros(batch, length - done, heads, v_BKTD.shape[-1]))
    return torch.cat(pieces, dim=1) if len(pieces) > 1 else pieces[0]


def _equal_runs(documents: Documents, group_size: int, shifted: bool) -> list[tuple[int, int, int]]:
    """(start, groups, tokens per group) of each longest run of neighbouring groups of one size."""
    runs: list[tuple[int, int, int]] = []
    for start, length in documents:
        for begin, end in pairwise(s2_segments(length, group_size, shifted)):
            size = end - begin
            if runs and runs[-1][2] == size and runs[-1][0] + runs[-1][1] * size == start + begin:
                runs[-1] = (runs[-1][0], runs[-1][1] + 1, size)
            else:
                runs.append((start + begin, 1, size))
    return runs


def _grouped(
    q_BHTD: torch.Tensor,
    k_BKTD: torch.Tensor,
    v_BKTD: torch.Tensor,
    groups: int,
    scaling: float | None,
    dropout: float,
) -> torch.Tensor:
    """Causal attention inside each of `groups` equal groups; returns (B, T, H, D')."""
    batch, heads, length, _ = q_BHTD.shape
    kv_heads = k_BKTD.shape[1]
    repeats, size = heads // kv_heads, length // groups

    def into_batch(x_BKRTD: torch.Tensor) -> torch.Tensor:
        x_BNKRGD = x_BKRTD.unflatten(3, (groups, size)).permute(0, 3, 1, 2, 4, 5)
        return x_BNKRGD.reshape(batch * groups * kv_heads, -1, size, x_BKRTD.shape[-1])

    # Key/value heads ride in the batch too: their query heads then share them by a stride of zero, where torch's
    # enable_gqa is 1.4 times slower on CPU and repeat_kv copies.
    q = into_batch(q_BHTD.unflatten(1, (kv_heads, repeats)))
    k = into_batch(k_BKTD.unsqueeze(2)).expand(-1, repeats, -1, -1)
    v = into_batch(v_BKTD.unsqueeze(2)).expand(-1, repeats, -1, -1)
    out = scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=scaling)
    out_BNKRGD = out.unflatten(0, (batch, groups, kv_heads))
    return out_BNKRGD.permute(0, 1, 4, 2, 3, 5).reshape(batch, length, heads, v_BKTD.shape[-1])
