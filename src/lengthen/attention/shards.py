"""Sequences in shards, one in each of several processes: an attention layer's exchange with the others.

Under S2 a shard sees, of other shards, the keys and values of the groups that it cuts (half a group of the shifted
heads, where shards begin at multiples of the group size in their document) and the sinks of its document:

    process 0: tokens  0 .. 15   sends the keys and values of 12 .. 15, shifted heads, to process 1
    process 1: tokens 16 .. 31   groups of 8: plain heads cut at 16 and 24, shifted ones at 12, 20, 28

Full attention needs all keys and values, and shares out heads instead of tokens: by an all-to-all each process has the
whole sequence for its heads, and by another one its tokens for all heads (DeepSpeed-Ulysses, arXiv 2309.14509).

Shape suffixes: B sequences, T tokens of this process's shard, S tokens with what is needed of others, H query heads,
K key/value heads, R heads of one call, D head size.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch.nn.functional import pad

from lengthen.attention.documents import Documents
from lengthen.attention.exchange import ALL, Exchange, Part
from lengthen.attention.halo import Slice, slice_of
from lengthen.attention.layout import Shard, ShardLayout
from lengthen.attention_pattern import DocumentPart, Groups, head_parts, heads_of

__all__ = ["shard_bounds", "sharded_attention"]


def shard_bounds(length: int, group_size: int, count: int) -> tuple[int, ...]:
    """Where the shards of a sequence begin: at multiples of the group size, nearest to equal lengths.

    Args:
        length: tokens of the sequence, at least `count` groups.
        group_size: tokens of a group.
        count: of shards.

    Returns:
        `count` first tokens, and `length`.
    """
    assert length >= count * group_size
    return (*(round(index * length / count / group_size) * group_size for index in range(count)), length)


def sharded_attention(
    backend: Callable[..., torch.Tensor],
    q_BHTD: torch.Tensor,
    k_BKTD: torch.Tensor,
    v_BKTD: torch.Tensor,
    layout: ShardLayout,
    groups: Groups,
    scaling: float | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """A backend's attention over sequences of which each process has a shard; all processes call it together.

    Args:
        backend: computes the groups (attention/backends.py).
        q_BHTD: queries (B, H, T, D) of this shard.
        k_BKTD: keys (B, K, T, D).
        v_BKTD: values (B, K, T, D').
        layout: of the whole sequences.
        groups: of the layer.
        scaling: factor on the scores.
        dropout: probability of dropping an attention weight.

    Returns:
        (B, T, H, D'), this shard's part of what the backend gives for whole sequences.

    Raises:
        ModelError: full attention, and the heads can't be shared out evenly.
    """
    if groups.is_full:
        return _by_heads(backend, q_BHTD, k_BKTD, v_BKTD, layout, groups, scaling, dropout)
    shard, documents = layout.shard, layout.documents
    begun = []
    for part in head_parts(q_BHTD.shape[1], k_BKTD.shape[1], documents, groups):
        own = _of_half(groups, part.half)
        halo = _halo(documents, own, shard.bounds, shard.rank)
        exchange = _exchange_of_halo(halo, shard, k_BKTD[:, part.kv_heads], v_BKTD[:, part.kv_heads])
        begun.append((part, own, halo.slice, exchange, exchange.begin()))
    outputs = []
    # The first half needs little of others: it is computed while the second half's keys and values travel.
    for part, own, slice_, exchange, started in begun:
        k_BRSD, v_BRSD = exchange.end(started)
        extra = k_BRSD.shape[2] - q_BHTD.shape[2]
        q_BRSD = pad(q_BHTD[:, part.heads], (0, 0, extra, 0))  # the others' tokens ask for nothing
        outputs.append(backend(q_BRSD, k_BRSD, v_BRSD, slice_.documents, own, scaling, dropout)[:, extra:])
    return torch.cat(outputs, dim=2)


@lru_cache(maxsize=16)
def _of_half(groups: Groups, half: int) -> Groups:
    """Groups of one half of the heads, for all that are given."""

    def pattern(length: int, size: int) -> tuple[list[int], list[int]]:
        cuts = groups.pattern(length, size)[half]
        return cuts, cuts

    return replace(groups, pattern=pattern)


class _Tokens(NamedTuple):
    """Tokens of a sequence that a shard needs."""

    row: int
    first: int
    end: int
    place: int
    """Of the first one in the shard's slice."""


class _Halo(NamedTuple):
    """The tokens that each shard needs of each other one."""

    slice: Slice
    """This shard with what it needs."""
    receive: dict[int, list[_Tokens]]
    """By whose they are."""
    send: dict[int, list[_Tokens]]
    """By who needs them."""


@lru_cache(maxsize=32)  # asked by every layer, in its recomputation too
def _halo(documents: Documents, groups: Groups, bounds: tuple[int, ...], rank: int) -> _Halo:
    """The tokens that a shard needs of the others, and they of it.

    Args:
        documents: of the whole sequences.
        groups: of some heads of a layer, all with the same cut points.
        bounds: of the shards.
        rank: of the shard.
    """
    slices = [slice_of(documents, groups, *ends) for ends in pairwise(bounds)]
    receive, send = {}, {}
    for other in range(len(slices)):
        if taken := _held(_needs(slices[rank]), bounds[other], bounds[other + 1]):
            receive[other] = taken
        if wanted := _held(_needs(slices[other]), bounds[rank], bounds[rank + 1]):
            send[other] = wanted
    return _Halo(slices[rank], receive, send)


def _needs(slice_: Slice) -> list[_Tokens]:
    """The tokens of a slice before its chunk that its groups see."""
    found, start = [], slice_.sinks + slice_.start - slice_.begin
    for row, spans in enumerate(slice_.documents):
        if not spans:
            continue
        first = spans[0]  # no other one can have begun before
        if slice_.sinks and isinstance(first, DocumentPart) and first.sinks_at < slice_.sinks:
            at = slice_.sinks_at[row]
            found.append(_Tokens(row, at, at + slice_.sinks, 0))
        if first[0] < start:
            found.append(_Tokens(row, slice_.start - (start - first[0]), slice_.start, first[0]))
    return found


def _held(needs: Sequence[_Tokens], start: int, stop: int) -> list[_Tokens]:
    """The tokens that lie in [start, stop)."""
    held = []
    for row, first, end, place in needs:
        begin = max(first, start)
        if begin < min(end, stop):
            held.append(_Tokens(row, begin, min(end, stop), place + begin - first))
    return held


def _exchange_of_halo(halo: _Halo, shard: Shard, k_BRTD: torch.Tensor, v_BRTD: torch.Tensor) -> Exchange:
    """Keys and values with those before them that the shard needs: (B, R, T, D) to (B, R, S, D)."""
    length, slice_ = shard.stop - shard.start, halo.slice
    extra = slice_.sinks + slice_.start - slice_.begin

    def parts(tokens: Sequence[_Tokens], places: bool) -> list[Part]:
        found = []
        for row, first, end, place in tokens:
            at = place if places else first - shard.start
            rows, span = slice(row, row + 1), slice(at, at + end - first)
            found += [Part(tensor, rows, ALL, span) for tensor in (0, 1)]
        return found

    return Exchange(
        shard,
        (k_BRTD, v_BRTD),
        [(*x.shape[:2], extra + length, x.shape[3]) for x in (k_BRTD, v_BRTD)],
        [(Part(i, ALL, ALL, ALL), Part(i, ALL, ALL, slice(extra, None))) for i in (0, 1)],
        {other: parts(tokens, places=False) for other, tokens in halo.send.items()},
        {other: parts(tokens, places=True) for other, tokens in halo.receive.items()},
    )


def _by_heads(
    backend: Callable[..., torch.Tensor],
    q_BHTD: torch.Tensor,
    k_BKTD: torch.Tensor,
    v_BKTD: torch.Tensor,
    layout: ShardLayout,
    groups: Groups,
    scaling: float | None,
    dropout: float,
) -> torch.Tensor:
    """Whole sequences for some heads in each process."""
    bounds, rank, count = layout.shard.bounds, layout.shard.rank, len(layout.shard.bounds) - 1
    shares = [heads_of(other, count, q_BHTD.shape[1], k_BKTD.shape[1]) for other in range(count)]
    heads = [(q, kv, kv) for q, kv in shares]
    tokens = [slice(*ends) for ends in pairwise(bounds)]
    given = (q_BHTD, k_BKTD, v_BKTD)

    def sent(other: int) -> list[Part]:
        return [Part(i, ALL, heads[other][i], ALL) for i in range(3)]

    def taken(other: int) -> list[Part]:
        return [Part(i, ALL, ALL, tokens[other]) for i in range(3)]

    others = [other for other in range(count) if other != rank]
    exchange = Exchange(
        layout.shard,
        given,
        [(len(x), own.stop - own.start, bounds[-1], x.shape[3]) for x, own in zip(given, heads[rank], strict=True)],
        list(zip(sent(rank), taken(rank), strict=True)),
        {other: sent(other) for other in others},
        {other: taken(other) for other in others},
    )
    out_BTRD = backend(*exchange.end(exchange.begin()), layout.documents, groups, scaling, dropout)
    out_BRTD = out_BTRD.transpose(1, 2)
    back = Exchange(
        layout.shard,
        (out_BRTD,),
        [(len(q_BHTD), q_BHTD.shape[1], layout.shard.stop - layout.shard.start, out_BRTD.shape[3])],
        [(Part(0, ALL, ALL, tokens[rank]), Part(0, ALL, shares[rank][0], ALL))],
        {other: [Part(0, ALL, ALL, tokens[other])] for other in others},
        {other: [Part(0, ALL, shares[other][0], ALL)] for other in others},
    )
    (whole_BHTD,) = back.end(back.begin())
    return whole_BHTD.transpose(1, 2)
