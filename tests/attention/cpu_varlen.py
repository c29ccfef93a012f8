"""Slow CPU kernels for torch's variable-length operators, so that `torch.nn.attention.varlen` runs without a GPU."""

from itertools import pairwise

import torch
from torch.nn.attention import varlen

CALLS = []
"""Shapes of the queries of each forward call."""


def weights(q, k, scale):
    """Attention weights of one sequence, (H, queries, keys); causality is aligned at the last query and key."""
    visible = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q))
    return (torch.einsum("thd,shd->hts", q, k) * scale).masked_fill(~visible, -torch.inf).softmax(-1)


def spans(query_ends, key_ends):
    for (a, b), (c, d) in zip(pairwise(query_ends.tolist()), pairwise(key_ends.tolist()), strict=True):
        yield slice(a, b), slice(c, d)


@varlen._varlen_attn.register_kernel("cpu")
def forward(q, k, v, query_ends, key_ends, longest_query, longest_key, causal, scale, window, *_more):
    CALLS.append(tuple(q.shape))
    assert causal
    assert tuple(window) == (-1, 0)
    assert query_ends.dtype == key_ends.dtype == torch.int32
    assert (query_ends[-1], key_ends[-1]) == (len(q), len(k))
    assert (max(2, query_ends.diff().max()), max(2, key_ends.diff().max())) == (longest_query, longest_key)
    assert all(x.shape[-1] == q.shape[-1] and x.stride(-1) == 1 and x.shape[-1] % 8 == 0 for x in (q, k, v))
    out = torch.empty_like(q)
    for own, seen in spans(query_ends, key_ends):
        k_seen, v_seen = (x[seen].repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        out[own] = torch.einsum("hts,shd->thd", weights(q[own], k_seen, scale), v_seen)
    return out, q.new_zeros(q.shape[1], q.shape[0], dtype=torch.float), torch.zeros(2, dtype=torch.uint64)


@varlen._varlen_attn_backward.register_kernel("cpu")
def backward(grad, q, k, v, _out, _lse, query_ends, key_ends, _longest_q, _longest_k, _causal, _rng, scale, *_more):
    repeats = q.shape[1] // k.shape[1]
    grad_q, grad_k, grad_v = (torch.zeros(x.shape[0], *q.shape[1:], dtype=q.dtype) for x in (q, k, v))
    for own, seen in spans(query_ends, key_ends):
        k_seen, v_seen = (x[seen].repeat_interleave(repeats, 1) for x in (k, v))
        p = weights(q[own], k_seen, scale)
        grad_p = torch.einsum("thd,shd->hts", grad[own], v_seen)
        grad_scores = p * (grad_p - (grad_p * p).sum(-1, keepdim=True)) * scale
        grad_q[own] += torch.einsum("hts,shd->thd", grad_scores, k_seen)
        grad_k[seen] += torch.einsum("hts,thd->shd", grad_scores, q[own])
        grad_v[seen] += torch.einsum("hts,thd->shd", p, grad[own])
    return grad_q, *(x.unflatten(1, (k.shape[1], repeats)).sum(2) for x in (grad_k, grad_v))
