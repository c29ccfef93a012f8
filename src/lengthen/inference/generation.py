"""Continue a text, streamed."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import TextStreamer, set_seed

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


class _Stream(TextStreamer):
    def __init__(self, tokenizer: Any, on_text: Callable[[str], None]):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._on_text = on_text

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._on_text(text)


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
    if length == 0:
        raise DataError("the prompt is empty; give some text to continue")
    if length + max_new_tokens > context:
        raise DataError(
            f"the prompt has {length} tokens and {max_new_tokens} more are asked for, but the context is {context}; "
            "shorten the prompt, lower --max-new-tokens or extend the model further"
        )
    set_seed(seed)
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    started = time.perf_counter()
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            streamer=_Stream(tokenizer, on_text),
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            **sampling,
        )
    new = out[0, length:]
    text = tokenizer.decode(new, skip_special_tokens=True)
    return Continuation(text, length, len(new), round(time.perf_counter() - started, 3))
