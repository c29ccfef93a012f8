"""Shifted sparse attention (S2-Attn) as a pattern: which token may look at which.

This file is the only definition. Backends take their groups from `Groups.bounds` and must equal the reference,
`attention/reference.py`.

Source: LongLoRA (arXiv 2309.12307), section 3.2 and figure 3. There, half of the heads roll the sequence by half a
group, so the first half group lands in one group with the last one and sees the future. Here the shifted heads start
with a half group instead, which keeps every token's view causal and its groups local.

One document of T = 10 tokens in groups of g = 4; row t has an x where token t looks:

    plain heads: cuts 0 4 8 10      shifted heads: cuts 0 2 6 10
    0  x . . . . . . . . .          0  x . . . . . . . . .
    1  x x . . . . . . . .          1  x x . . . . . . . .
    2  x x x . . . . . . .          2  . . x . . . . . . .
    3  x x x x . . . . . .          3  . . x x . . . . . .
    4  . . . . x . . . . .          4  . . x x x . . . . .
    5  . . . . x x . . . .          5  . . x x x x . . . .
    6  . . . . x x x . . .          6  . . . . . . x . . .
    7  . . . . x x x x . .          7  . . . . . . x x . .
    8  . . . . . . . . x .          8  . . . . . . x x x .
    9  . . . . . . . . x x          9  . . . . . . x x x x

Beyond the paper: `sinks`. A pretrained model rests attention that it has no use for on the first tokens of the text
(attention sinks, arXiv 2309.17453). Groups that don't see them break it before training has begun: SmolLM2-135M's loss
rises by 0.96 nats under plain S2, and by 0.07 with one sink (docs/results/smollm2-16k.md). With sinks, the first tokens
of a document are seen by all its groups; recipes have one by default, and 0 is the published pattern.
"""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal, NamedTuple

from lengthen.errors import LengthenError, ModelError

__all__ = [
    "BackendName",
    "DocumentPart",
    "Groups",
    "HeadPart",
    "LayerPattern",
    "head_halves",
    "head_parts",
    "heads_of",
    "layer_patterns",
    "register_pattern",
    "s2_first_shifted_head",
    "s2_segments",
]

BackendName = Literal["auto", "sdpa", "torch_varlen", "flash_attention_2", "flash_attention_3", "flex_attention"]
"""What computes a pattern's groups; `lengthen.attention.backends` has each but "auto", which is the one that suits."""
LayerPattern = Callable[[int, int], tuple[list[int], list[int]]]
"""From (length of a document, group size) to the cut points of the first and of the second half of the heads."""


def _check_group_size(group_size: int, sinks: int = 0) -> int:
    """Return `group_size` if S2 can use it.

    Args:
        group_size: g, tokens.
        sinks: first tokens of each document that all of it sees.

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
    """Cut points of one document: groups are the spans between neighboring points.

    Plain heads cut at 0, g, 2g, ...; shifted heads at 0, g//2, g//2 + g, g//2 + 2g, ...; both end at `length`, so
    the last group may be short. A document of at most g//2 tokens is one group in both.

    Args:
        length: tokens in the document, at least 1.
        group_size: g, in tokens, at least 2.
        shifted: for the shifted heads.

    Returns:
        Increasing cut points from 0 to `length`.

    Raises:
        LengthenError: the group size is below 2.
    """
    first = group_size // 2 if shifted else group_size
    return [0, *range(first, length, _check_group_size(group_size)), length]


def s2_first_shifted_head(num_heads: int, num_kv_heads: int) -> int:
    """The first query head that is shifted; all before it are plain.

    Heads that share a key/value head go together: the first ceil(K/2) key/value heads are plain. With one key/value
    head (multi-query attention) the query heads are split themselves and share it.

    Args:
        num_heads: H, of the queries.
        num_kv_heads: K.
    """
    if num_kv_heads == 1:
        return (num_heads + 1) // 2
    return (num_kv_heads + 1) // 2 * (num_heads // num_kv_heads)


def head_halves(num_heads: int, num_kv_heads: int) -> list[tuple[slice, slice]]:
    """(query heads, their key/value heads) of the plain and of the shifted half; the second is left out where empty.

    Args:
        num_heads: H, of the queries.
        num_kv_heads: K.
    """
    first = s2_first_shifted_head(num_heads, num_kv_heads)
    kv_first = 0 if num_kv_heads == 1 else first * num_kv_heads // num_heads
    halves = [(slice(0, first), slice(0, kv_first or 1)), (slice(first, num_heads), slice(kv_first, num_kv_heads))]
    return halves[: 1 if first == num_heads else 2]


def heads_of(rank: int, count: int, num_heads: int, num_kv_heads: int) -> tuple[slice, slice]:
    """The query and key/value heads that a process has at full attention over shards of sequences.

    Args:
        rank: of the process.
        count: of processes.
        num_heads: H.
        num_kv_heads: K; where there are fewer than processes, several have the same one.

    Raises:
        ModelError: they can't be shared out evenly.
    """
    if num_heads % count or (num_kv_heads % count and count % num_kv_heads):
        raise ModelError(
            f"full attention over {count} shards of a sequence shares out heads, and {num_heads} query and "
            f"{num_kv_heads} key/value heads can't be shared out evenly; take another parallel.sequence, or S2 alone "
            "(attention.kind=s2, full_last=0)"
        )
    width, kv_width = num_heads // count, max(1, num_kv_heads // count)
    kv_first = rank * num_kv_heads // count
    return slice(rank * width, (rank + 1) * width), slice(kv_first, kv_first + kv_width)


def _s2(length: int, group_size: int) -> tuple[list[int], list[int]]:
    return s2_segments(length, group_size, False), s2_segments(length, group_size, True)


def _plain(length: int, group_size: int) -> tuple[list[int], list[int]]:
    cuts = s2_segments(length, group_size, False)
    return cuts, cuts


def _shifted(length: int, group_size: int) -> tuple[list[int], list[int]]:
    cuts = s2_segments(length, group_size, True)
    return cuts, cuts


def _full(length: int, _group_size: int) -> tuple[list[int], list[int]]:
    return [0, length], [0, length]


_PATTERNS: dict[str, tuple[LayerPattern, ...]] = {
    "s2": (_s2,),
    "plain": (_plain,),
    "alternate": (_plain, _shifted),
    "full": (_full,),
}


def register_pattern(name: str, *layers: LayerPattern) -> None:
    """Add a pattern of one's own, to be named in `attention.pattern`.

    Args:
        name: not one that is taken.
        layers: one function for all layers, or several that the layers take turns with. Each gets a document's length
            and the group size and returns the cut points of the first and of the second half of the heads.

    Raises:
        LengthenError: the name is taken, or there is no function.
    """
    if name in _PATTERNS:
        raise LengthenError(f"there is an attention.pattern {name!r} already; choose another name")
    if not layers:
        raise LengthenError(f"attention.pattern {name!r} has no function; give at least one")
    _PATTERNS[name] = layers


def layer_patterns(name: str) -> tuple[LayerPattern, ...]:
    """The functions of a pattern, one for each layer of a cycle.

    Raises:
        LengthenError: no such pattern.
    """
    if name not in _PATTERNS:
        near = difflib.get_close_matches(name, _PATTERNS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose {', '.join(_PATTERNS)}"
        raise LengthenError(f"unknown attention.pattern {name!r}; {hint}")
    return _PATTERNS[name]


class DocumentPart(NamedTuple):
    """Part of a document, in a slice of its sequence (attention/halo.py)."""

    start: int
    """First token, in the slice."""
    length: int
    cuts: tuple[tuple[int, ...], tuple[int, ...]]
    """The document's cut points inside the part, from 0 to `length`, for either half of the heads."""
    sinks_at: int
    """Where the document's sinks lie in the slice."""


@dataclass(frozen=True)
class Groups:
    """The groups of one layer's attention.

    Attributes:
        size: g, in tokens.
        sinks: first tokens of each document that all its groups see.
        pattern: where the groups are; S2's by default.
    """

    size: int
    sinks: int = 0
    pattern: LayerPattern = _s2

    def __post_init__(self) -> None:
        _check_group_size(self.size, self.sinks)

    @property
    def is_full(self) -> bool:
        """Whether every token sees all tokens before it."""
        return self.pattern is _full

    def cuts(self, length: int, half: int) -> list[int]:
        """Cut points of a document of `length` tokens, for the first (0) or the second (1) half of the heads.

        Args:
            length: tokens of the document.
            half: of the heads.

        Raises:
            LengthenError: a pattern's function gives something else than increasing points from 0 to `length`.
        """
        cuts = self.pattern(length, self.size)[half]
        if cuts[:1] != [0] or cuts[-1] != length or any(a >= b for a, b in pairwise(cuts)):
            raise LengthenError(
                f"the attention pattern cuts {length} tokens at {cuts}; it must begin with 0, increase and end with "
                f"{length}"
            )
        # A first group without all sinks would have to see them twice.
        if self.sinks and len(cuts) > 2 and cuts[1] < self.sinks:
            raise LengthenError(f"the attention pattern's first group ends at {cuts[1]}, inside {self.sinks} sinks")
        return cuts

    def bounds(self, span: tuple[int, int] | DocumentPart, half: int) -> list[tuple[int, int, int | None]]:
        """The groups of a whole document or of a piece, for the first (0) or the second (1) half of the heads.

        Args:
            span: (start, length) of a document, or a piece.
            half: of the heads.

        Returns:
            (begin, end, where the sinks lie that the group sees beside its own tokens or None), in order.

        Raises:
            LengthenError: as `cuts`.
        """
        start = span[0]
        if isinstance(span, DocumentPart):
            cuts: Sequence[int] = span.cuts[half]
            sinks_at = span.sinks_at
        else:
            cuts, sinks_at = self.cuts(span[1], half), start
        # A document's first group has its sinks in it.
        return [
            (start + a, start + b, sinks_at if self.sinks and start + a != sinks_at else None)
            for a, b in pairwise(cuts)
        ]


class HeadPart(NamedTuple):
    """Query heads that have their groups in common, and the key/value heads they look at."""

    half: int
    """Which half's cut points they have: 0 of the first half of the heads, 1 of the second."""
    heads: slice
    kv_heads: slice


@lru_cache(maxsize=32)  # asked by every layer
def head_parts(
    num_heads: int, num_kv_heads: int, documents: tuple[tuple[tuple[int, int] | DocumentPart, ...], ...], groups: Groups
) -> list[HeadPart]:
    """The parts of the heads that can be computed at once: the two halves, or all where their groups are the same.

    Args:
        num_heads: H.
        num_kv_heads: K, which divides H.
        documents: per sequence, (start, length) of each document, or a piece of one.
        groups: of the layer.
    """
    if all(groups.bounds(span, 0) == groups.bounds(span, 1) for spans in documents for span in spans):
        return [HeadPart(0, slice(0, num_heads), slice(0, num_kv_heads))]
    return [HeadPart(half, *heads) for half, heads in enumerate(head_halves(num_heads, num_kv_heads))]
