"""Conversations to token ids with a mask of what is trained, cut in the middle of the document where they are too long.

The whole text is tokenized at once, as it is at inference, and the mask follows from the characters that each token
ends at. Nothing is tokenized in parts, so no token differs from what the model will see.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lengthen.data.control_tokens import ControlTokens
from lengthen.data.instruct.templates import RenderedChat
from lengthen.data.truncate import cut_middle
from lengthen.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Encoded", "encode"]


@dataclass(frozen=True, eq=False)
class Encoded:
    """One example in tokens.

    Attributes:
        input_ids: uint32, (T,).
        trained: bool, (T,): the tokens of answers, each with the end token after it.
        whole: tokens before anything was cut.
    """

    input_ids: np.ndarray
    trained: np.ndarray
    whole: int

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def cut(self) -> int:
        """Tokens that were cut out of the document."""
        return self.whole - len(self)


def encode(
    layouts: Sequence[RenderedChat],
    tokenizer: "PreTrainedTokenizerBase",
    sequence_length: int | None = None,
    control: ControlTokens | None = None,
) -> list[Encoded | int]:
    """Tokenize conversations; those with too many tokens lose the middle of their document.

    Args:
        layouts: from `Template.lay_out`.
        tokenizer: a fast one, as only these tell where tokens are in the text.
        sequence_length: tokens that an example has at most; None for no limit.
        control: of the template, which knows the marks in layouts; None where there are none.

    Returns:
        For each layout its tokens; or how many it has, where it would be too long without any of its document.

    Raises:
        DataError: the tokenizer is not a fast one.
    """
    if not tokenizer.is_fast:
        raise DataError(
            f"{type(tokenizer).__name__} can't tell where tokens are in a text, as the mask of trained tokens needs; "
            "use a base with a fast tokenizer (tokenizer.json)"
        )
    tokenized = _tokenize([layout.text for layout in layouts], tokenizer, control)
    fitted: list[Encoded | int] = []
    for layout, (ids, offsets) in zip(layouts, tokenized, strict=True):
        if sequence_length is None or len(ids) <= sequence_length:
            fitted.append(Encoded(ids, _mask(layout.answers, offsets), len(ids)))
        else:
            fitted.append(_fit(layout, ids, offsets, tokenizer, sequence_length, control) or len(ids))
    return fitted


def _tokenize(texts: list[str], tokenizer: Any, control: ControlTokens | None) -> list[tuple[np.ndarray, np.ndarray]]:
    """Ids (T,) of each text, and where each token starts and ends in it, in characters (T, 2)."""
    marked = {i: control.encode(text) for i, text in enumerate(texts) if control.marks(text)} if control else {}
    # The template has written the begin token where there is one.
    encoded = tokenizer(
        texts, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False, verbose=False
    )
    pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    both = [marked.get(i, pair) for i, pair in enumerate(pairs)]
    return [(np.asarray(ids, dtype=np.uint32), np.asarray(spans).reshape(-1, 2)) for ids, spans in both]


def _mask(answers: Sequence[tuple[int, int]], offsets: np.ndarray) -> np.ndarray:
    """A token belongs to the answer that it ends in.

    Its start is not asked for: tokenizers may leave white space before a word out of it, and the bytes of one
    character share one span. At inference, a token that ends in the answer can't have been part of the prompt.
    """
    ends = offsets[:, 1]
    trained = np.zeros(len(ends), dtype=bool)
    for start, stop in answers:
        trained |= (ends > start) & (ends <= stop)
    return trained


def _fit(
    layout: RenderedChat,
    ids: np.ndarray,
    offsets: np.ndarray,
    tokenizer: Any,
    limit: int,
    control: ControlTokens | None,
) -> Encoded | None:
    """Cut just enough out of the middle of the document; None where all of it is not enough."""
    if layout.document is None:
        return None
    start, stop = layout.document
    inside = offsets[(offsets[:, 0] >= start) & (offsets[:, 1] <= stop)]
    fitted: list[Encoded] = []

    def excess_without(left: int, right: int, _tokens: int) -> int:
        shorter = _without(layout, left, right)
        new_ids, new_offsets = _tokenize([shorter.text], tokenizer, control)[0]
        fitted.append(Encoded(new_ids, _mask(shorter.answers, new_offsets), len(ids)))
        return len(new_ids) - limit

    return fitted[-1] if cut_middle(inside.tolist(), len(ids) - limit, excess_without) else None


def _without(layout: RenderedChat, left: int, right: int) -> RenderedChat:
    """The layout without the characters from left to right, which are in its document."""
    gone = right - left
    answers = tuple((a - gone, b - gone) if a >= right else (a, b) for a, b in layout.answers)
    return RenderedChat(layout.text[:left] + layout.text[right:], answers, None)
