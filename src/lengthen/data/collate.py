"""Training sequences to batches.

Shapes: B blocks in a batch, T tokens of the longest one.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lengthen.data.blocks import Block

__all__ = ["IGNORED", "collate"]

IGNORED = -100
"""The label of a token that is not trained; also what torch's cross entropy leaves out by itself."""


def collate(blocks: Sequence[Block], pad_id: int, shortest: int = 0) -> dict[str, Any]:
    """Make a batch of blocks.

    Shorter blocks are padded on the right. The padding is a segment of its own: positions start again at 0, which
    is how any attention finds every boundary, so a mask is neither needed nor made. Only positions that jump inside a
    segment need one, to say that they are no boundaries; such batches are not padded and have no boundaries at all.

    Args:
        blocks: B blocks, at least one; with positions of their own all or none, and then of one length.
        pad_id: the id that stands in the padding; it is never a label there.
        shortest: tokens that a batch has at least.

    Returns:
        "documents", per sequence (start, length) of each segment and of the padding; "input_ids", "labels" and
        "position_ids", int64, (B, T). Labels are aligned with the ids (the model shifts
        them) and -100 in the padding, at each segment's first token, which nothing before it may predict, and where
        the block says that a token is not trained. For blocks with positions of their own also "attention_mask", all
        ones. Where any block has loss weights also "loss_weights", float32, (B, T), aligned with the labels; 1 for the
        other blocks.
    """
    import torch

    shape = (len(blocks), max(shortest, *(len(block) for block in blocks)))
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    position_ids = np.empty(shape, dtype=np.int64)
    loss_weights = np.ones(shape, dtype=np.float32)
    documents = []
    for row, block in enumerate(blocks):
        input_ids[row, : len(block)] = block.input_ids
        labels[row, : len(block)] = block.input_ids
        if block.trained is not None:
            labels[row, : len(block)][~block.trained] = IGNORED
        lengths = [length for length in (*block.segments, shape[1] - len(block)) if length]
        spans = tuple(zip(np.cumsum([0, *lengths[:-1]]).tolist(), lengths, strict=True))
        documents.append(spans)
        for start, length in spans:
            position_ids[row, start : start + length] = np.arange(length)
            labels[row, start] = IGNORED
        if block.positions is not None:
            assert len(block) == shape[1]
            position_ids[row] = block.positions
        if block.loss_weights is not None:
            loss_weights[row, : len(block)] = block.loss_weights
    batch: dict[str, Any] = {
        "documents": tuple(documents),
        "input_ids": torch.from_numpy(input_ids),
        "labels": torch.from_numpy(labels),
        "position_ids": torch.from_numpy(position_ids),
    }
    if blocks[0].positions is not None:
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    if any(block.loss_weights is not None for block in blocks):
        batch["loss_weights"] = torch.from_numpy(loss_weights)
    return batch
