"""Tokens and their log probabilities as OpenAI's clients take them: one form for completions, another for chat."""

from typing import Any

from lengthen.decoding.detokenize import IncrementalDetokenizer
from lengthen.serving.engine import GenerationEvent, Logprob

__all__ = ["ChatLogprobs", "CompletionLogprobs"]


class CompletionLogprobs:
    """Log probabilities of one completion: lists of tokens, their values, the likeliest tokens, places in the text.

    Args:
        tokenizer: of the model.
        prompt: the tokens before the first new one.
        echoed: the prompt's text, where that is shown before the new text; None where it is not.
    """

    def __init__(self, tokenizer: Any, prompt: list[int], echoed: str | None):
        self._tokenizer, self._prompt, self._echoed = tokenizer, prompt, echoed
        self._stream = IncrementalDetokenizer(tokenizer, prompt)
        self._start = len(echoed or "")

    def entries(self, event: GenerationEvent) -> list[Any]:
        """One for each token that an event tells about, those of an echoed prompt too."""
        found = []
        if event.prompt_logprobs is not None and self._echoed is not None:
            stream = IncrementalDetokenizer(self._tokenizer, [])
            # The first token is predicted by nothing.
            for token, logprob in zip(self._prompt, (None, *event.prompt_logprobs), strict=True):
                found.append(self._entry(token, logprob, len(stream.text)))
                stream.push(token)
        if event.logprob is not None:
            found.append(self._entry(event.logprob.token, event.logprob, self._start + len(self._stream.text)))
            self._stream.push(event.logprob.token)
        return found

    def _entry(self, token: int, logprob: Logprob | None, offset: int) -> tuple[Any, ...]:
        text = _text(self._tokenizer, token)
        if logprob is None:
            return text, None, None, offset
        top: dict[str, float] = {}
        # Different tokens may look the same, such as parts of characters; then the likeliest one is told.
        for other, value in (*logprob.top, (token, logprob.value)):
            name = _text(self._tokenizer, other)
            top[name] = max(value, top.get(name, value))
        return text, logprob.value, top, offset

    @staticmethod
    def content(entries: list[Any]) -> dict[str, Any]:
        """The entries as a choice's "logprobs"."""
        names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        return {name: [entry[place] for entry in entries] for place, name in enumerate(names)}


class ChatLogprobs:
    """Log probabilities of one chat answer: an object for each token."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer

    def entries(self, event: GenerationEvent) -> list[Any]:
        """One for the token that an event tells about."""
        if event.logprob is None:
            return []
        top = [self._entry(token, value) for token, value in event.logprob.top]
        return [{**self._entry(event.logprob.token, event.logprob.value), "top_logprobs": top}]

    def _entry(self, token: int, value: float) -> dict[str, Any]:
        text = _text(self._tokenizer, token)
        # A token that is part of a character has no text, and so no bytes that could be told from it.
        return {"token": text, "logprob": value, "bytes": None if "\ufffd" in text else list(text.encode())}

    @staticmethod
    def content(entries: list[Any]) -> dict[str, Any]:
        """The entries as a choice's "logprobs"."""
        return {"content": entries, "refusal": None}


def _text(tokenizer: Any, token: int) -> str:
    return str(tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False))
