"""S2-Attn as transformers' attention "s2", through its public registries."""

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lengthen.attention.backends import pick_backend
from lengthen.attention.documents import documents_of_mask
from lengthen.attention.layout import Layout, ShardLayout, SliceLayout, layout_mask
from lengthen.attention.shards import sharded_attention
from lengthen.attention.window import window_attention
from lengthen.attention_pattern import BackendName, Groups, layer_patterns
from lengthen.context import has_chunks, has_open_windows
from lengthen.errors import ModelError
from lengthen.head import causal_lm, decoder_modules

__all__ = ["register", "s2_attention", "set_backend", "set_group_size"]

_NOT_EXACT = {"softcap": "capped attention scores", "s_aux": "learned attention sinks"}


def set_group_size(
    model: nn.Module, tokens: int, sinks: int = 0, pattern: str = "s2", backend: BackendName = "auto"
) -> None:
    """Give every attention layer of `model` its S2 groups.

    Args:
        model: a model loaded with attn_implementation="s2"; adapters and wrappers around it don't matter.
        tokens: g, at least 2; a constant in tokens, whatever the length of a batch.
        sinks: first tokens of each document that all its groups see, at most g//2; 0 is the published pattern.
        pattern: "s2"; for ablation "plain" (no heads shifted), "alternate" (all heads of every other layer), "full";
            or one from `register_pattern`.
        backend: what computes the groups; "auto" picks by the model's device and what is installed.

    Raises:
        LengthenError: `tokens` is below 2, `sinks` out of range, or the pattern unknown.
        ModelError: no attention layer was found, or the backend is not there or not for this device.
    """
    cycle = [Groups(tokens, sinks, each) for each in layer_patterns(pattern)]
    layers = [module for _, module in decoder_modules(model) if hasattr(module, "is_causal")]
    if not layers:
        raise ModelError(
            f"{type(model).__name__} has no attention layer that S2 could be used in; set attention.kind=full"
        )
    config = causal_lm(model).config
    open_windows, chunks = has_open_windows(config), has_chunks(config)
    for index, layer in enumerate(layers):
        layer.s2_groups = cycle[index % len(cycle)]
        layer.s2_open_window = open_windows
        layer.s2_chunks = chunks
    set_backend(model, backend, next(model.parameters()).device)


def set_backend(model: nn.Module, backend: BackendName, device: torch.device) -> None:
    """Let another backend compute the groups of every attention layer that has some.

    Args:
        model: with groups.
        backend: what computes them; "auto" picks by the device and what is installed.
        device: that the model will be on.

    Raises:
        ModelError: the backend is not there or not for this device.
    """
    function = pick_backend(backend, device, next(model.parameters()).dtype)
    for _, layer in decoder_modules(model):
        if hasattr(layer, "s2_groups"):
            layer.s2_backend = function
            # Apart: `check_s2` replaces s2_backend to count the layers that call it.
            layer.s2_window_backend = function


def s2_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Layout | torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function registered as "s2".

    Training mode: S2 on full-attention layers; layers with a sliding window, or with chunks as Llama 4's, see what they
    always do, without a (T, T) mask. Evaluation mode, or with a key/value cache: the model's ordinary full attention.

    Args:
        module: the attention layer, given its groups by `set_group_size`.
        query: (B, H, T, D).
        key: (B, K, S, D), not repeated.
        value: (B, K, S, D').
        attention_mask: what `layout_mask` returned, or a ready-made (B, 1, T, T) mask of packed documents.
        dropout: probability of dropping an attention weight.
        scaling: factor on the scores.
        kwargs: the architecture's own; "sliding_window", "softcap" and "s_aux" (sinks) matter here.

    Returns:
        (B, T, H, D') and None.

    Raises:
        ModelError: the layer can't be computed exactly.
    """
    layout = attention_mask if isinstance(attention_mask, Layout) else None
    for name, what in _NOT_EXACT.items():
        if kwargs.get(name) is not None:  # torch's attention, which S2 and evaluation stand on, would leave it out
            raise ModelError(f"{type(module).__name__} has {what}, which S2 can't do exactly; set attention.kind=full")
    length = layout.shard.bounds[-1] if isinstance(layout, ShardLayout) else query.shape[2]
    window = _window(module, layout, kwargs, length)
    is_training = module.training and query.shape[2] == key.shape[2]
    if is_training and window is None:
        out = _by_groups(module, query, key, value, attention_mask, scaling, dropout)
        return out.contiguous(), None  # some architectures take a view of it
    is_whole = layout is not None and not isinstance(layout, SliceLayout)
    if is_training and window is not None and is_whole and hasattr(module, "s2_window_backend"):
        return _within(module, window, query, key, value, layout, scaling, dropout).contiguous(), None
    dense = layout.dense if layout else attention_mask
    assert not isinstance(dense, Layout)
    return sdpa_attention_forward(module, query, key, value, dense, dropout=dropout, scaling=scaling, **kwargs)


def _window(module: nn.Module, layout: Layout | None, arguments: dict[str, Any], length: int) -> int | None:
    """The window or chunk of a layer that sees less than the whole context, by its own argument or by the mask."""
    window = arguments.get("sliding_window") or (layout.window if layout else None)
    is_open = getattr(module, "s2_open_window", False) and window is not None and length <= window
    return None if is_open else window


def _by_groups(
    layer: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Layout | torch.Tensor | None,
    scaling: float | None,
    dropout: float,
) -> torch.Tensor:
    """S2, (B, T, H, D')."""
    if attention_mask is None:
        raise ModelError(
            f"{type(layer).__name__} does not ask transformers' mask registry for its mask, so S2 can't tell where "
            "documents lie; set attention.kind=full"
        )
    if not hasattr(layer, "s2_groups"):
        raise ModelError("no S2 group size; call lengthen.attention.set_group_size(model, tokens) before training")
    if isinstance(attention_mask, ShardLayout):
        return sharded_attention(layer.s2_backend, query, key, value, attention_mask, layer.s2_groups, scaling, dropout)
    documents = attention_mask.documents if isinstance(attention_mask, Layout) else documents_of_mask(attention_mask)
    return layer.s2_backend(query, key, value, documents, layer.s2_groups, scaling, dropout)


def _within(
    layer: Any, window: int, query: Any, key: Any, value: Any, layout: Any, scaling: float | None, dropout: float
) -> torch.Tensor:
    """Attention in a window or in chunks, (B, T, H, D')."""
    if layer.s2_chunks or query.shape[2] <= window:  # groups without any shifted; of documents this short, all of them
        groups = Groups(max(2, window), pattern=layer_patterns("plain")[0])
        return layer.s2_window_backend(query, key, value, layout.documents, groups, scaling, dropout)
    return window_attention(query, key, value, layout.documents, window, scaling, dropout)


def register() -> None:
    """Register "s2" with transformers. Doing it again changes nothing."""
    AttentionInterface.register("s2", s2_attention)
    AttentionMaskInterface.register("s2", layout_mask)
