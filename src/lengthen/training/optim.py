"""The optimizer and its learning rates."""

import math
from typing import Any

import torch
from torch import nn

from lengthen.errors import RecipeError, require
from lengthen.head import embedding_parameters
from lengthen.recipe import TrainingRecipe

__all__ = ["BETAS", "build_optimizer", "check_optimizer", "lr_multiplier", "page_states", "trained_parameters"]

BETAS = (0.9, 0.95)  # LongLoRA's; with 0.999, the large gradients of the first steps would hold back a short run


def check_optimizer(name: str, device: torch.device) -> None:
    """Refuse an optimizer that is not there.

    Args:
        name: of `training.optimizer`.
        device: of the run.

    Raises:
        RecipeError: bitsandbytes is missing, or pages are wanted without CUDA.
    """
    if name == "adamw":
        return
    require(f"training.optimizer={name}", "nf4", "bitsandbytes", error=RecipeError)
    if name.startswith("paged") and device.type != "cuda":
        raise RecipeError(
            f"training.optimizer={name} moves pages between CUDA and CPU memory, and the model is on {device.type}; "
            f"take {'adamw_8bit' if '8bit' in name else 'adamw'}"
        )


def trained_parameters(objective: nn.Module) -> dict[str, nn.Parameter]:
    """The trained parameters by name; a tied tensor once."""
    return {name: parameter for name, parameter in objective.named_parameters() if parameter.requires_grad}


def build_optimizer(objective: Any, training: TrainingRecipe, device: torch.device) -> torch.optim.Optimizer:
    """The recipe's AdamW over all trained tensors, the embeddings in a group of their own.

    Args:
        objective: a `CausalLMObjective`.
        training: the recipe's section.
        device: of the run; torch's AdamW is one fused kernel on CUDA.

    Returns:
        An optimizer whose groups hold their peak learning rates. Embeddings come last: the first group's rate is the
        one that is logged.
    """
    embeddings = embedding_parameters(objective.model)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in sorted(trained_parameters(objective).values(), key=lambda p: id(p) in embeddings):
        rate, decay = training.learning_rate, training.weight_decay
        if id(parameter) in embeddings:
            rate = training.embedding_learning_rate or rate
        if parameter.ndim < 2:  # norms and biases don't decay
            decay = 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    listed = [{"params": group, "lr": rate, "weight_decay": decay} for (rate, decay), group in groups.items()]
    if training.optimizer == "adamw":
        return torch.optim.AdamW(listed, betas=BETAS, fused=True if device.type == "cuda" else None)
    import bitsandbytes

    classes = {"adamw_8bit": "AdamW8bit", "paged_adamw_32bit": "PagedAdamW32bit", "paged_adamw_8bit": "PagedAdamW8bit"}
    return getattr(bitsandbytes.optim, classes[training.optimizer])(listed, betas=BETAS)


def page_states(optimizer: Any) -> None:
    """Put the loaded states of a paged optimizer into pages again; bitsandbytes itself moves them to the GPU, to stay.

    Args:
        optimizer: any, accelerate's wrapper included; others than paged ones are left alone.
    """
    optimizer = getattr(optimizer, "optimizer", optimizer)
    if not getattr(optimizer, "is_paged", False):
        return
    for parameter, states in optimizer.state.items():
        for name in ("state1", "state2"):
            if name in states:
                pages = optimizer.get_state_buffer(parameter, dtype=states[name].dtype)
                if parameter.is_cuda:
                    torch.cuda.synchronize()  # the kernel that fills the pages with zeros is not waited for
                states[name] = pages.copy_(states[name])


def lr_multiplier(schedule: str, step: int, steps: int, warmup: int) -> float:
    """Factor on the peak learning rate in a step.

    Unlike transformers' schedules this is never 0: no step is lost.

    Args:
        schedule: "constant", "linear" or "cosine", after the warm-up.
        step: from 1 to `steps`.
        steps: of the whole run.
        warmup: steps of linear warm-up; the last of them has the whole peak.
    """
    if step <= warmup:
        return step / warmup
    progress = (step - warmup) / (steps - warmup + 1)
    return {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}[schedule]
