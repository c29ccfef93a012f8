"""Where documents and padding lie in a batch, read from the mask that transformers would have built, or was given.

transformers asks the attention's mask function for a mask once per forward pass and hands the answer to every layer.
For "s2" that answer is a `Layout`: training reads the documents from it, evaluation the ordinary mask. Neither is
computed unless a layer asks, so training never holds a (T, T) mask. Who knows the documents says so
(`known_documents`); on a GPU, reading them from the mask waits for all that was asked of it before.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from transformers.masking_utils import sdpa_mask

from lengthen.attention.documents import Documents, find_spans
from lengthen.errors import ModelError

__all__ = [
    "Layout",
    "Messages",
    "Shard",
    "ShardLayout",
    "SliceLayout",
    "Transport",
    "known_documents",
    "layout_mask",
]

Messages = dict[int, torch.Tensor]
"""Flat tensors by the other process's number."""

Transport = Callable[[Messages, Messages], Callable[[], None]]
"""Begins to send messages and to receive others; what it returns waits until all are through."""


@dataclass(frozen=True, eq=False)
class Shard:
    """The part of a batch's sequences that this process has, where several share each sequence.

    Attributes:
        rank: of this process among them.
        bounds: first token of each process's shard, and behind them the number of all tokens.
        transport: to the others.
    """

    rank: int
    bounds: tuple[int, ...]
    transport: Transport

    @property
    def start(self) -> int:
        """First token."""
        return self.bounds[self.rank]

    @property
    def stop(self) -> int:
        """One past the last token."""
        return self.bounds[self.rank + 1]


_KNOWN: ContextVar[tuple[Documents, Shard | None] | None] = ContextVar("known_documents", default=None)


@contextmanager
def known_documents(documents: Documents | None, shard: Shard | None = None) -> Iterator[None]:
    """Say where the documents of all forward passes in this block lie; None for not known.

    Args:
        documents: of a batch without gaps: the last span of a sequence ends with it. A forward pass of another shape,
            as with virtual tokens in front of the text, reads its own.
        shard: of the sequences, which is all that this process computes; None for all of it.
    """
    before = _KNOWN.set(None if documents is None else (documents, shard))
    try:
        yield
    finally:
        _KNOWN.reset(before)


class Layout:
    """The documents of a batch whose queries and keys are the same T tokens.

    Args:
        mask: the arguments that transformers' `sdpa_mask` takes, as `layout_mask` does.
        documents: where they lie; None to read it from mask function and padding.

    Attributes:
        window: tokens of the window or chunk that the mask function cuts; None for the whole context.
    """

    def __init__(self, mask: dict[str, Any], documents: Documents | None = None):
        self._mask = mask
        self._known = documents
        self.window: int | None = mask.get("local_size")

    @cached_property
    def dense(self) -> torch.Tensor | None:
        """The ordinary full-attention mask, (B, 1, T, T) bool, or None where plain causal attention is exact."""
        return sdpa_mask(**self._mask)

    @cached_property
    def documents(self) -> Documents:
        """Where the documents of each sequence lie.

        Raises:
            LengthenError: a document has padding inside it.
        """
        if self._known is not None:
            return self._known
        batch_size, length, device = (self._mask[name] for name in ("batch_size", "q_length", "device"))
        token = torch.arange(1, length, device=device)[None, :]
        row = torch.arange(batch_size, device=device)[:, None]
        head = torch.zeros_like(row)
        # A token that may not see the one before it starts a new document: one diagonal of the mask tells.
        linked_BT = torch.as_tensor(self._mask["mask_function"](row, head, token, token - 1), device=device)
        real_BT = self._mask["attention_mask"]
        if real_BT is None:
            real_BT = torch.ones(batch_size, length, dtype=torch.bool, device=device)
        return find_spans(linked_BT.expand(batch_size, length - 1), real_BT)


class SliceLayout(Layout):
    """The layout of slices of a batch, which is known beforehand.

    Args:
        documents: of the slices (attention/halo.py).
        window: as of the whole batch's layout.
    """

    _of_whole_sequences = "memory.sequence_chunk=0"

    def __init__(self, documents: Documents, window: int | None):
        super().__init__({"local_size": window}, documents)

    @property
    def dense(self) -> torch.Tensor | None:
        """Not there: full attention needs the whole sequence.

        Raises:
            ModelError: always.
        """
        raise ModelError(
            "an attention layer that has a window of its own can't be computed by parts of a sequence; set "
            f"{self._of_whole_sequences}"
        )


class ShardLayout(SliceLayout):
    """The layout of whole sequences of which this process has a shard.

    Args:
        documents: of the whole sequences.
        shard: of this process.
        window: of the layout.
    """

    _of_whole_sequences = "parallel.sequence=1"

    def __init__(self, documents: Documents, shard: Shard, window: int | None = None):
        super().__init__(documents, window)
        self.shard = shard


def layout_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., torch.Tensor] | None = None,
    attention_mask: torch.Tensor | None = None,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> Layout | torch.Tensor | None:
    """The mask function registered for "s2" (transformers' `AttentionMaskInterface`).

    Args:
        batch_size: B.
        q_length, kv_length: tokens of the queries, and of the keys with those of a cache.
        q_offset, kv_offset: positions of their first tokens.
        mask_function: which token may see which, as transformers composed it.
        attention_mask: (B, T) where there is padding.
        device: of the ordinary mask.
        **kwargs: further arguments of the ordinary mask function.

    Returns:
        A `Layout` where queries and keys are the same tokens; with a key/value cache the ordinary mask, since only
        generation uses one.
    """
    mask = {
        "batch_size": batch_size,
        "q_length": q_length,
        "kv_length": kv_length,
        "q_offset": q_offset,
        "kv_offset": kv_offset,
        "mask_function": mask_function,
        "attention_mask": attention_mask,
        "device": device,
        **kwargs,
    }
    if q_length != kv_length:
        return sdpa_mask(**mask)
    documents, shard = _KNOWN.get() or (None, None)
    if documents is not None:
        length = q_length if shard is None else shard.bounds[-1]
        if (len(documents), *{sum(spans[-1][:2]) for spans in documents}) != (batch_size, length):
            documents = None
        elif shard is not None:
            return ShardLayout(documents, shard, mask.get("local_size"))
    return Layout(mask, documents)
