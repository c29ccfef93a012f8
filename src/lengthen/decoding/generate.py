"""Continue a text, streamed."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch

from lengthen._compat import with_cache, without_cudnn_attention
from lengthen.context import base_context, is_length_dependent, positions
from lengthen.decoding.detokenize import IncrementalDetokenizer
from lengthen.decoding.prefill import check_prefill, default_chunk, new_cache, prefill
from lengthen.decoding.sampling import GREEDY, Sampler, SamplingParams, pick_tokens
from lengthen.decoding.stop import check_length, eos_token_ids
from lengthen.decoding.streaming import Streaming, StreamingCache
from lengthen.errors import DataError, ModelError
from lengthen.head import causal_lm

__all__ = ["Continuation", "Reader", "generate"]

# Small enough that progress shows and stopping is felt, large enough to keep a processor busy.
_CHUNK, _CHUNK_ON_CUDA = 1024, 8192


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
        """The result as a JSON object."""
        return asdict(self)


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
            original = getattr(config, "original_max_position_embeddings", None)
            original = original or positions(config).get("original_max_position_embeddings")
            self._turn = original or config.max_position_embeddings
        self._cache = new_cache(model) if streaming is None else StreamingCache(model, streaming)
        self.tokens: list[int] = []

    @property
    def cached(self) -> int:
        """Tokens whose keys and values are held."""
        keys = (getattr(layer, "keys", None) for layer in self._cache.layers)
        return max((key.shape[-2] for key in keys if key is not None), default=0)

    def shared(self, ids: list[int]) -> int:
        """How many tokens of a text would not be read again; never the last one, which tells what follows."""
        if self._turn is not None:
            return 0
        pairs = zip(self.tokens, ids[:-1], strict=False)
        common = next((i for i, (old, new) in enumerate(pairs) if old != new), min(len(self.tokens), len(ids) - 1))
        can_crop = self._streaming is None and not any(self._cache.is_sliding) and not any(self._cache.is_linear)
        return common if common == len(self.tokens) or can_crop else 0

    def prefill(
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
    def decode(self, last: int, sampling: SamplingParams = GREEDY) -> Iterator[int]:
        """Continue what was read, token by token, without end.

        Args:
            last: the last token of the text, which `prefill` left.
            sampling: how tokens are drawn.

        Yields:
            Tokens; all but the newest are read then.

        Raises:
            ModelError: the logits are not numbers.
        """
        sampler, token = Sampler(sampling), last
        while True:
            (found,) = pick_tokens(self._logits(token)[None], [sampler])
            if found is None:
                raise ModelError(f"the model's logits are not numbers (dtype {self._model.dtype}); load it in bfloat16")
            token = found
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
        """Drop the cache where a forward pass stopped halfway, as by Ctrl-C: its layers have read different texts."""
        try:
            yield
        except BaseException:
            self._forget()
            raise


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
    sampling = SamplingParams(temperature=temperature, seed=seed)
    check_length(max_new_tokens)
    sampling.check()
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
    ends, stream, new_tokens = eos_token_ids(model, tokenizer), IncrementalDetokenizer(tokenizer, ids), 0
    reader = Reader(model, streaming)
    reader.prefill(ids, on_read)
    for token in islice(reader.decode(ids[-1], sampling), max_new_tokens):
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
