"""Which sequences each optimizer step trains on, as a function of seed, step and number of processes.

Nothing is replayed to resume: a step's batches follow from its number. An epoch of 5 sequences, batches of 1,
accumulation 2, in the order 3 1 4 0 2:

    one process    step 1: 3, 1    step 2: 4, 0    step 3: 2
    two processes  step 1: 3, 4 | 1, 0             step 2: 2 | 3

The last step of an epoch has what is left. With several processes each gets as many batches as the others, so that
the first sequences of the epoch fill the last batches. A mixture says its order itself (`in_order`).
"""

import math
from collections.abc import Sequence

import torch

from lengthen.data.blocks import Block
from lengthen.recipe import TrainingRecipe

__all__ = ["Batches"]


class Batches:
    """The batches of a run.

    Args:
        blocks: all sequences; one epoch sees each of them once. With an attribute `in_order` that is true, in their own
            order.
        training: sequences of a batch, batches of a step, steps or epochs.
        seed: of the order; each epoch has its own.
        process: this one's number, from 0.
        processes: how many there are.
    """

    def __init__(
        self, blocks: Sequence[Block], training: TrainingRecipe, seed: int, process: int = 0, processes: int = 1
    ):
        self._blocks, self._seed = blocks, seed
        self._batch_size, self._accumulation = training.batch_size, training.accumulation
        self._process, self._processes = process, processes
        batches = math.ceil(len(blocks) / self._batch_size)
        self._per_epoch = math.ceil(math.ceil(batches / processes) / self._accumulation)
        self.steps: int = training.steps or math.ceil((training.epochs or 1) * self._per_epoch)
        self._epoch, self._order = -1, list[int]()

    def of_step(self, step: int) -> list[list[Block]]:
        """This process's batches in a step, counted from 1: `accumulation` of them, or what the epoch has left."""
        return [[self._blocks[index] for index in batch] for batch in self.indices_of_step(step)]

    def indices_of_step(self, step: int) -> list[list[int]]:
        """Which of the blocks these are."""
        epoch, within = divmod(step - 1, self._per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._order_of(epoch)
        width = self._batch_size * self._processes
        first = within * self._accumulation * width + self._process * self._batch_size
        starts = range(first, min(first + self._accumulation * width, len(self._order)), width)
        return [self._order[start : start + self._batch_size] for start in starts]

    def _order_of(self, epoch: int) -> list[int]:
        if getattr(self._blocks, "in_order", False):
            order = list(range(len(self._blocks)))
        else:
            generator = torch.Generator().manual_seed(self._seed + epoch)
            order = torch.randperm(len(self._blocks), generator=generator).tolist()
        if self._processes > 1:
            width = self._batch_size * self._processes
            wanted = math.ceil(len(order) / width) * width
            order = (order * math.ceil(wanted / len(order)))[:wanted]
        return order
