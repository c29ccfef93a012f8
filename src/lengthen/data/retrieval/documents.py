"""The run's own documents as the text around facts."""

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lengthen.data.token_store import TokenStore

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["SurroundingText"]


class SurroundingText:
    """The run's own documents as text around facts, and as passages to be quoted.

    Args:
        stores: tokenized documents, at least one token in all.
        tokenizer: that they were tokenized by.
    """

    def __init__(self, stores: Sequence[TokenStore], tokenizer: "PreTrainedTokenizerBase"):
        self._tokenizer = tokenizer
        self._documents = [store[index] for store in stores for index in range(len(store))]
        self._ends = np.cumsum([len(ids) for ids in self._documents])
        assert len(self) > 0

    def __len__(self) -> int:
        """Tokens of all documents."""
        return int(self._ends[-1])

    def window(self, start: int, tokens: int) -> str:
        """The text from a token on, documents in a ring, with blank lines between them.

        Args:
            start: the first token, counted over all documents; beyond the last it begins again.
            tokens: how many.
        """
        parts: list[str] = []
        while tokens > 0:
            start %= len(self)
            which = int(np.searchsorted(self._ends, start, side="right"))
            stop = min(start + tokens, int(self._ends[which]))
            ids, end = self._documents[which], int(self._ends[which])
            parts.append(self._decode(ids[len(ids) - (end - start) : len(ids) - (end - stop)]))
            tokens, start = tokens - (stop - start), stop
        return "\n\n".join(part for part in parts if part)

    def passage(self, rng: random.Random, least: int, most: int) -> str | None:
        """Whole words in one line, from a random place; None where there are too few.

        Args:
            rng: draws the place and the number of words.
            least, most: words.
        """
        start, words = rng.randrange(len(self)), rng.randrange(least, most + 1)
        # The first word and the last may be cut.
        found = self.window(start, 4 * words).split()[1 : words + 1]
        return " ".join(found) if len(found) >= least else None

    def _decode(self, ids: np.ndarray) -> str:
        text = self._tokenizer.decode(ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text).strip("\ufffd")  # letters whose bytes were cut
