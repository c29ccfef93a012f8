"""Tokens to text, one at a time."""

from typing import Any

__all__ = ["IncrementalDetokenizer"]

_TAIL = 8  # tokens of the prompt that the first piece is decoded behind


class IncrementalDetokenizer:
    """Turns tokens into text as soon as they are whole characters.

    Each piece is decoded behind the tokens before it: many tokenizers drop a space at the start of what they decode,
    which would be missing after the prompt, and, with transformers' TextStreamer, after each line end.

    Args:
        tokenizer: of the model.
        prompt: the tokens before the first new one.

    Attributes:
        text: all pieces so far.
    """

    def __init__(self, tokenizer: Any, prompt: list[int]):
        self._tokenizer = tokenizer
        self._ids = prompt[-_TAIL:]
        self._before, self._done = 0, len(self._ids)
        self.text = ""

    def push(self, token: int) -> str:
        """Take the next token and return the text that is whole now, which may be none."""
        self._ids.append(token)
        return self._next()

    def end(self) -> str:
        """Return what is left, characters that stayed incomplete too."""
        return self._next(at_end=True)

    def _next(self, at_end: bool = False) -> str:
        known, all_of_it = self._decode(self._ids[self._before : self._done]), self._decode(self._ids[self._before :])
        if len(all_of_it) <= len(known) or (all_of_it.endswith("\ufffd") and not at_end):
            return ""
        self._before, self._done = self._done, len(self._ids)
        piece = all_of_it[len(known) :]
        self.text += piece
        return piece

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
