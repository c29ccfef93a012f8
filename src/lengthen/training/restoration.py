"""Restoration: on short windows, a run is held to its own base.

The base is there already: the same weights with the adapter off (trained norms and embeddings are copies that PEFT
manages, so theirs are off too) and with the positions that the base had. On windows of text within the base's context
the run's predictions are drawn to the base's by KL(base || run), a mean over tokens. Long-context training changes what
a model does on short text; LongReD (arXiv 2502.07365) restores it by distilling hidden states of a frozen copy.

Windows come at a share of all forward passes, spread evenly over the steps, beside the recipe's own:

    share 1/3, accumulation 1:   text  text window  text  text window  text  text window ...
"""

import math
from fractions import Fraction

from lengthen.data.blocks import Block, StoredBlocks
from lengthen.data.mixture import FiniteSource
from lengthen.data.token_store import TokenStore
from lengthen.errors import DataError
from lengthen.recipe import TrainingRecipe

__all__ = ["Windows", "cut_windows"]


def cut_windows(store: TokenStore, length: int, seed: int) -> FiniteSource:
    """Windows of documents, each pass over them in an order of its own.

    Args:
        store: tokenized documents.
        length: tokens of each window; what is left of a document is not used.
        seed: of the orders.

    Raises:
        DataError: no document is that long.
    """
    pieces = [
        [(index, start, start + length)]
        for index, tokens in enumerate(store.lengths.tolist())
        for start in range(0, tokens - length + 1, length)
    ]
    if not pieces:
        raise DataError(
            f"no document for restoration has {length} tokens, the longest {store.lengths.max(initial=0)}; lower "
            "training.restoration.length or name longer ones in training.restoration.data"
        )
    about = f"{len(pieces):,} windows of {length:,} tokens"
    return FiniteSource("restoration", "training.restoration", about, StoredBlocks(store, pieces), (seed,))


class Windows:
    """Which windows each optimizer step has, from its number alone.

    Args:
        source: of the windows.
        training: share, accumulation and batch size.
        process: this one's number, from 0.
        processes: how many there are.
    """

    def __init__(self, source: FiniteSource, training: TrainingRecipe, process: int = 0, processes: int = 1):
        self._source, self._batch_size = source, training.batch_size
        self._process, self._processes = process, processes
        share = Fraction(training.restoration.share).limit_denominator(10**6)
        self._per_step = training.accumulation * share / (1 - share)

    def before(self, step: int) -> int:
        """Batches of windows, in each process, before a step, counted from 1."""
        return math.floor((step - 1) * self._per_step)

    def of_step(self, step: int) -> list[list[Block]]:
        """This process's batches of windows in a step."""
        batches = []
        for batch in range(self.before(step), self.before(step + 1)):
            first = (batch * self._processes + self._process) * self._batch_size
            batches.append([self._source.block(number) for number in range(first, first + self._batch_size)])
        return batches
