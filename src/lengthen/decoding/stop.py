"""Where a generated text ends: tokens and texts that stop it."""

from collections.abc import Sequence
from typing import Any

from lengthen.errors import LengthenError
from lengthen.head import causal_lm

__all__ = ["StopText", "check_length", "eos_token_ids"]


def eos_token_ids(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that a model ends its texts with, by its generation config and its tokenizer.

    Args:
        model: a causal language model of transformers, or a PEFT model around one.
        tokenizer: its tokenizer.
    """
    named = getattr(causal_lm(model).generation_config, "eos_token_id", None)
    named = named if isinstance(named, list) else [named]
    return {int(token) for token in (*named, tokenizer.eos_token_id) if token is not None}


class StopText:
    """Lets text through until the first of some texts, which may come in pieces.

    Attributes:
        is_over: whether one of them came.
    """

    def __init__(self, stop: Sequence[str]):
        self._stop = tuple(stop)
        self._held = ""
        self.is_over = False

    def push(self, piece: str) -> str:
        """Take more text and return what can be shown: nothing that may turn out to be the start of a stop text."""
        if not self._stop or self.is_over:
            return "" if self.is_over else piece
        text = self._held + piece
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.is_over, self._held = True, ""
            return text[: min(found)]
        held = max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def end(self) -> str:
        """The text that was held back, where nothing more comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text are the start of a stop text."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


def check_length(max_new_tokens: int) -> None:
    """Refuse an answer without a token.

    Raises:
        LengthenError: `max_new_tokens` is below 1.
    """
    if max_new_tokens < 1:
        raise LengthenError(f"`max_new_tokens` is {max_new_tokens}; it must be at least 1")
