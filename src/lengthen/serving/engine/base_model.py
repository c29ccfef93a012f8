"""The base that all adapters share: what an adapter can change in it, and whether it can be served at all."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lengthen._compat import with_cache
from lengthen.adapters.build import has_tied_embeddings
from lengthen.adapters.load import BaseApart
from lengthen.adapters.targets import is_norm
from lengthen.context import base_context, is_length_dependent, positions
from lengthen.decoding.kv_cache import GrowingLayer
from lengthen.decoding.prefill import check_prefill, new_cache
from lengthen.errors import ContextError, ModelError
from lengthen.models.fingerprint import weight_hashes
from lengthen.models.load import load_config
from lengthen.models.resolve import ModelSource

__all__ = ["LoadedBase"]

# Different numbers, so that shapes tell sequences from tokens.
_PROBED_SEQUENCES, _PROBED_TOKENS = 2, 3


@dataclass(frozen=True)
class LoadedBase:
    """A base and the places where adapters change it.

    Attributes:
        model: a causal language model in evaluation mode.
        source: where its files are.
        hashes: `weight_hashes` of the model.
        context: tokens of prompt and answer together, at most.
        is_scaled: whether its positions are others than the base's own.
        groups: linear layers by name; those of a group are given the same input.
        linear: the same layers by name.
        norms: norms by name.
        embedding_scale: what the model multiplies its embeddings by; None where that is not all it does with them.
        ties: whether the head shares the embeddings' weight.
        key_value_shapes: (heads, size of keys, size of values) of each layer.
    """

    model: Any
    source: ModelSource
    hashes: dict[str, str | None]
    context: int
    is_scaled: bool
    groups: tuple[tuple[str, ...], ...]
    linear: dict[str, nn.Linear]
    norms: dict[str, nn.Module]
    embedding_scale: float | None
    ties: bool
    key_value_shapes: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, apart: BaseApart) -> "LoadedBase":
        """Examine a base.

        Raises:
            ContextError: its RoPE depends on the length of the input, which differs between the requests of a batch.
            ModelError: it has layers without ordinary keys and values, or is not computed the same way in chunks.
        """
        model = apart.model
        name = type(model).__name__
        if is_length_dependent(model.config):
            raise ContextError(
                f"the RoPE of this {name} changes with the length of its input, so requests of different lengths can't "
                "share a batch; scale its positions by another method"
            )
        cache = new_cache(model)
        if any(type(layer) is not GrowingLayer for layer in cache.layers):
            raise ModelError(
                f"{name} has layers that don't see everything before a token (a sliding window, or a state in place of "
                "keys and values), which the engine can't batch; use `lengthen generate`"
            )
        probe = _Probe(model)
        check_prefill(model, probe.ids_BT)
        own = positions(load_config(apart.source))
        return cls(
            model=model,
            source=apart.source,
            hashes=weight_hashes(model),
            context=base_context(model.config),
            is_scaled=positions(model.config) != own,
            groups=probe.groups,
            linear={name: model.get_submodule(name) for group in probe.groups for name in group},
            norms=probe.norms,
            embedding_scale=_embedding_scale(model),
            ties=has_tied_embeddings(model),
            key_value_shapes=probe.key_value_shapes,
        )

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of activations, keys and values."""
        return self.model.dtype

    @property
    def device(self) -> torch.device:
        """Where the base is."""
        return self.model.device

    @property
    def cache_bytes_per_token(self) -> int:
        """Bytes of keys and values of one token, all layers."""
        return sum(heads * (key + value) for heads, key, value in self.key_value_shapes) * self.dtype.itemsize


class _Probe:
    """One small forward pass that shows which layers share an input, and have the batch's rows in it."""

    @torch.inference_mode()
    def __init__(self, model: Any):
        vocabulary = model.get_input_embeddings().weight.shape[0]
        count = _PROBED_SEQUENCES * _PROBED_TOKENS
        ids = torch.arange(count, device=model.device) % vocabulary
        self.ids_BT = ids.view(_PROBED_SEQUENCES, _PROBED_TOKENS)
        self._inputs: dict[str, list[torch.Tensor]] = {}
        watched = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        norms = {name: module for name, module in model.named_modules() if is_norm(module)}
        hooks = [module.register_forward_pre_hook(self._watch(name)) for name, module in {**watched, **norms}.items()]
        cache = new_cache(model)
        try:
            model(input_ids=self.ids_BT, **with_cache(cache))
        finally:
            for hook in hooks:
                hook.remove()
        self.groups = self._groups(watched)
        self.norms = {name: module for name, module in norms.items() if self._has_rows(name, flat=False)}
        layers: list[Any] = cache.layers
        self.key_value_shapes = tuple(
            (layer.keys.shape[1], layer.keys.shape[-1], layer.values.shape[-1]) for layer in layers
        )

    def _watch(self, name: str) -> Any:
        def hook(_module: nn.Module, inputs: Any) -> None:
            if inputs:  # kept alive, so that no other tensor can get its identity
                self._inputs.setdefault(name, []).append(inputs[0])

        return hook

    def _has_rows(self, name: str, flat: bool) -> bool:
        """Whether the layer ran once, on all tokens in the batch's order."""
        seen = self._inputs.get(name, [])
        if len(seen) != 1:
            return False
        shape = tuple(seen[0].shape)
        if shape[:2] == (_PROBED_SEQUENCES, _PROBED_TOKENS):
            return True
        return flat and shape[:-1] == (_PROBED_SEQUENCES * _PROBED_TOKENS,)

    def _groups(self, linear: dict[str, nn.Linear]) -> tuple[tuple[str, ...], ...]:
        groups: dict[int, list[str]] = {}
        for name in linear:
            if self._has_rows(name, flat=True):
                groups.setdefault(id(self._inputs[name][0]), []).append(name)
        return tuple(tuple(group) for group in groups.values())


@torch.inference_mode()
def _embedding_scale(model: Any) -> float | None:
    embedding = model.get_input_embeddings()
    scale = float(getattr(embedding, "embed_scale", 1.0))
    ids = torch.arange(min(4, embedding.weight.shape[0]), device=embedding.weight.device)
    expected = embedding.weight[ids] * scale
    return scale if torch.allclose(embedding(ids), expected, rtol=1e-2, atol=1e-6) else None
