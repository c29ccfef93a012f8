"""Reading without end: a key/value cache of the first tokens and the latest ones (StreamingLLM, arXiv 2309.17453).

The first tokens ("sinks") are kept because models put much attention on them, whatever they are; without them a
window that slides breaks as soon as they leave it. What lies between the sinks and the recent tokens is gone: the
model can't answer about it.

Positions are those inside the cache, as in the paper's section 3.2: the sinks directly precede the recent tokens. Only
distances matter to RoPE, so we move the sinks, not the recent tokens: their keys are rotated on by the number of tokens
that left, from the keys as they were first stored, so that rounding never adds up. Every sinks + recent tokens the
recent keys are rotated back to the start, so that positions stay small numbers; each key takes part in that at most
once.

Shapes: B sequences, K key/value heads, T tokens, D head dimension, R rotated dimensions.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from lengthen._compat import with_cache
from lengthen.context import is_length_dependent
from lengthen.context.layers import rope_by_type
from lengthen.decoding.kv_cache import GrowingLayer
from lengthen.decoding.prefill import is_rounding, new_cache
from lengthen.errors import ContextError, LengthenError, ModelError
from lengthen.head import causal_lm, decoder_of

__all__ = ["Streaming", "StreamingCache"]

# The most tokens that are read at once: they see each other beside the window.
_CHUNK = 512
_CHECKED_TOKENS, _CHECKED_SHIFT = 8, 64


@dataclass(frozen=True)
class Streaming:
    """The tokens that a streaming cache keeps.

    Attributes:
        sinks: the first tokens of a text, kept for good; 4 is enough for most models (section 4.3 of the paper).
        recent: the latest tokens.
        chunk: the most tokens that are read at once; each sees at least the sinks and `recent` tokens before it.
    """

    sinks: int
    recent: int
    chunk: int

    @classmethod
    def within(cls, context: int, sinks: int = 4, recent: int | None = None) -> "Streaming":
        """Sizes that a model takes.

        Args:
            context: the model's, tokens.
            sinks: as above.
            recent: default three quarters of the context.

        Raises:
            LengthenError: there is nothing recent, or no token of the context is left to read with.
        """
        recent = context * 3 // 4 - sinks if recent is None else recent
        if sinks < 0 or recent < 1 or sinks + recent >= context:
            raise LengthenError(
                f"`sinks={sinks}` and `recent={recent}` don't fit the context of {context} tokens; sinks are at least "
                "0, recent tokens at least 1, and both together fewer than the context"
            )
        return cls(sinks, recent, min(_CHUNK, context - sinks - recent))


class StreamingCache(DynamicCache):
    """A cache that holds at most sinks + recent tokens between calls; given to a model as any cache is.

    `get_seq_length` is the position of the next token, not the number of tokens that were read. So a model's `generate`
    does not work with it; `lengthen.decoding.generate` does.

    Args:
        model: a causal language model of transformers, or a PEFT model around one, in evaluation mode.
        streaming: what is kept.

    Raises:
        ContextError: no RoPE, or one that depends on the length of the input.
        ModelError: layers with a sliding window or without keys and values, or keys that don't move as RoPE does.
    """

    def __init__(self, model: Any, streaming: Streaming):
        super().__init__()
        config = causal_lm(model).config
        if not rope_by_type(config):
            raise ContextError(
                f"this {config.model_type} has no RoPE, so its cache can't be streamed; leave `streaming` out"
            )
        if is_length_dependent(config):
            raise ContextError(
                f"this {config.model_type} has RoPE that changes with the length of its input, so the "
                "keys in a cache can't be moved; use it without `streaming`"
            )
        layers = new_cache(model).layers
        if any(type(layer) is not GrowingLayer for layer in layers):
            raise ModelError(
                f"{type(causal_lm(model)).__name__} has layers that don't see everything before a token (a sliding "
                "window, or a state in place of keys and values); use it without `streaming`"
            )
        move = _Move(model)
        _check_moves(model, move)
        self.layer_class_to_replicate = None
        self.layers = [_StreamingLayer(streaming, move) for _ in layers]


class _StreamingLayer(DynamicLayer):
    """Holds the sinks' keys at positions 0, 1, ..., and the recent ones' after a gap of as many as have left."""

    is_croppable = False

    def __init__(self, streaming: Streaming, move: "_Move"):
        super().__init__()
        self._sinks, self._held, self._move = streaming.sinks, streaming.sinks + streaming.recent, move
        self._gap = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add keys and values (B, K, T, D), and return them behind those that are held."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys = torch.cat([cast(torch.Tensor, self.keys), key_states], dim=-2)
        values = torch.cat([cast(torch.Tensor, self.values), value_states], dim=-2)
        seen = keys
        if self._gap:
            sinks, recent = keys[..., : self._sinks, :], keys[..., self._sinks :, :]
            seen = torch.cat([self._move(sinks, self._gap), recent], dim=-2)
        # Evicted afterwards: the new tokens see all that was held.
        self._hold(keys, values)
        return seen, values

    def _hold(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        excess = max(0, keys.shape[-2] - self._held)
        recent, recent_values = (each[..., self._sinks + excess :, :] for each in (keys, values))
        self._gap += excess
        if self._gap >= self._held:
            recent = self._move(recent, -self._gap)
            self._gap = 0
        self.keys = torch.cat([keys[..., : self._sinks, :], recent], dim=-2)
        self.values = torch.cat([values[..., : self._sinks, :], recent_values], dim=-2)

    def get_seq_length(self) -> int:
        """The position of the next token."""
        return super().get_seq_length() + self._gap

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many keys the new tokens see, and the position of the first."""
        return super().get_seq_length() + query_length, self._gap

    def get_max_length(self) -> int:
        """The most tokens that are held."""
        return self._held

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._gap = 0

    def crop(self, tokens_to_remove: int) -> None:
        """Not possible: what left the window to make room for them is gone."""
        raise NotImplementedError("a streaming cache can't be cropped; begin a new one")


class _Move:
    """Rotates keys to other positions, by the model's own frequencies and its own layout of the rotated dimensions."""

    def __init__(self, model: Any):
        decoder = decoder_of(model)
        self._rotary = getattr(decoder, "rotary_emb", None)
        self._apply: Callable[..., Any] | None = getattr(
            sys.modules[type(decoder).__module__], "apply_rotary_pos_emb", None
        )
        if self._rotary is None or self._apply is None:
            raise ModelError(
                f"lengthen does not know how {type(causal_lm(model)).__name__} rotates its keys; use it without "
                "`streaming`"
            )
        self._distance: int | None = None
        self._cos_1TR = self._sin_1TR = torch.empty(0)

    def __call__(self, keys_BKTD: torch.Tensor, distance: int) -> torch.Tensor:
        """Keys as they would be `distance` positions further on, computed in float32."""
        assert self._rotary is not None
        assert self._apply is not None
        exact = keys_BKTD.float()
        if distance != self._distance:  # the same one for all layers
            position = torch.tensor([[distance]], device=exact.device)
            # YaRN scales cosine and sine; the keys have that factor already.
            scale = getattr(self._rotary, "attention_scaling", 1.0)
            self._cos_1TR, self._sin_1TR = (part / scale for part in self._rotary(exact, position))
            self._distance = distance
        rotated = self._cos_1TR.shape[-1]
        turned = self._apply(exact[..., :rotated], exact[..., :rotated], self._cos_1TR, self._sin_1TR)[1]
        return torch.cat([turned, exact[..., rotated:]], dim=-1).to(keys_BKTD.dtype)


@torch.inference_mode()
def _check_moves(model: Any, move: _Move) -> None:
    """Refuse a model whose keys, moved, are not those that it computes for the same tokens at other positions."""
    base = causal_lm(model)
    ids_1T = torch.arange(_CHECKED_TOKENS, device=base.device)[None] % base.get_input_embeddings().weight.shape[0]

    def keys_from(first: int) -> list[torch.Tensor]:
        cache = new_cache(model)
        positions_1T = torch.arange(first, first + _CHECKED_TOKENS, device=base.device)[None]
        decoder_of(model)(input_ids=ids_1T, position_ids=positions_1T, **with_cache(cache))
        return [cast(DynamicLayer, layer).keys for layer in cache.layers]  # type: ignore[misc]

    for before, after in zip(keys_from(0), keys_from(_CHECKED_SHIFT), strict=True):
        if not is_rounding(move(before, _CHECKED_SHIFT), after):
            raise ModelError(
                f"the keys of {type(base).__name__} depend on more than RoPE's distances, so they can't be moved; use "
                "it without `streaming`"
            )
