"""The base's positions inside a model with scaled ones: rotary embeddings are what scaling changes.

So a model with its adapter off and its base's rotary embeddings is its base, without a second copy of the weights.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from lengthen.head import causal_lm, decoder_modules
from lengthen.models.load import empty_model

__all__ = ["BasePositions", "only_rotation_differs"]

_POSITIONS = ("rope_parameters", "max_position_embeddings", "original_max_position_embeddings")
"""All that a config says about positions."""


class BasePositions:
    """A model's rotary embeddings, and those that its base had.

    Args:
        model: with scaled positions, from whose config and its base's only the rotation differs.
        base_config: of the base.
    """

    def __init__(self, model: Any, base_config: PreTrainedConfig):
        inner, base = causal_lm(model), base_config.get_text_config()
        self._config = inner.config.get_text_config()
        self._stated = {key: getattr(base, key, None) for key in _POSITIONS}
        self._places: list[tuple[nn.Module, str, nn.Module]] = []
        modules = dict(empty_model(base_config).named_modules())
        for path, module in list(decoder_modules(inner)):
            if _rotates(module):
                parent, _, name = path.rpartition(".")
                # Layers may have rotary embeddings with configs of their own, such as Granite's with a theta each.
                own = type(module)(config=copy.deepcopy(getattr(modules.get(path), "config", base)))
                self._places.append((inner.get_submodule(parent), name, own.to(inner.device)))

    @contextmanager
    def used(self) -> Iterator[None]:
        """Let the model rotate, and its config say, what its base does."""
        scaled = [getattr(parent, name) for parent, name, _ in self._places]
        stated = {key: getattr(self._config, key, None) for key in _POSITIONS}
        try:
            self._state(self._stated)
            for (parent, name, base), module in zip(self._places, scaled, strict=True):
                setattr(parent, name, base.to(next(module.buffers()).device))
            yield
        finally:
            self._state(stated)
            for (parent, name, _), module in zip(self._places, scaled, strict=True):
                setattr(parent, name, module)

    def _state(self, positions: dict[str, Any]) -> None:
        for key, value in positions.items():
            setattr(self._config, key, copy.deepcopy(value))


def only_rotation_differs(config: PreTrainedConfig, base_config: PreTrainedConfig) -> bool:
    """Whether rotary embeddings are all that differs between two models built from these configs.

    Some attentions take a scale of their scores from the positions' factor, and some rotate without a module that can
    be made from a config.

    Args:
        config: of the model with scaled positions.
        base_config: of its base.
    """
    model, base = (dict(empty_model(each).named_modules()) for each in (config, base_config))
    if model.keys() != base.keys():
        return False
    fixed = [name for name, module in model.items() if not _rotates(module)]
    return all(_numbers(model[name]) == _numbers(base[name]) and not _frequencies(model[name]) for name in fixed)


def _rotates(module: nn.Module) -> bool:
    return _frequencies(module) and hasattr(module, "config")


def _frequencies(module: nn.Module) -> bool:
    return any(name.endswith("inv_freq") for name, _ in module.named_buffers(recurse=False))


def _numbers(module: nn.Module) -> dict[str, float]:
    """What a module computes with, beside its tensors."""
    return {key: value for key, value in vars(module).items() if isinstance(value, int | float)}
