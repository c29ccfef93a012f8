"""S2 on torch's scaled_dot_product_attention: groups become the batch; no mask, no roll, no repeated keys and values.

Shape suffixes: B sequences, N groups of one size, T tokens, G tokens of a group, H query heads, K key/value heads,
R = H/K query heads per key/value head, D head size.
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention

from lengthen.attention.layout import Documents, Spans
from lengthen.attention.pattern import Groups, head_halves

__all__ = ["s2_sdpa"]


def s2_sdpa(
    q_BHTD: torch.Tensor,
    k_BKTD: torch.Tensor,
    v_BKTD: torch.Tensor,
    documents: Documents,
    groups: Groups,
    scaling: float | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Shifted sparse attention over the documents of a batch.

    Args:
        q_BHTD: queries (B, H, T, D).
        k_BKTD: keys (B, K, T, D); K divides H.
        v_BKTD: values (B, K, T, D'); D' may differ from D.
        documents: per sequence, (start, length) of each document; tokens in none get zeros.
        groups: of the layer.
        scaling: factor on the scores; None means 1/sqrt(D).
        dropout: probability of dropping an attention weight.

    Returns:
        (B, T, H, D'), equal to full attention under `groups_mask` for either half of the heads.
    """
    halves = head_halves(q_BHTD.shape[1], k_BKTD.shape[1])
    same_everywhere = all(row == documents[0] for row in documents)
    rows = [slice(None)] if same_everywhere else [slice(b, b + 1) for b in range(len(documents))]
    outputs = []
    for row in rows:
        row_documents = documents[row.start or 0]
        half_outputs = []
        for half, (q_heads, kv) in enumerate(halves):
            runs = _equal_runs(row_documents, groups, half)
            tensors = (q_BHTD[row, q_heads], k_BKTD[row, kv], v_BKTD[row, kv])
            half_outputs.append(_half(*tensors, runs, groups.sinks, scaling, dropout))
        outputs.append(torch.cat(half_outputs, dim=2))
    return torch.cat(outputs) if len(outputs) > 1 else outputs[0]


class _Run(NamedTuple):
    """Neighbouring groups of one size in one document, or in several where no sinks are to be seen."""

    start: int
    groups: int
    size: int
    sinks_at: int | None
    """Where the document begins whose first tokens the groups see beside their own; None for none."""


def _half(
    q_BHTD: torch.Tensor,
    k_BKTD: torch.Tensor,
    v_BKTD: torch.Tensor,
    runs: list[_Run],
    sinks: int,
    scaling: float | None,
    dropout: float,
) -> torch.Tensor:
    """One head half of sequences that share a layout; returns (B, T, H, D')."""
    batch, heads, length, _ = q_BHTD.shape
    pieces, done = [], 0
    for run in runs:
        if run.start > done:  # padding
            pieces.append(q_BHTD.new_zeros(batch, run.start - done, heads, v_BKTD.shape[-1]))
        done = run.start + run.groups * run.size
        q, k, v = (_into_groups(x, run, sinks) for x in (q_BHTD, k_BKTD, v_BKTD))
        skip = 0 if run.sinks_at is None else sinks
        pieces.append(_grouped(q, k, v, skip, scaling, dropout))
    if done < length:
        pieces.append(q_BHTD.new_zeros(batch, length - done, heads, v_BKTD.shape[-1]))
    return torch.cat(pieces, dim=1) if len(pieces) > 1 else pieces[0]


def _into_groups(x_BHTD: torch.Tensor, run: _Run, sinks: int) -> torch.Tensor:
    """(B, H, N, G, D), where the groups need them with their sinks in front.

    As queries too: then plain causal attention is exactly what is wanted, and the sinks' outputs are dropped.
    """
    own = x_BHTD[:, :, run.start : run.start + run.groups * run.size].unflatten(2, (run.groups, run.size))
    if run.sinks_at is None:
        return own
    first = x_BHTD[:, :, None, run.sinks_at : run.sinks_at + sinks].expand(-1, -1, run.groups, -1, -1)
    return torch.cat((first, own), dim=3)


def _equal_runs(documents: Spans, groups: Groups, half: int) -> list[_Run]:
    """The groups of all documents in order, equal neighbours together."""
    runs: list[_Run] = []
    for start, length in documents:
        for begin, end in pairwise(groups.cuts(length, half)):
            # A document's first group has its sinks in it.
            run = _Run(start + begin, 1, end - begin, start if groups.sinks and begin else None)
            last = runs[-1] if runs else None
            if last and last[2:] == run[2:] and last.start + last.groups * last.size == run.start:
                runs[-1] = last._replace(groups=last.groups + 1)
            else:
                runs.append(run)
    return runs


def _grouped(
    q_BHNGD: torch.Tensor,
    k_BKNGD: torch.Tensor,
    v_BKNGD: torch.Tensor,
    skip: int,
    scaling: float | None,
    dropout: float,
) -> torch.Tensor:
    """Causal attention inside each group, without each group's first `skip` rows; returns (B, T, H, D')."""
    batch, heads, groups = q_BHNGD.shape[:3]
    kv_heads = k_BKNGD.shape[1]
    repeats = heads // kv_heads

    def into_batch(x_BKRNGD: torch.Tensor) -> torch.Tensor:
        x_BNKRGD = x_BKRNGD.permute(0, 3, 1, 2, 4, 5)
        return x_BNKRGD.reshape(batch * groups * kv_heads, -1, *x_BNKRGD.shape[-2:])

    # Key/value heads ride in the batch too: their query heads then share them by a stride of zero, where torch's
    # enable_gqa is 1.4 times slower on CPU and repeat_kv copies.
    q = into_batch(q_BHNGD.unflatten(1, (kv_heads, repeats)))
    k = into_batch(k_BKNGD.unsqueeze(2)).expand(-1, repeats, -1, -1)
    v = into_batch(v_BKNGD.unsqueeze(2)).expand(-1, repeats, -1, -1)
    out = scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=scaling)[:, :, skip:]
    out_BNKRGD = out.unflatten(0, (batch, groups, kv_heads))
    return out_BNKRGD.permute(0, 1, 4, 2, 3, 5).reshape(batch, -1, heads, v_BKNGD.shape[-1])
