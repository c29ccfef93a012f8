"""Continue a text, streamed."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch

from lengthen._compat import with_cache, without_cudnn_attention
from lengthen.context import base_context, is_length_dependent
from lengthen.decoding.prefill import check_prefill, default_chunk, new_cache, prefill
from lengthen.decoding.streaming import Streaming, StreamingCache
from lengthen.errors import DataError, LengthenError
from lengthen.head import causal_lm

__all__ = ["Continuation", "Reader", "TextStream", "check_sampling", "end_tokens", "generate"]

# Small enough that progress shows and stopping is felt, large enough to keep a processor busy.
_CHUNK, _CHUNK_ON_CUDA = 1024, 8192
_TAIL = 8


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


class TextStream:
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


class Reader:
    """A model and what it has read.

    What a new text shares with the beginning of the last one is not read again. With `streaming` that is only so where
    the new text continues the last one, as what left the window can't be brought back.

    Args:
        model: from `lengthen.load`.
        streaming: keep only the first and the latest tokens.

    Attributes:
        tokens: what was read, in a streaming cache or not.

    Raises:
        ContextError, ModelError: `streaming` is not possible with this model (see `StreamingCache`).
        ModelError: the model has no key/value cache.
    """

    def __init__(self, model: Any, streaming: Streaming | None = None):
        self._model, self._streaming = model, streaming
        # Length-dependent frequencies change here, and then all that was read has to be read again.
        self._turn: int | None = None
        config = causal_lm(model).config.get_text_config()
        if is_length_dependent(config):
            rope = config.rope_parameters
            original = getattr(config, "original_max_position_embeddings", None)
            self._turn = original or rope.get("original_max_position_embeddings") or config.max_position_embeddings
        self._cache = new_cache(model) if streaming is None else StreamingCache(model, streaming)
        self.tokens: list[int] = []

    @property
    def cached(self) -> int:
        """Tokens whose keys and values are held."""
        keys = (getattr(layer, "keys", None) for layer in self._cache.layers)
        return max((each.shape[-2] for each in keys if each is not None), default=0)

    def shared(self, ids: list[int]) -> int:
        """How many tokens of a text would not be read again; never the last one, which tells what follows."""
        if self._turn is not None:
            return 0
        pairs = zip(self.tokens, ids[:-1], strict=False)
        common = next((i for i, (old, new) in enumerate(pairs) if old != new), min(len(self.tokens), len(ids) - 1))
        can_crop = self._streaming is None and not any(self._cache.is_sliding) and not any(self._cache.is_linear)
        return common if common == len(self.tokens) or can_crop else 0

    def read(
        self,
        ids: list[int],
        on_read: Callable[[int, int], None] = lambda _done, _total: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Read a text but for its last token.

        Args:
            ids: its tokens, at least one.
            on_read: called with the tokens read so far and all of them, first with those that are not read again.
            should_stop: asked after each chunk.

        Returns:
            Whether all was read.
        """
        shared = self.shared(ids)
        if shared == 0:
            self._forget()
        elif shared < len(self.tokens):
            self._cache.crop(shared - len(self.tokens))
            self.tokens = self.tokens[:shared]
        rest = ids[shared:-1]
        on_read(shared, len(ids) - 1)
        chunk = self._chunk(len(ids))
        if shared == 0 and len(rest) > chunk:
            check_prefill(self._model, self._tensor(ids))
        for start in range(0, len(rest), chunk):
            if should_stop():
                return False
            part = rest[start : start + chunk]
            with self._whole_or_forgotten():
                prefill(self._model, self._tensor(part), chunk, self._cache)
            self.tokens += part
            on_read(len(self.tokens), len(ids) - 1)
        return not should_stop()

    @torch.inference_mode()
    def write(self, last: int, temperature: float = 0.0, seed: int = 0) -> Iterator[int]:
        """Continue what was read, token by token, without end.

        Args:
            last: the last token of the text, which `read` left.
            temperature: 0 takes the likeliest token each time; above 0 draws from the whole distribution.
            seed: of the draws.

        Yields:
            Tokens; all but the newest are read then.
        """
        generator = torch.Generator(causal_lm(self._model).device).manual_seed(seed)
        token = last
        while True:
            logits_V = self._logits(token)
            if temperature > 0:
                probabilities_V = ((logits_V - logits_V.max()) / temperature).softmax(dim=-1)
                token = int(torch.multinomial(probabilities_V, 1, generator=generator))
            else:
                token = int(logits_V.argmax())
            yield token

    def _logits(self, token: int) -> torch.Tensor:
        """Read one more token and return the logits (V,) of what follows."""
        ids = [token]
        if len(self.tokens) == self._turn:
            ids = [*self.tokens, token]
            self._forget()
        with self._whole_or_forgotten(), without_cudnn_attention():
            out = self._model(input_ids=self._tensor(ids), logits_to_keep=1, **with_cache(self._cache))
        self.tokens += ids
        return out.logits[0, -1].float()

    def _chunk(self, length: int) -> int:
        if self._streaming is not None:
            return self._streaming.chunk
        chunk = default_chunk(self._model, length)
        is_cuda = causal_lm(self._model).device.type == "cuda"
        return chunk if self._turn is not None else min(_CHUNK_ON_CUDA if is_cuda else _CHUNK, chunk)

    def _tensor(self, ids: list[int]) -> torch.Tensor:
        return torch.tensor([ids], device=causal_lm(self._model).device)

    def _forget(self) -> None:
        self._cache.reset()
        self.tokens = []

    @contextmanager
    def _whole_or_forgotten(self) -> Iterator[None]:
        """What stops a forward pass halfway, such as Ctrl-C, leaves layers that have read different texts."""
        try:
            yield
        except BaseException:
            self._forget()
            raise


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that a model ends its texts with, by its generation config and its tokenizer."""
    named = getattr(causal_lm(model).generation_config, "eos_token_id", None)
    named = named if isinstance(named, list) else [named]
    return {int(token) for token in (*named, tokenizer.eos_token_id) if token is not None}


def check_sampling(max_new_tokens: int, temperature: float) -> None:
    """Refuse what makes no sense.

    Raises:
        LengthenError: no tokens asked for, or a temperature below 0.
    """
    if max_new_tokens < 1:
        raise LengthenError(f"`max_new_tokens` is {max_new_tokens}; it must be at least 1")
    if not 0 <= temperature < float("inf"):
        raise LengthenError(f"`temperature` is {temperature}; it must be 0 (greedy) or above")


def generate(
    model: Any,
    tokenizer: Any,
    prompt: str,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    seed: int = 0,
    on_text: Callable[[str], None] = lambda _text: None,
    streaming: Streaming | None = None,
    on_read: Callable[[int, int], None] = lambda _done, _total: None,
) -> Continuation:
    """Continue a prompt.

    Args:
        model: from `lengthen.load`.
        tokenizer: its tokenizer.
        prompt: the text to continue; never cut.
        max_new_tokens: at most this many.
        temperature: 0 takes the likeliest token each time; above 0 draws from the whole distribution.
        seed: of the sampling.
        on_text: called with each piece of text as it is ready.
        streaming: attend to the first and the latest tokens only, so that prompt and new text may have any length.
        on_read: called with the tokens of the prompt that are read and all of them, while it is read.

    Raises:
        DataError: the prompt is empty, or prompt and new tokens don't fit the context.
        LengthenError: a negative temperature or no tokens asked for.
        ContextError, ModelError: `streaming` is not possible with this model (see `StreamingCache`).
    """
    check_sampling(max_new_tokens, temperature)
    ids = tokenizer(prompt, verbose=False)["input_ids"]
    if not prompt or not ids:
        raise DataError("the prompt is empty; give some text to continue")
    context = base_context(model.config)
    if streaming is None and len(ids) + max_new_tokens > context:
        raise DataError(
            f"the prompt has {len(ids)} tokens and {max_new_tokens} more are asked for, but the context is {context}; "
            "shorten the prompt, lower `max_new_tokens`, extend the model further or add `streaming`"
        )
    started = time.perf_counter()
    ends, stream, new_tokens = end_tokens(model, tokenizer), TextStream(tokenizer, ids), 0
    reader = Reader(model, streaming)
    reader.read(ids, on_read)
    for token in islice(reader.write(ids[-1], temperature, seed), max_new_tokens):
        new_tokens += 1
        piece = stream.push(token)
        if piece:
            on_text(piece)
        if token in ends:
            break
    rest = stream.end()
    if rest:
        on_text(rest)
    return Continuation(stream.text, len(ids), new_tokens, round(time.perf_counter() - started, 3))
