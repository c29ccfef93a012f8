"""Long inputs read chunk by chunk into a key/value cache, so that activations stay those of one chunk.

Shapes: B sequences in a batch, T tokens, c tokens of one chunk, H hidden size.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from lengthen._compat import with_cache, without_cudnn_attention
from lengthen.context import is_length_dependent
from lengthen.decoding.chunked_attention import needs_no_mask, reading_chunks
from lengthen.decoding.kv_cache import GrowingLayer
from lengthen.errors import ContextError, LengthenError, ModelError
from lengthen.head import causal_lm, decoder_of, hidden_states

__all__ = ["check_prefill", "default_chunk", "hidden_chunks", "is_rounding", "new_cache", "prefill"]

# A whole input needs no mask: it is the fastest way. On CPU, activations are small beside the weights up to here.
_WHOLE = 8192
_CHUNK, _CHUNK_ON_CUDA = 4096, 16384
# Each chunk but the first has a (c, T) mask, which torch's attention turns into one of 2 or 4 bytes per number.
_MASK_NUMBERS = 2**27
# Of a CUDA device's free memory, what activations may take.
_SHARE_OF_FREE = 0.5

_CHECKED_TOKENS = 16


def default_chunk(model: Any, length: int, batch: int = 1) -> int:
    """The tokens of a chunk for inputs of `length` tokens.

    On CPU all up to 8,192, else 4,096, and fewer beyond 32,768. On a CUDA GPU all where memory allows it, else at most
    16,384. What needs masks there is read as on CPU: a sliding window, float32, and chunks on a GPU before compute
    capability 8.0. Everywhere all of any length where the model's RoPE depends on the length of its input.

    Args:
        model: a causal language model of transformers, or a PEFT model around one.
        length: tokens, what is in a cache included.
        batch: inputs that are read together.
    """
    if length * batch <= _WHOLE or is_length_dependent(causal_lm(model).config):
        return length
    base = causal_lm(model)
    if base.device.type == "cuda" and _is_only_causal(base):
        fitting = int(_SHARE_OF_FREE * _free_bytes(base.device)) // (batch * bytes_per_token(base.config, base.dtype))
        if fitting >= length:
            return length
        if needs_no_mask(base):
            return max(1, min(_CHUNK_ON_CUDA, fitting // 1024 * 1024))
    return length if length <= _WHOLE else max(1, min(_CHUNK, _MASK_NUMBERS // length))


def bytes_per_token(config: Any, dtype: torch.dtype) -> int:
    """Bytes that a token takes while a layer is computed without gradients, keys and values of all layers included.

    An MLP holds three tensors of its width at once; attention and the norms, which compute in float32, hold some eight
    of the hidden size. Both are counted, though one follows the other.

    Args:
        config: of the model.
        dtype: of keys, values and arithmetic.
    """
    config = config.get_text_config()
    hidden, heads = config.hidden_size, config.num_attention_heads
    experts = getattr(config, "num_experts_per_tok", None) or 0
    width = max(
        getattr(config, "intermediate_size", None) or 4 * hidden,
        experts * (getattr(config, "moe_intermediate_size", None) or 0),
    )
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    kept = 2 * config.num_hidden_layers * kv_heads * (getattr(config, "head_dim", None) or hidden // heads)
    room = kept // 8  # of a growing cache
    return (3 * width + 8 * hidden + kept + room) * dtype.itemsize


def _is_only_causal(model: Any) -> bool:
    """Whether a GPU's fused kernels read a whole input without a mask: in 16 bits, and no layer has a window."""
    is_half = model.dtype in (torch.bfloat16, torch.float16)
    has_windows = any(DynamicCache(config=model.config).is_sliding)
    return is_half and model.config._attn_implementation == "sdpa" and not has_windows


def _free_bytes(device: torch.device) -> int:
    """Bytes that torch's allocator can give out: those of the device, and those that it holds already."""
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held


def new_cache(model: Any) -> DynamicCache:
    """An empty key/value cache for `model`; layers with a sliding window keep no more than their window.

    A layer that sees everything before a token is a `GrowingLayer`.

    Raises:
        ModelError: no layer of the model has keys and values.
    """
    cache = DynamicCache(config=causal_lm(model).config)
    if all(cache.is_linear):
        raise ModelError(
            f"{type(causal_lm(model)).__name__} has no key/value cache, so it can't be read in chunks; read it whole, "
            "with a chunk as long as the input"
        )
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


@torch.inference_mode()
def hidden_chunks(
    model: Any, input_ids: torch.Tensor, chunk: int | None = None, cache: DynamicCache | None = None
) -> Iterator[torch.Tensor]:
    """Read tokens chunk by chunk and yield the decoder's last hidden states of each chunk.

    Args:
        model: a causal language model of transformers, or a PEFT model around one, in evaluation mode.
        input_ids: (B, T) token ids without padding, T at least 1.
        chunk: tokens read at once; default `default_chunk` of all tokens, those in the cache included.
        cache: what was read before, from `new_cache`; the tokens continue it, and it is added to. Default empty.

    Yields:
        (B, c, H), c = `chunk` but for the last.

    Raises:
        LengthenError: `chunk` is below 1.
        ModelError: more than one chunk is needed, and the model can't be read so (see `check_prefill`).
    """
    if chunk is not None and chunk < 1:
        raise LengthenError(f"chunk is {chunk} tokens; it has to be at least 1")
    cache = new_cache(model) if cache is None else cache
    chunk = chunk or default_chunk(model, cache.get_seq_length() + input_ids.shape[1], len(input_ids))
    if chunk < input_ids.shape[1] and cache.get_seq_length() == 0:
        check_prefill(model, input_ids)
    for ids_Bc in input_ids.long().split(chunk, dim=1):
        # Each chunk has a new number of keys, for which cuDNN would build a plan.
        with reading_chunks(causal_lm(model)), without_cudnn_attention():
            hidden_BcH = _continued(model, ids_Bc, cache)
        yield hidden_BcH


@torch.inference_mode()
def prefill(
    model: Any,
    input_ids: torch.Tensor,
    chunk: int | None = None,
    cache: DynamicCache | None = None,
    on_chunk: Callable[[int], None] = lambda _tokens: None,
) -> DynamicCache:
    """Read tokens chunk by chunk into a key/value cache, which `model.generate` then continues.

    `generate` reads the last token itself: give all but the last here, and all there, with the cache
    as `cache`.

    Args:
        model: as in `hidden_chunks`.
        input_ids: as in `hidden_chunks`.
        chunk: as in `hidden_chunks`.
        cache: as in `hidden_chunks`.
        on_chunk: called after each chunk with the tokens read so far, without those that `cache` came with.

    Returns:
        The cache, with T tokens more; a new one if none was given.

    Raises:
        LengthenError: as in `hidden_chunks`.
        ModelError: as in `hidden_chunks`.
    """
    cache = new_cache(model) if cache is None else cache
    done = 0
    for hidden_BcH in hidden_chunks(model, input_ids, chunk, cache):
        done += hidden_BcH.shape[1]
        on_chunk(done)
    return cache


@torch.inference_mode()
def check_prefill(model: Any, input_ids: torch.Tensor) -> None:
    """Refuse a model that computes something else in chunks than in one go.

    Frequencies that change with the length of the input are known from the config. Whether there is a key/value
    cache, and whether it is used, shows in a few tokens: they are read whole, and in two chunks.

    Args:
        model: as in `hidden_chunks`.
        input_ids: (B, T) token ids, of which the first 16 are used; T at least 2.

    Raises:
        ContextError: the model's RoPE depends on the length of the input.
        ModelError: the hidden states differ.
    """
    if is_length_dependent(causal_lm(model).config):
        raise ContextError(
            f"this {causal_lm(model).config.model_type} has RoPE that changes with the length of its input, so it "
            "can't be read in chunks; give no chunk, which reads it whole, or scale its positions by another method"
        )
    ids_BT = input_ids[:1, :_CHECKED_TOKENS].long()
    cache = new_cache(model)
    with without_cudnn_attention():
        whole_BTH = hidden_states(model, ids_BT)
        wholes, chunks = whole_BTH.tensor_split(2, dim=1), ids_BT.tensor_split(2, dim=1)
        are_same = [
            is_rounding(_continued(model, ids_Bc, cache), whole_BcH)
            for ids_Bc, whole_BcH in zip(chunks, wholes, strict=True)
        ]
    if not all(are_same) and whole_BTH.isfinite().all():
        raise ModelError(
            f"{type(causal_lm(model)).__name__} computes something else in chunks with a key/value cache than in one "
            "go; read it whole, with a chunk as long as the input"
        )


def is_rounding(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether two results of the same arithmetic by other kernels differ by no more than rounding.

    In bfloat16 a token alone can be far off: whether it becomes one that all others attend to (a massive activation)
    may hang on the last bit. So up to a quarter of the vectors are left out; a cache that is not used changes all.

    Args:
        found, expected: (..., H) vectors of the model's dtype, such as hidden states.
    """
    tolerance = 1e-3 if expected.dtype == torch.float32 else 5e-2
    is_near = (found.float() - expected.float()).norm(dim=-1) <= tolerance * expected.float().norm(dim=-1)
    return bool(is_near.float().mean() >= 0.75)


def _continued(model: Any, ids_Bc: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
    ids_Bc = ids_Bc.to(causal_lm(model).device)
    return decoder_of(model)(input_ids=ids_Bc, **with_cache(cache))[0]
