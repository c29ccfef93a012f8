"""Several sources in one run, in exact shares of its tokens, and in an order that follows from recipe and seed.

The order is earliest deadline first: a source may be next while it has less than its share of the tokens so far and of
its next block, and of those that may, the one goes whose block has to be there soonest. So no source is ever a whole
block ahead of its share or behind it:

    shares 0.5, 0.3, 0.2:   A B C A A B A C B A   A B C A A B A C B A   ...
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from lengthen.data.blocks import Block
from lengthen.data.counts import any_packed

__all__ = ["BlockSource", "FiniteSource", "GeneratedSource", "Mixture", "interleave"]


class BlockSource(Protocol):
    """Gives any number of blocks, each a function of its number alone.

    Attributes:
        name: for messages: its kind, and its paths.
        kind: of the recipe's source.
        about: what it is made of, in words, such as "12 documents, 3,100,000 tokens".
        packed: whether a block can have several segments.
    """

    name: str
    kind: str
    about: str
    packed: bool

    def tokens(self, number: int) -> int:
        """Tokens of a block, without making it."""

    def block(self, number: int) -> Block:
        """The block numbered `number`, from 0 on."""

    def passes(self, blocks: int) -> float | None:
        """How often so many blocks go through the source; None where it never repeats."""


class FiniteSource:
    """Blocks that are at hand, each pass over them in an order of its own.

    Args:
        kind, name, about: see `BlockSource`.
        blocks: at least one.
        seed: of the orders.
    """

    def __init__(self, kind: str, name: str, about: str, blocks: Sequence[Block], seed: tuple[int, ...]):
        assert blocks
        self.kind, self.name, self.about = kind, name, about
        self.packed = any_packed(blocks)
        self._blocks, self._seed = blocks, seed
        self._pass, self._order = -1, np.zeros(0, dtype=np.int64)

    def tokens(self, number: int) -> int:
        """Tokens of a block."""
        return len(self.block(number))

    def block(self, number: int) -> Block:
        """The block numbered `number`, counted over all passes."""
        which, within = divmod(number, len(self._blocks))
        if which != self._pass:
            self._pass, self._order = which, np.random.default_rng((*self._seed, which)).permutation(len(self._blocks))
        return self._blocks[self._order[within]]

    def passes(self, blocks: int) -> float | None:
        """How often so many blocks go through the source."""
        return blocks / len(self._blocks)


class GeneratedSource:
    """Blocks of one length that are made when they are asked for.

    Args:
        kind, name, about, packed: see `BlockSource`.
        make: a block from its number.
        block_tokens: of each.
    """

    def __init__(self, kind: str, name: str, about: str, packed: bool, make: Callable[[int], Block], block_tokens: int):
        self.kind, self.name, self.about, self.packed = kind, name, about, packed
        self._make, self._tokens = make, block_tokens

    def tokens(self, number: int) -> int:
        """Tokens of a block."""
        return self._tokens

    def block(self, number: int) -> Block:
        """The block numbered `number`."""
        return self._make(number)

    def passes(self, blocks: int) -> float | None:
        """None: nothing comes twice."""
        return None


@dataclass(frozen=True)
class _Entry:
    source: int
    number: int  # of the block in its source


def interleave(weights: Sequence[float], tokens: Callable[[int, int], int], count: int) -> list[int]:
    """Which source each of `count` blocks is from.

    Args:
        weights: of the sources, none negative, their sum above 0.
        tokens: of a source's block, from the source and the block's number.
        count: blocks in all.

    Returns:
        Sources by number; after any of these blocks each source has its share of the tokens to less than a block.
    """
    shares = [weight / sum(weights) for weight in weights]
    given, numbers = [0] * len(shares), [0] * len(shares)
    order: list[int] = []
    total = 0
    for _ in range(count):
        following = [tokens(source, numbers[source]) if share else 0 for source, share in enumerate(shares)]
        may = [s for s, share in enumerate(shares) if given[s] < share * (total + following[s])]
        # Rounding can leave none: then the one that is furthest behind.
        chosen = min(
            may or [s for s, share in enumerate(shares) if share],
            key=lambda s: (given[s] + following[s]) / shares[s] if may else given[s] / shares[s],
        )
        order.append(chosen)
        given[chosen] += following[chosen]
        numbers[chosen] += 1
        total += following[chosen]
    return order


class Mixture(Sequence[Block]):
    """The sequences of a whole run, in the order in which they are trained on.

    Args:
        sources: at least one.
        weights: of each, as in `interleave`.
        count: sequences of the run.

    Attributes:
        in_order: True: that the order is not to be shuffled.
        sources: as given.
        packed: whether any sequence can have several segments.
    """

    in_order = True

    def __init__(self, sources: Sequence[BlockSource], weights: Sequence[float], count: int):
        self.sources = list(sources)
        self.packed = any(source.packed for source in sources)
        self._shares = [weight / sum(weights) for weight in weights]
        order = interleave(weights, lambda source, number: self.sources[source].tokens(number), count)
        numbers = [0] * len(self.sources)
        self._entries: list[_Entry] = []
        for source in order:
            self._entries.append(_Entry(source, numbers[source]))
            numbers[source] += 1
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        entry = self._entries[index]
        return self.sources[entry.source].block(entry.number)

    def source_of(self, index: int) -> int:
        """The number of the source that a sequence is from."""
        return self._entries[index].source

    @property
    def tokens(self) -> int:
        """Tokens of all sequences."""
        return sum(self._tokens_of(source) for source in range(len(self.sources)))

    def _tokens_of(self, source: int) -> int:
        return sum(self.sources[source].tokens(number) for number in range(self._numbers[source]))

    def describe(self) -> list[dict[str, Any]]:
        """Each source's kind, name, share asked for, sequences, tokens and passes in this run, for run.json."""
        total = self.tokens
        return [
            {
                "kind": source.kind,
                "source": source.name,
                "about": source.about,
                "weight": self._shares[which],
                "share": self._tokens_of(which) / total if total else 0.0,
                "sequences": self._numbers[which],
                "tokens": self._tokens_of(which),
                "passes": source.passes(self._numbers[which]),
            }
            for which, source in enumerate(self.sources)
        ]

    def summary(self) -> str:
        """One line: "long 55% (12 documents, 3,100,000 tokens, 0.3 passes), retrieval 45% (...)"."""
        parts = []
        for each in self.describe():
            passes = "" if each["passes"] is None else f", {_round(each['passes'])} passes"
            parts.append(f"{each['kind']} {each['share']:.0%} ({each['about']}{passes})")
        return ", ".join(parts)


def _round(number: float) -> str:
    """Two significant digits, without an exponent."""
    digits = max(0, 1 - math.floor(math.log10(number))) if number else 0
    return f"{number:.{min(digits, 4)}f}"
