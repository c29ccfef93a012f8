"""S2 on torch's scaled_dot_product_attention: groups become the batch; no mask, no roll, no repeated keys and values.

Shape suffixes: B sequences, N groups of one size, T tokens, G tokens of a group (its sinks in front), H query heads,
K key/value heads, R query heads of one call, D head size, P = B*N.

One document of T = 10 tokens in groups of g = 4 and without sinks is four calls, each a causal attention:

    plain heads     0 1 2 3 | 4 5 6 7    P = 2, G = 4        8 9        P = 1, G = 2
    shifted heads   2 3 4 5 | 6 7 8 9    P = 2, G = 4        0 1        P = 1, G = 2
"""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention

from lengthen._compat import without_cudnn_attention
from lengthen.attention.documents import Documents, Spans, is_regular
from lengthen.attention_pattern import Groups, head_parts

__all__ = ["s2_sdpa"]

_LARGEST_FLASH = 256
"""Head size that torch's flash kernel takes at most."""


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
    batch, heads, length, _ = q_BHTD.shape
    kv_heads, parts = k_BKTD.shape[1], len(head_parts(heads, k_BKTD.shape[1], documents, groups))
    if kv_heads == 1:  # each half takes a copy, so that no two groups lie at one place
        k_BKTD, v_BKTD = (x.expand(-1, parts, -1, -1) for x in (k_BKTD, v_BKTD))
    native = _takes_fewer_kv_heads(q_BHTD, v_BKTD)
    q_places, kv_places = _places(documents, groups, heads, kv_heads, native)
    if not q_places:  # nothing but padding
        return v_BKTD.new_zeros(batch, length, heads, v_BKTD.shape[-1])
    pieces = []
    with nullcontext() if not q_BHTD.is_cuda or is_regular(documents, length) else without_cudnn_attention():
        for q_PRGD, k, v in zip(
            _Take.apply(q_BHTD, q_places, groups.sinks),
            _Take.apply(k_BKTD, kv_places, groups.sinks),
            _Take.apply(v_BKTD, kv_places, groups.sinks),
            strict=True,
        ):
            shares = q_PRGD.shape[1] != k.shape[1]
            if shares and not native:
                k, v = (x_PRGD.expand(-1, q_PRGD.shape[1], -1, -1) for x_PRGD in (k, v))
            out_PRGD = scaled_dot_product_attention(
                q_PRGD, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=shares and native
            )
            pieces.append(out_PRGD)
    return _Put.apply((batch, length, heads, v_BKTD.shape[-1]), q_places, groups.sinks, *pieces)


def _takes_fewer_kv_heads(q_BHTD: torch.Tensor, v_BKTD: torch.Tensor) -> bool:
    """Whether torch has a fused kernel for fewer key/value heads than query heads: flash and cuDNN, no other.

    Where it has none, `enable_gqa` would hold all scores.
    """
    if not q_BHTD.is_cuda or q_BHTD.dtype not in (torch.bfloat16, torch.float16):
        return False
    cuda, size = torch.backends.cuda, q_BHTD.shape[-1]
    return (
        torch.cuda.get_device_capability(q_BHTD.device) >= (8, 0)
        and v_BKTD.shape[-1] == size <= _LARGEST_FLASH
        and (cuda.flash_sdp_enabled() or not cuda.mem_efficient_sdp_enabled())
    )


class _Run(NamedTuple):
    """Neighboring groups of one size in one document, or in several where no sinks are to be seen."""

    start: int
    groups: int
    size: int
    sinks_at: int | None
    """Where the sinks lie that the groups see beside their own tokens; None for none."""


class _Place(NamedTuple):
    """Where the groups of a run lie in a (B, heads, T, D) tensor."""

    rows: slice
    heads: slice
    run: _Run


def _window(x_BHTD: torch.Tensor, place: _Place) -> torch.Tensor:
    """The groups' own tokens, a view: (B, N, R, G, D)."""
    run = place.run
    own_BRTD = x_BHTD[place.rows, place.heads, run.start : run.start + run.groups * run.size]
    return own_BRTD.unflatten(2, (run.groups, run.size)).transpose(1, 2)


def _sink_window(x_BHTD: torch.Tensor, place: _Place, sinks: int) -> torch.Tensor:
    """The sinks that the groups see, a view: (B, R, sinks, D)."""
    at = place.run.sinks_at
    assert at is not None
    return x_BHTD[place.rows, place.heads, at : at + sinks]


def _sinks_of(place: _Place, sinks: int) -> int:
    return 0 if place.run.sinks_at is None else sinks


def _take(x_BHTD: torch.Tensor, place: _Place, sinks: int, with_sinks: bool) -> torch.Tensor:
    """The groups as a batch, (P, R, G, D), behind their sinks or as many zeros; a view where that can be."""
    own, skip = _window(x_BHTD, place), _sinks_of(place, sinks)
    if not skip:
        return own.flatten(0, 1)
    out = own.new_empty(*own.shape[:3], skip + own.shape[3], own.shape[4])
    out[..., skip:, :] = own
    out[..., :skip, :] = _sink_window(x_BHTD, place, sinks)[:, None] if with_sinks else 0
    return out.flatten(0, 1)


def _put(pieces: Sequence[torch.Tensor], places: Sequence[_Place], sinks: int, into_BHTD: torch.Tensor) -> None:
    """The reverse of `_take`: the groups' own tokens to where they came from, and zeros elsewhere."""
    windows = [_window(into_BHTD, place) for place in places]
    if sum(window.numel() for window in windows) < into_BHTD.numel():  # padding
        into_BHTD.zero_()
    for piece, place, window in zip(pieces, places, windows, strict=True):
        window.copy_(piece[:, :, _sinks_of(place, sinks) :].view(window.shape))


class _Take(torch.autograd.Function):
    """All groups of a tensor, each run as a batch of its own. Slices would add up whole tensors of zeros backward.

    The sinks are among the queries too: plain causal attention is then exactly what is wanted.
    """

    @staticmethod
    def forward(ctx: Any, x_BHTD: torch.Tensor, places: list[_Place], sinks: int) -> tuple[torch.Tensor, ...]:
        ctx.like, ctx.places, ctx.sinks = torch.empty_like(x_BHTD, device="meta"), places, sinks
        return tuple(_take(x_BHTD, place, sinks, with_sinks=True) for place in places)

    @staticmethod
    def backward(ctx: Any, *grads_PRGD: torch.Tensor) -> Any:
        grad_BHTD = torch.empty_like(ctx.like, device=grads_PRGD[0].device)
        _put(grads_PRGD, ctx.places, ctx.sinks, grad_BHTD)
        for grad, place in zip(grads_PRGD, ctx.places, strict=True):
            if skip := _sinks_of(place, ctx.sinks):
                of_groups = grad[:, :, :skip].unflatten(0, (-1, place.run.groups))
                _sink_window(grad_BHTD, place, skip).add_(of_groups.sum(1))
        return grad_BHTD, None, None


class _Put(torch.autograd.Function):
    """The outputs of all groups as one (B, T, H, D) tensor; sinks' outputs are dropped, padding is zero."""

    @staticmethod
    def forward(
        ctx: Any, shape: tuple[int, ...], places: list[_Place], sinks: int, *pieces_PRGD: torch.Tensor
    ) -> torch.Tensor:
        ctx.places, ctx.sinks = places, sinks
        out_BTHD = pieces_PRGD[0].new_empty(shape)
        _put(pieces_PRGD, places, sinks, out_BTHD.transpose(1, 2))
        return out_BTHD

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (grad_BTHD,) = grads
        grad_BHTD = grad_BTHD.transpose(1, 2)
        return None, None, None, *(_take(grad_BHTD, place, ctx.sinks, with_sinks=False) for place in ctx.places)


@lru_cache(maxsize=128)  # all layers of a forward pass, and of its recomputation, share one for each chunk
def _places(
    documents: Documents, groups: Groups, heads: int, kv_heads: int, native: bool
) -> tuple[list[_Place], list[_Place]]:
    """Where the groups of each call lie among the queries, and among keys and values.

    Args:
        documents: of the batch.
        groups: of the layer.
        heads: H.
        kv_heads: K; of a single one, each part of the heads has a copy.
        native: whether several key/value heads go in one call.
    """
    same_everywhere = all(row == documents[0] for row in documents)
    rows = [slice(None)] if same_everywhere else [slice(b, b + 1) for b in range(len(documents))]
    q_places, kv_places = [], []
    for row in rows:
        for part in head_parts(heads, kv_heads, documents, groups):
            for run in _equal_runs(documents[row.start or 0], groups, part.half):
                kv_part = slice(part.half, part.half + 1) if kv_heads == 1 else part.kv_heads
                for own, kv in _calls(part.heads, kv_part, native):
                    q_places.append(_Place(row, own, run))
                    kv_places.append(_Place(row, kv, run))
    return q_places, kv_places


def _calls(heads: slice, kv_heads: slice, native: bool) -> list[tuple[slice, slice]]:
    """(query heads, key/value heads) of each call: all at once, or those of one key/value head.

    Query heads then share it by a stride of zero; enable_gqa is 1.4 times slower on CPU.
    """
    repeats = (heads.stop - heads.start) // (kv_heads.stop - kv_heads.start)
    if repeats == 1 or native:
        return [(heads, kv_heads)]
    starts = range(heads.start, heads.stop, repeats)
    return [(slice(at, at + repeats), slice(kv, kv + 1)) for kv, at in enumerate(starts, start=kv_heads.start)]


def _equal_runs(documents: Spans, groups: Groups, half: int) -> list[_Run]:
    """The groups of all documents in order, equal neighbors together."""
    runs: list[_Run] = []
    for span in documents:
        for begin, end, sinks_at in groups.bounds(span, half):
            run = _Run(begin, 1, end - begin, sinks_at)
            last = runs[-1] if runs else None
            if last and last[2:] == run[2:] and last.start + last.groups * last.size == run.start:
                runs[-1] = last._replace(groups=last.groups + 1)
            else:
                runs.append(run)
    return runs
