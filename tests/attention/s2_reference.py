"""What every backend is compared with: full attention under the reference mask."""

import torch

from lengthen.attention.reference import groups_mask
from lengthen.attention_pattern import s2_first_shifted_head

HEAD_COUNTS = [(9, 3), (4, 4), (5, 1), (4, 2), (1, 1), (3, 3), (6, 1)]


def reference(q, k, v, documents, groups, scaling=None):
    """Full attention in float64 under the boolean mask, padding queries to zero."""
    batch, heads, length, _ = q.shape
    first = s2_first_shifted_head(heads, k.shape[1])
    k, v = (x.repeat_interleave(heads // x.shape[1], 1) for x in (k, v))
    allowed = torch.zeros(batch, heads, length, length, dtype=torch.bool)
    for row, spans in enumerate(documents):
        for start, size in spans:
            span = slice(start, start + size)
            allowed[row, :first, span, span] = groups_mask([size], groups, 0)
            allowed[row, first:, span, span] = groups_mask([size], groups, 1)
    scores = q @ k.transpose(-1, -2) * (scaling or q.shape[-1] ** -0.5)
    weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1).nan_to_num()
    return (weights @ v).transpose(1, 2)


def assert_equal_with_gradients(ours, expected, inputs):
    """Two ways to compute the same from `inputs` agree, forward and backward."""
    torch.testing.assert_close(ours, expected)
    weight = torch.randn(ours.shape, dtype=ours.dtype)
    for mine, theirs in zip(
        torch.autograd.grad((ours * weight).sum(), inputs),
        torch.autograd.grad((expected * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def inputs_for(layout, head_counts, value_size=6, dtype=torch.float64):
    """Queries, keys and values: (B, T, H, D) memory seen as (B, H, T, D), as models give it."""
    length, documents = layout
    heads, kv = head_counts
    generator = torch.Generator().manual_seed(length)
    return [
        torch.randn(len(documents), length, n, d, dtype=dtype, generator=generator).transpose(1, 2).requires_grad_()
        for n, d in ((heads, 8), (kv, 8), (kv, value_size))
    ]
