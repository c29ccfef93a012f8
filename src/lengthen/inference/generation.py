"""Continue a text, streamed."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import set_seed
from transformers.generation import BaseStreamer

from lengthen.context import base_context
from lengthen.errors import DataError, LengthenError

__all__ = ["Continuation", "generate"]


@dataclass(frozen=True)
class Continuation:
    """A generated text and what it took.

    Attributes:
        text: the new text, without the prompt.
        prompt_tokens: tokens of the prompt.
        new_tokens: tokens generated, the end token included.
        seconds: wall time.
    """

    text: str
    prompt_tokens: int
    new_tokens: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


_TAIL = 8


class _Stream(BaseStreamer):
    """Turns tokens into text as soon as they are whole characters.

    Each piece is decoded behind the tokens before it: many tokenizers drop a space at the start of what they decode,
    which would be missing after the prompt, and, with transformers' TextStreamer, after each line end.
    """

    def __init__(self, tokenizer: Any, prompt: list[int], on_text: Callable[[str], None]):
        self._tokenizer, self._on_text = tokenizer, on_text
        self._ids = prompt[-_TAIL:]
        self._before, self._done = 0, len(self._ids)
        self._is_prompt = True
        self.text = ""

    def put(self, value: torch.Tensor) -> None:
        """Take the next tokens; the first ones are the prompt."""
        if self._is_prompt:
            self._is_prompt = False
            return
        self._ids += value.flatten().tolist()
        self._pass_on()

    def end(self) -> None:
        """Pass on what is left, characters that stayed incomplete too."""
        self._pass_on(at_end=True)

    def _pass_on(self, at_end: bool = False) -> None:
        known, all_of_it = self._decode(self._ids[self._before : self._done]), self._decode(self._ids[self._before :])
        if len(all_of_it) <= len(known) or (all_of_it.endswith("\ufffd") and not at_end):
            return
        self._before, self._done = self._done, len(self._ids)
        self.text += all_of_it[len(known) :]
        self._on_text(all_of_it[len(known) :])

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def generate(
    model: Any,
    tokenizer: Any,
    prompt: str,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    seed: int = 0,
    on_text: Callable[[str], None] = lambda _text: None,
) -> Continuation:
    """Continue a prompt.

    Args:
        model: from `lengthen.load`.
        tokenizer: its tokenizer.
        prompt: the text to continue; never cut.
        max_new_tokens: at most this many.
        temperature: 0 takes the likeliest token each time; above 0 samples.
        seed: of the sampling.
        on_text: called with each piece of text as it is ready.

    Raises:
        DataError: the prompt is empty, or prompt and new tokens don't fit the context.
        LengthenError: a negative temperature or no tokens asked for.
    """
    if max_new_tokens < 1:
        raise LengthenError(f"--max-new-tokens is {max_new_tokens}; it must be at least 1")
    if temperature < 0:
        raise LengthenError(f"--temperature is {temperature}; it must be 0 (greedy) or above")
    ids = tokenizer(prompt, return_tensors="pt", verbose=False)["input_ids"].to(model.device)
    length, context = ids.shape[1], base_context(model.config)
    if not prompt or length == 0:
        raise DataError("the prompt is empty; give some text to continue")
    if length + max_new_tokens > context:
        raise DataError(
            f"the prompt has {length} tokens and {max_new_tokens} more are asked for, but the context is {context}; "
            "shorten the prompt, lower --max-new-tokens or extend the model further"
        )
    set_seed(seed)
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    stream = _Stream(tokenizer, ids[0].tolist(), on_text)
    started = time.perf_counter()
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            streamer=stream,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            **sampling,
        )
    return Continuation(stream.text, length, out.shape[1] - length, round(time.perf_counter() - started, 3))
