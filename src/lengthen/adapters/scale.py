"""An adapter in part: from the base's weights (0) to the adapter's own (1)."""

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn

from lengthen.errors import ModelError

__all__ = ["between", "check_scale", "scale_adapter"]


def check_scale(scale: float) -> None:
    """Refuse a share of an adapter below 0 or above 1.

    Raises:
        ModelError: not from 0 to 1.
    """
    if not 0 <= scale <= 1:
        raise ModelError(f"adapter_scale is {scale:g}; it has to be from 0 (the base's weights) to 1 (the adapter's)")


def between(base: torch.Tensor, own: torch.Tensor, scale: float) -> torch.Tensor:
    """Interpolate two weights in float32: exactly the base's at 0, exactly the adapter's at 1.

    Args:
        base: a tensor of the base.
        own: the trained one in its place.
        scale: the share of the difference that is applied, 0 to 1.
    """
    return torch.lerp(base.detach().float(), own.detach().float().to(base.device), scale)


def scale_adapter(model: PeftModel, scale: float, folder: Path) -> None:
    """Apply only a share of an adapter, in place: a weight average of the run and its base, at no cost.

    LoRA's products are multiplied; trained embeddings and norms move from the base's values to their own. Positions
    stay the adapter's.

    Args:
        model: with the adapter, freshly loaded.
        scale: 0 to 1.
        folder: of the adapter, for messages.

    Raises:
        ModelError: the scale is out of range, or what the adapter does is no sum with the base's weights.
    """
    check_scale(scale)
    if scale == 1:
        return
    config = model.active_peft_config
    problem = _problem(config)
    if problem:
        raise ModelError(f"the adapter {folder} can't be scaled: {problem}; leave adapter_scale out")
    done: set[int] = set()
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.scaling = {name: value * scale for name, value in module.scaling.items()}
        elif isinstance(module, ModulesToSaveWrapper):
            for own in module.modules_to_save.values():
                _move(module.original_module, own, scale, done)


def _problem(config: object) -> str | None:
    if not isinstance(config, LoraConfig):
        return "it is not LoRA"
    found = {
        "DoRA also trains the length of each row": config.use_dora,
        "it trains biases": config.bias != "none",
        "it trains single tokens": config.trainable_token_indices,
    }
    return next((problem for problem, holds in found.items() if holds), None)


def _move(base: nn.Module, own: nn.Module, scale: float, done: set[int]) -> None:
    """Tied weights are one tensor in two modules, which moves once."""
    for name, parameter in own.named_parameters():
        if id(parameter) not in done:
            done.add(id(parameter))
            moved = between(base.get_parameter(name), parameter, scale)
            # The base's own dtype at 0, so that it computes exactly as the base.
            parameter.data = moved.to(base.get_parameter(name).dtype if scale == 0 else parameter.dtype)
