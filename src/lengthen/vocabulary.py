"""Token ids that a model has no embedding row for, found before they become an index error or another's memory."""

from typing import Any

import torch
from torch import nn

from lengthen.errors import ModelError

__all__ = ["check_ids", "check_largest_id", "embedding_rows", "guard_embeddings", "vocabulary_size"]


_LARGEST_ID = 1 << 24  # the largest vocabularies have a few hundred thousand


def vocabulary_size(tokenizer: Any) -> int:
    """One more than the largest id a tokenizer can give; `len(tokenizer)` is less where its ids have gaps."""
    return max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=-1))


def check_largest_id(tokenizer: Any, name: str) -> None:
    """Refuse a tokenizer with an id that is far beyond all others: `tokenizers` writes it out by counting up to there.

    Args:
        tokenizer: any.
        name: whose it is, for the message.

    Raises:
        ModelError: it has such an id.
    """
    ids = tokenizer.get_vocab()
    largest = max(ids, key=ids.get, default=None)
    if largest is not None and ids[largest] > _LARGEST_ID:
        raise ModelError(f"the tokenizer of {name} gives {largest!r} the id {ids[largest]}; its files are damaged")


def embedding_rows(model: Any) -> int:
    """How many tokens a model has embeddings for."""
    return int(model.get_input_embeddings().weight.shape[0])


def check_ids(largest: int, rows: int, tokenizer: Any) -> None:
    """Refuse an id without an embedding row.

    Args:
        largest: of the ids.
        rows: how many tokens the model has embeddings for.
        tokenizer: that made the ids.

    Raises:
        ModelError: there is no such row.
    """
    if largest >= rows:
        raise ModelError(
            f"token {tokenizer.convert_ids_to_tokens(largest)!r} has id {largest}, and the model has embeddings for "
            f"{rows} tokens only; it was added to the tokenizer without resizing the embeddings: take the tokenizer "
            "that the model was made with, or the model that has these rows"
        )


def guard_embeddings(model: Any, tokenizer: Any) -> bool:
    """Have a model refuse the ids that its tokenizer can give and its embeddings have no row for.

    That happens where tokens were added to a tokenizer and the embeddings not resized. Texts without those tokens are
    read as ever. A model that has all rows is left alone.

    Args:
        model: gets a check before its input embeddings, which raises ModelError.
        tokenizer: that makes its ids.

    Returns:
        Whether there are such ids.
    """
    rows = embedding_rows(model)
    if vocabulary_size(tokenizer) <= rows:
        return False

    def check(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if inputs and inputs[0].numel():
            check_ids(int(inputs[0].max()), rows, tokenizer)

    model.get_input_embeddings().register_forward_pre_hook(check)
    return True
