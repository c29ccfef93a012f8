"""Decoder layers that are computed chunk by chunk along the sequence, in the forward and in the backward pass.

What S2 lets a token see is near, so a layer's working set need not be that of the whole sequence: norms, projections,
attention and MLP run over one slice (attention/halo.py) at a time. For the backward pass a layer keeps its input and
nothing else, as with activation checkpointing; each slice is computed again, and its gradients are added up. Loss and
gradients stay what they are.

Shape suffixes: B sequences, T tokens, S tokens of a slice, E hidden size.
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import get_device_states, set_device_states

from lengthen.attention.halo import Slice, slices
from lengthen.attention.layout import Layout, SliceLayout
from lengthen.errors import ModelError
from lengthen.head import decoder_modules, hidden_states

__all__ = ["chunk_layers"]

_PROBE_GROUP, _PROBE_CHUNK, _PROBE_TOKENS = 8, 16, 44


def chunk_layers(model: Any, tokens: int) -> None:
    """Let every decoder layer compute `tokens` tokens at a time while training.

    A few tokens are run with and without, so that an architecture with layers that can't be cut is refused here.

    Args:
        model: a transformers model with attention "s2", its groups set, without adapters.
        tokens: of a chunk, best a multiple of the group size: the least has to be computed twice then.

    Raises:
        ModelError: layers that are not made of S2 and of what looks at each token alone.
    """
    layers = _decoder_layers(model)
    forwards = [layer.forward for layer, _ in layers]
    with _probing(model, [attention for _, attention in layers]):
        ids = torch.arange(_PROBE_TOKENS)[None] % 7 + 1
        whole, again = hidden_states(model, ids), hidden_states(model, ids)
        with torch.enable_grad():
            _wrap(layers, forwards, _PROBE_CHUNK)
            chunked = hidden_states(model, ids)
    # Not exactly equal: experts compute in groups whose sizes depend on all tokens. With dropout, nothing is.
    tolerance = (1e-4 if whole.dtype == torch.float32 else 2e-2) * whole.abs().max()
    if (whole - again).abs().max() <= tolerance < (whole - chunked).abs().max():
        raise ModelError(
            f"{type(model).__name__} has layers that see more than S2's groups and can't be computed by chunks; set "
            "memory.sequence_chunk=0"
        )
    _wrap(layers, forwards, tokens)


def _decoder_layers(model: Any) -> list[tuple[Any, Any]]:
    """Each layer and its attention."""
    modules = [module for _, module in decoder_modules(model)]
    layers = [(layer, child) for layer in modules for child in layer.children() if hasattr(child, "s2_groups")]
    found = {id(layer) for layer, _ in layers}
    for stack in modules:
        inside = [id(layer) in found for layer in stack] if isinstance(stack, nn.ModuleList) else []
        if any(inside) and not all(inside):
            raise ModelError(
                f"{type(model).__name__} has layers without attention, which can't be computed by chunks; set "
                "memory.sequence_chunk=0"
            )
    return layers


@contextmanager
def _probing(model: Any, attentions: list[Any]) -> Iterator[None]:
    """Small groups in training mode, without gradients."""
    groups, was_training = [attention.s2_groups for attention in attentions], model.training
    try:
        for attention in attentions:
            sinks = min(attention.s2_groups.sinks, _PROBE_GROUP // 2)
            attention.s2_groups = dataclasses.replace(attention.s2_groups, size=_PROBE_GROUP, sinks=sinks)
        model.train()
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
        for attention, own in zip(attentions, groups, strict=True):
            attention.s2_groups = own


def _wrap(layers: list[tuple[Any, Any]], forwards: list[Callable[..., Any]], tokens: int) -> None:
    for (layer, attention), forward in zip(layers, forwards, strict=True):
        layer.forward = _chunked(forward, layer, attention, tokens)


def _chunked(forward: Callable[..., Any], layer: Any, attention: Any, tokens: int) -> Callable[..., Any]:
    def chunked(hidden_states: torch.Tensor, *more: Any, **options: Any) -> torch.Tensor:
        if not (torch.is_grad_enabled() and layer.training):
            return forward(hidden_states, *more, **options)
        layout = next((each for each in (*more, *options.values()) if isinstance(each, Layout)), None)
        if layout is None:
            raise ModelError(
                f"{type(layer).__name__} is not told where documents lie, which chunks need; set "
                "memory.sequence_chunk=0"
            )
        parts = slices(layout.documents, attention.s2_groups, hidden_states.shape[1], tokens)
        work = _Work(forward, layer, parts, more, options, hidden_states)
        return _ByChunks.apply(work, hidden_states, *work.parameters())

    return chunked


class _Work:
    """One call of a layer: how each of its slices is computed, now and again in the backward pass."""

    def __init__(
        self,
        forward: Callable[..., Any],
        layer: nn.Module,
        parts: list[Slice],
        more: tuple[Any, ...],
        options: dict[str, Any],
        hidden_BTE: torch.Tensor,
    ):
        self.parts = parts
        self._forward, self._layer, self._arguments = forward, layer, (more, options)
        self._batch, self._length = hidden_BTE.shape[:2]
        self._device = hidden_BTE.device.type
        self._dtype = torch.get_autocast_dtype(self._device) if torch.is_autocast_enabled(self._device) else None
        # Dropout draws the same again, as the slices come in the same order.
        self._random = torch.get_rng_state(), get_device_states(hidden_BTE)

    def parameters(self) -> list[nn.Parameter]:
        """What is trained in the layer. Under FSDP2 these are whole tensors while the layer is at work."""
        return [parameter for parameter in self._layer.parameters() if parameter.requires_grad]

    def run(self, part: Slice, slice_BSE: torch.Tensor) -> torch.Tensor:
        """The layer's outputs for the chunk of a slice."""
        more, options = self._sliced("", self._arguments, part)
        out_BSE = self._forward(slice_BSE, *more, **options)
        if not isinstance(out_BSE, torch.Tensor):
            raise ModelError(
                f"{type(self._layer).__name__} returns more than hidden states; set memory.sequence_chunk=0"
            )
        return out_BSE[:, part.start - part.stop :]

    def _sliced(self, name: str, value: Any, part: Slice) -> Any:
        if isinstance(value, Layout):
            return SliceLayout(part.documents, value.window)
        if isinstance(value, tuple | list):
            return type(value)(self._sliced(name, each, part) for each in value)
        if isinstance(value, dict):
            return {key: self._sliced(key, each, part) for key, each in value.items()}
        if not isinstance(value, torch.Tensor) or self._length not in value.shape:
            return value
        if value.requires_grad or value.shape[0] not in (1, self._batch) or value.shape[1:2] != (self._length,):
            raise ModelError(
                f"{type(self._layer).__name__} takes {name or 'a tensor'} of shape {tuple(value.shape)}, which can't "
                "be cut into chunks; set memory.sequence_chunk=0"
            )
        return part.take(value)

    def autocast(self, cache: bool) -> AbstractContextManager[Any]:
        """As it was when the layer was called. A cached cast of a weight would lack its gradient later on."""
        return torch.autocast(self._device, self._dtype, self._dtype is not None, cache_enabled=cache)

    @contextmanager
    def same_randomness(self) -> Iterator[None]:
        """Random numbers as when the layer was called."""
        state, (devices, device_states) = self._random
        with torch.random.fork_rng(devices=devices, device_type=self._device if devices else "cuda"):
            torch.set_rng_state(state)
            set_device_states(devices, device_states, device_type=self._device)
            yield


class _ByChunks(torch.autograd.Function):
    """A layer by slices. The parameters are inputs, so that each gets one gradient, which wrappers such as DDP see."""

    @staticmethod
    def forward(ctx: Any, work: _Work, hidden_BTE: torch.Tensor, *_parameters: nn.Parameter) -> torch.Tensor:
        ctx.work = work
        ctx.save_for_backward(hidden_BTE)
        out_BTE: torch.Tensor | None = None
        with work.autocast(cache=False):
            for part in work.parts:
                chunk_BSE = work.run(part, part.take(hidden_BTE))
                if out_BTE is None:
                    out_BTE = torch.empty_like(hidden_BTE, dtype=chunk_BSE.dtype)
                out_BTE[:, part.start : part.stop] = chunk_BSE
        assert out_BTE is not None
        return out_BTE

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (grad_BTE,), (hidden_BTE,), work = grads, ctx.saved_tensors, ctx.work
        parameters = work.parameters()
        grad_hidden_BTE = torch.zeros_like(hidden_BTE) if ctx.needs_input_grad[1] else None
        sums: list[torch.Tensor | None] = [None] * len(parameters)
        with work.same_randomness(), torch.enable_grad():
            for part in work.parts:
                slice_BSE = part.take(hidden_BTE).detach().requires_grad_()
                with work.autocast(cache=True):
                    chunk_BSE = work.run(part, slice_BSE)
                wanted = [*parameters] if grad_hidden_BTE is None else [slice_BSE, *parameters]
                found = torch.autograd.grad(chunk_BSE, wanted, grad_BTE[:, part.start : part.stop], allow_unused=True)
                with torch.no_grad():
                    if grad_hidden_BTE is not None:
                        part.add(found[0], grad_hidden_BTE)
                    for index, grad in enumerate(found[len(found) - len(parameters) :]):
                        own = sums[index]
                        if grad is not None:
                            sums[index] = grad if own is None else own + grad
                del chunk_BSE, found
        return None, grad_hidden_BTE, *sums
