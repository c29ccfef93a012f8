"""Restoration: on short windows, a run is held to its own base.

The base is there already: the same weights with the adapter off (trained norms and embeddings are copies that PEFT
manages, so theirs are off too) and with the positions that the base had. On windows of text within the base's context
the run's predictions are drawn to the base's by KL(base || run), a mean over tokens. Long-context training changes what
a model does on short text; LongReD (arXiv 2502.07365) restores it by distilling hidden states of a frozen copy.

Windows come at a share of all forward passes, spread evenly over the steps, beside the recipe's own:

    share 1/3, accumulation 1:   text  text window  text  text window  text  text window ...
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import numpy as np
from torch import nn
from transformers import PreTrainedConfig

from lengthen.data.blocks import Block
from lengthen.data.mixture import FiniteSource
from lengthen.data.token_store import TokenStore
from lengthen.errors import DataError, ModelError
from lengthen.head import decoder_of
from lengthen.models.load import empty_model
from lengthen.recipe import TrainingRecipe

__all__ = ["BasePositions", "Windows", "cut_windows"]


class BasePositions:
    """A model's rotary embeddings, and those that its base had.

    Args:
        model: with scaled positions, no adapter yet.
        base_config: of the base.

    Raises:
        ModelError: scaled positions change more of this architecture than its rotary embeddings.
    """

    def __init__(self, model: Any, base_config: PreTrainedConfig):
        decoder = decoder_of(model)
        self._places: list[tuple[nn.Module, str, nn.Module]] = []
        for parent in decoder.modules():
            for name, module in parent.named_children():
                if any(key.endswith("inv_freq") for key, _ in module.named_buffers(recurse=False)):
                    self._places.append((parent, name, type(module)(base_config.get_text_config())))
        if not self._places or not _alike_but_for_rotation(model, base_config):
            raise ModelError(
                f"the scaled positions of {type(model).__name__} are not in its rotary embeddings alone, so that the "
                "base is not in the model any more; set training.restoration.share=0"
            )

    @contextmanager
    def used(self) -> Iterator[None]:
        """Let the model rotate as its base did."""
        own = [getattr(parent, name) for parent, name, _ in self._places]
        try:
            for (parent, name, base), module in zip(self._places, own, strict=True):
                setattr(parent, name, base.to(next(module.buffers()).device))
            yield
        finally:
            for (parent, name, _), module in zip(self._places, own, strict=True):
                setattr(parent, name, module)


def _alike_but_for_rotation(model: Any, base_config: PreTrainedConfig) -> bool:
    """Whether modules built from either config have the same numbers, such as the scale of attention's scores."""
    built = [empty_model(config) for config in (base_config, model.config)]
    for one, other in zip(*(decoder_of(each).modules() for each in built), strict=True):
        if any(key.endswith("inv_freq") for key, _ in one.named_buffers(recurse=False)):
            continue
        numbers = [{k: v for k, v in vars(each).items() if isinstance(v, int | float)} for each in (one, other)]
        if numbers[0] != numbers[1]:
            return False
    return True


def cut_windows(store: TokenStore, length: int, seed: int) -> FiniteSource:
    """Windows of documents, each pass over them in an order of its own.

    Args:
        store: tokenized documents.
        length: tokens of each window; what is left of a document is not used.
        seed: of the orders.

    Raises:
        DataError: no document is that long.
    """
    blocks = [
        Block(store[index][start : start + length].astype(np.int64), (length,))
        for index in range(len(store))
        for start in range(0, len(store[index]) - length + 1, length)
    ]
    if not blocks:
        raise DataError(
            f"no document for restoration has {length} tokens, the longest {store.lengths.max(initial=0)}; lower "
            "training.restoration.length or name longer ones in training.restoration.data"
        )
    about = f"{len(blocks):,} windows of {length:,} tokens"
    return FiniteSource("restoration", "training.restoration", about, blocks, (seed,))


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
