"""Full attention of a chunk of queries behind a key/value cache, without a (c, T) mask.

The last query sees all keys, the one before all but the last, and so on: causality aligned at the bottom right.

    c = 2, T = 5    x x x x .
                    x x x x x

transformers builds this mask for torch's attention, which then has no flash kernel left, and repeats the keys and
values of grouped heads. torch's flash kernels know the pattern without a mask.

Shapes: B sequences, c queries, T keys, H query heads, K key/value heads, D head size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

__all__ = ["chunked_attention", "chunked_mask", "needs_no_mask", "reading_chunks"]

_NAME = "chunked"
_LARGEST_HEAD = 256


@contextmanager
def reading_chunks(model: Any) -> Iterator[None]:
    """Let a model that uses torch's attention read chunks in this block without masks, where flash kernels can.

    Those run on CUDA GPUs of compute capability 8.0 or later, in 16 bits. Elsewhere nothing changes.

    Args:
        model: a causal language model of transformers, in evaluation mode.
    """
    before = model.config._attn_implementation
    is_possible = before == "sdpa" and needs_no_mask(model)
    if is_possible:
        model.set_attn_implementation(_NAME)
    try:
        yield
    finally:
        if is_possible:
            model.set_attn_implementation(before)


def needs_no_mask(values: Any) -> bool:
    """Whether flash kernels are there for a model or a tensor: on its device, in its dtype."""
    return (
        values.device.type == "cuda"
        and values.dtype in (torch.bfloat16, torch.float16)
        and torch.cuda.get_device_capability(values.device) >= (8, 0)
    )


def chunked_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function registered as "chunked".

    Args:
        module: the attention layer.
        query: (B, H, c, D).
        key: (B, K, T, D), not repeated.
        value: (B, K, T, D).
        attention_mask: what `chunked_mask` returned: None for causality alone.
        dropout: probability of dropping an attention weight.
        scaling: factor on the scores.
        kwargs: the architecture's own.

    Returns:
        (B, c, H, D) and None.
    """
    chunk, length = query.shape[2], key.shape[2]
    if attention_mask is None and 1 < chunk < length:
        if key.shape[-1] == value.shape[-1] <= _LARGEST_HEAD and kwargs.get("softcap") is None:
            out_BHcD = scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=causal_lower_right(chunk, length),
                dropout_p=dropout,
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            )
            return out_BHcD.transpose(1, 2).contiguous(), None
        attention_mask = torch.ones(1, 1, chunk, length, dtype=torch.bool, device=query.device).tril(length - chunk)
    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)


def chunked_mask(
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    **kwargs: Any,
) -> torch.Tensor | None:
    """The mask function registered for "chunked": None where causality at the bottom right is all there is.

    Args:
        q_length, kv_length: tokens of the queries, and of the keys with those of the cache.
        q_offset: position of the first query.
        attention_mask: (B, T) where there is padding.
        local_size: tokens of a window; None for none.
        allow_is_causal_skip: whether attention that is only causal needs no mask.
        **kwargs: further arguments of the ordinary mask function.
    """
    is_plain = allow_is_causal_skip and attention_mask is None and local_size is None
    if is_plain and q_length + q_offset == kv_length:
        return None
    return sdpa_mask(
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        attention_mask=attention_mask,
        local_size=local_size,
        allow_is_causal_skip=allow_is_causal_skip,
        **kwargs,
    )


AttentionInterface.register(_NAME, chunked_attention)
AttentionMaskInterface.register(_NAME, chunked_mask)
