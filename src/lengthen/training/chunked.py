"""Decoder layers that are computed chunk by chunk along the sequence, in the forward and in the backward pass.

What S2 lets a token see is near, so a layer's working set need not be that of the whole sequence: norms, projections,
attention and MLP run over one slice (attention/halo.py) at a time; MLPs only over its chunk. For the backward pass a
layer keeps its input and nothing else, as with activation checkpointing; each slice is computed again, and its
gradients are added up. With `every` = 2, every second layer keeps its input, and the other's is computed from that once
more. Loss and gradients stay what they are.

Shape suffixes: B sequences, T tokens, S tokens of a slice, E hidden size.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad
from torch.utils.checkpoint import get_device_states, set_device_states

from lengthen.adapters.targets import is_norm
from lengthen.attention.halo import SinkSums, Slice, add_sinks, slices
from lengthen.attention.layout import Layout, SliceLayout
from lengthen.errors import ModelError
from lengthen.head import decoder_modules, hidden_states
from lengthen.training.memory import mlps_of

__all__ = ["check_layers", "chunk_layers"]

_PROBE_GROUP, _PROBE_CHUNK, _PROBE_TOKENS = 8, 16, 44


def chunk_layers(model: Any, tokens: int, every: int = 1) -> None:
    """Let every decoder layer compute `tokens` tokens at a time while training.

    Args:
        model: a transformers model with attention "s2", its groups set, without adapters.
        tokens: of a chunk, best a multiple of the group size: the least has to be computed twice then.
        every: of so many layers one keeps its input.

    Raises:
        ModelError: layers that can't be cut (`check_layers`).
    """
    check_layers(model, "memory.sequence_chunk=0")
    layers = _decoder_layers(model, "")
    _wrap(layers, tokens, every)
    for mlp in mlps_of(model):
        mlp.forward = _behind_halo(mlp.forward)
    for norm in _norms_between(model, layers):
        # Not a closure: an adapter that trains the norm copies it, and its forward has to be the copy's.
        norm.forward = partial(_norm_by_chunks, norm.forward, norm, tokens)


def check_layers(model: Any, otherwise: str) -> None:
    """Refuse architectures whose layers can't be computed by parts of a sequence, after running a few tokens so.

    Args:
        model: a transformers model with attention "s2", its groups set, without adapters.
        otherwise: the setting to take then.

    Raises:
        ModelError: layers that are not made of S2 and of what looks at each token alone.
    """
    layers = _decoder_layers(model, otherwise)
    changed = [layer for layer, _ in layers] + mlps_of(model)
    own = [vars(module).get("forward") for module in changed]
    with _probing(model, [attention for _, attention in layers]):
        ids = torch.arange(_PROBE_TOKENS, device=model.device)[None] % 7 + 1
        whole, again = hidden_states(model, ids), hidden_states(model, ids)
        try:
            with torch.enable_grad():
                _wrap(layers, _PROBE_CHUNK)
                for mlp in mlps_of(model):
                    mlp.forward = _behind_halo(mlp.forward)
                chunked = hidden_states(model, ids)
        finally:
            # The class's own is not put on the module: FSDP2 gives it another class, whose forward recomputes.
            for module, forward in zip(changed, own, strict=True):
                vars(module).pop("forward", None)
                if forward is not None:
                    module.forward = forward
    # Not exactly equal: experts compute in groups whose sizes depend on all tokens. With dropout, nothing is.
    tolerance = (1e-4 if whole.dtype == torch.float32 else 2e-2) * whole.abs().max()
    if (whole - again).abs().max() <= tolerance < (whole - chunked).abs().max():
        raise ModelError(
            f"{type(model).__name__} has layers that see more than S2's groups and can't be computed by parts of a "
            f"sequence; set {otherwise}"
        )


def _decoder_layers(model: Any, otherwise: str) -> list[tuple[Any, Any]]:
    """Each layer and its attention."""
    modules = [module for _, module in decoder_modules(model)]
    layers = [(layer, child) for layer in modules for child in layer.children() if hasattr(child, "s2_groups")]
    found = {id(layer) for layer, _ in layers}
    for stack in modules:
        inside = [id(layer) in found for layer in stack] if isinstance(stack, nn.ModuleList) else []
        if any(inside) and not all(inside):
            raise ModelError(
                f"{type(model).__name__} has layers without attention, which can't be computed by parts of a sequence; "
                f"set {otherwise}"
            )
    return layers


def _norms_between(model: Any, layers: list[tuple[Any, Any]]) -> list[Any]:
    """The norms before and behind the layers: one keeps its input in float32, of all tokens, where it isn't cut."""
    inside = {id(part) for layer, _ in layers for part in layer.modules()}
    return [module for _, module in decoder_modules(model) if is_norm(module) and id(module) not in inside]


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


def _wrap(layers: list[tuple[Any, Any]], tokens: int, every: int = 1) -> None:
    for layer, attention in layers:
        layer.forward = _chunked(layer.forward, layer, attention, tokens, every)


_HALO: ContextVar[int] = ContextVar("halo", default=0)
"""Tokens before the chunk in the slice that is being computed."""


def _behind_halo(forward: Callable[..., Any]) -> Callable[..., Any]:
    """An MLP that leaves out the tokens before a chunk, of which only keys and values are wanted."""

    def behind(*given: Any, **options: Any) -> Any:
        before = _HALO.get()
        if not before or not given or given[0].ndim != 3:
            return forward(*given, **options)
        out_BSE = forward(given[0][:, before:].contiguous(), *given[1:], **options)  # some take a view of it
        if not isinstance(out_BSE, torch.Tensor):
            raise ModelError("an MLP returns more than hidden states; set memory.sequence_chunk=0")
        return pad(out_BSE, (0, 0, before, 0))

    return behind


def _chunked(forward: Callable[..., Any], layer: Any, attention: Any, tokens: int, every: int) -> Callable[..., Any]:
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
        before = hidden_states.grad_fn
        # Where this is not the layer before, or that one's turn is over, the input is kept.
        can_recompute = isinstance(before, _ByChunks._backward_cls) and before.work.since + 1 < every
        work = _Work(forward, layer, parts, more, options, hidden_states, before if can_recompute else None)
        return _ByChunks.apply(work, hidden_states, *work.parameters())

    return chunked


def _norm_by_chunks(
    forward: Callable[..., Any], norm: nn.Module, tokens: int, hidden_states: torch.Tensor
) -> torch.Tensor:
    if not (torch.is_grad_enabled() and norm.training) or hidden_states.ndim != 3:
        return forward(hidden_states)
    length = hidden_states.shape[1]
    parts = [Slice(start, start, min(start + tokens, length), 0, (), ()) for start in range(0, length, tokens)]
    work = _Work(forward, norm, parts, (), {}, hidden_states)
    return _ByChunks.apply(work, hidden_states, *work.parameters())


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
        before: Any = None,
    ):
        self.parts = parts
        # The call of the layer before, from whose input this one's is computed again; None where it is kept.
        self._before = before
        self.since: int = before.work.since + 1 if before is not None else 0
        self._forward, self._layer, self._arguments = forward, layer, (more, options)
        self._batch, self._length = hidden_BTE.shape[:2]
        self._device = hidden_BTE.device.type
        self._dtype = torch.get_autocast_dtype(self._device) if torch.is_autocast_enabled(self._device) else None
        # Dropout draws the same again, as the slices come in the same order.
        self._random = torch.get_rng_state(), get_device_states(hidden_BTE)

    def parameters(self) -> list[nn.Parameter]:
        """The layer's trained parameters. Under FSDP2 these are whole tensors while the layer is at work."""
        return [parameter for parameter in self._layer.parameters() if parameter.requires_grad]

    def run(self, part: Slice, slice_BSE: torch.Tensor) -> torch.Tensor:
        """The layer's outputs for the chunk of a slice."""
        more, options = self._sliced("", self._arguments, part)
        halo = _HALO.set(slice_BSE.shape[1] - (part.stop - part.start))
        try:
            out_BSE = self._forward(slice_BSE, *more, **options)
        finally:
            _HALO.reset(halo)
        if not isinstance(out_BSE, torch.Tensor):
            raise ModelError(
                f"{type(self._layer).__name__} returns more than hidden states; set memory.sequence_chunk=0"
            )
        return out_BSE[:, part.start - part.stop :]

    def run_all(self, hidden_BTE: torch.Tensor) -> torch.Tensor:
        """The layer's outputs, without gradients."""
        out_BTE: torch.Tensor | None = None
        with torch.no_grad(), self.autocast(cache=False):
            for part in self.parts:
                chunk_BSE = self.run(part, part.take(hidden_BTE))
                if out_BTE is None:
                    out_BTE = torch.empty_like(hidden_BTE, dtype=chunk_BSE.dtype)
                out_BTE[:, part.start : part.stop] = chunk_BSE
        assert out_BTE is not None
        return out_BTE

    def kept(self, hidden_BTE: torch.Tensor) -> list[torch.Tensor]:
        """The tensors to save, from which the backward pass has the layer's input again."""
        return [] if self._before is not None else [hidden_BTE]

    def input_again(self, kept: Sequence[torch.Tensor]) -> torch.Tensor:
        """The layer's input again, from the saved tensors."""
        if self._before is None:
            return kept[0]
        before = self._before.work
        hidden_BTE = before.input_again(self._before.saved_tensors)
        with before.same_randomness():
            return before.run_all(hidden_BTE)

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
        """Autocast as it was when the layer was called. A cached cast of a weight would lack its gradient later on."""
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
        ctx.save_for_backward(*work.kept(hidden_BTE))
        return work.run_all(hidden_BTE)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (grad_BTE,), work = grads, ctx.work
        hidden_BTE = work.input_again(ctx.saved_tensors)
        parameters = work.parameters()
        grad_hidden_BTE = torch.zeros_like(hidden_BTE) if ctx.needs_input_grad[1] else None
        sinks: SinkSums = {}
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
                        part.add(found[0], grad_hidden_BTE, sinks)
                    for index, grad in enumerate(found[len(found) - len(parameters) :]):
                        own = sums[index]
                        if grad is not None:
                            sums[index] = grad if own is None else own + grad
                del chunk_BSE, found
        if grad_hidden_BTE is not None:
            add_sinks(sinks, grad_hidden_BTE)
        return None, grad_hidden_BTE, *sums
