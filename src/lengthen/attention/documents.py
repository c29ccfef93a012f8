"""Where documents and padding lie in a batch: found from masks, and whether kernels meet such a layout again.

Shapes: B sequences, T tokens.
"""

import torch

from lengthen.attention_pattern import DocumentPart
from lengthen.errors import LengthenError

__all__ = ["Documents", "Spans", "documents_of_mask", "find_spans", "is_regular"]

Spans = tuple[tuple[int, int] | DocumentPart, ...]
"""(start, length) of each document of a sequence, or a piece of one, in order; tokens in none are padding."""

Documents = tuple[Spans, ...]
"""The spans of each sequence of a batch."""

_REGULAR_STEP = 128


def documents_of_mask(mask: torch.Tensor) -> Documents:
    """Where the documents lie in a mask that somebody else made.

    Args:
        mask: (B, 1, T, T), bool with True where a key is seen, or float with 0 there and at most -1e4 elsewhere.

    Raises:
        LengthenError: the mask is not causal attention inside documents of consecutive tokens.
    """
    if mask.ndim != 4 or mask.shape[1] != 1 or mask.shape[2] != mask.shape[3]:
        raise LengthenError(f"S2 can't read an attention mask of shape {tuple(mask.shape)}; give (B, 1, T, T)")
    seen_BTT = (mask if mask.dtype == torch.bool else mask == 0)[:, 0]
    if mask.dtype != torch.bool and not (seen_BTT | (mask[:, 0] <= -1e4)).all():
        raise LengthenError("the attention mask adds to the scores, which S2 can't do; it may only hide keys")
    documents = []
    for seen in seen_BTT:
        (spans,) = find_spans(seen.diagonal(-1)[None], seen.diagonal()[None])
        number = torch.full((len(seen),), -1, device=seen.device)
        for index, (start, length, *_) in enumerate(spans):
            number[start : start + length] = index
        expected = (number[:, None] == number).tril() & (number >= 0)
        if not torch.equal(seen & (number >= 0)[:, None], expected):
            raise LengthenError(
                "the attention mask is not causal attention inside documents of consecutive tokens, which is all that "
                "S2 can be made from; set attention.kind=full"
            )
        documents.append(spans)
    return tuple(documents)


def find_spans(linked_BT: torch.Tensor, real_BT: torch.Tensor) -> Documents:
    """Where documents begin and end; only that is read back from the device.

    Args:
        linked_BT: (B, T - 1) bool, whether a token may see the one before it.
        real_BT: (B, T) bool, False in the padding.

    Raises:
        LengthenError: a document has padding inside it.
    """
    follows_BT = linked_BT & real_BT[:, :-1] & real_BT[:, 1:]
    no_B1 = torch.zeros_like(real_BT[:, :1])
    begins = (real_BT & ~torch.cat([no_B1, follows_BT], dim=1)).nonzero().tolist()
    ends = (real_BT & ~torch.cat([follows_BT, no_B1], dim=1)).nonzero().tolist()
    holes = (linked_BT & ~real_BT[:, :-1] & real_BT[:, 1:] & real_BT.cumsum(1)[:, :-1].bool()).nonzero()
    if len(holes):
        raise LengthenError(
            f"the attention mask has padding inside a document, before token {int(holes[0, 1]) + 1}; S2 takes padding "
            "at the left or right end only"
        )
    spans: list[list[tuple[int, int]]] = [[] for _ in real_BT]
    for (row, start), (_, last) in zip(begins, ends, strict=True):
        spans[row].append((start, last + 1 - start))
    return tuple(map(tuple, spans))


def is_regular(documents: Documents, length: int) -> bool:
    """Whether a batch has a layout that is likely to come back: one document in each row, and a round length.

    Kernels that build a plan for each new shape, as cuDNN's attention does, are for such batches. Chosen context
    lengths are multiples of 128; of lengths as they happen to be, one in 128 is.

    Args:
        documents: of the batch.
        length: T, tokens of a row.
    """
    return length % _REGULAR_STEP == 0 and all(spans == ((0, length),) for spans in documents)
