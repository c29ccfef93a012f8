"""Several processes for one run: copies (DDP), shards of everything (FSDP2), or DeepSpeed's ZeRO.

FSDP2 is applied here and not by accelerate, whose plugin is ignored on CPU and rounds loss and gradients to 16 bits.
Each transformer layer is a unit, the rest (embeddings, last norm, head) the root's. Dtypes stay as they are, trained
float32 masters beside frozen 16-bit weights, so that a step computes what it computes in one process. DeepSpeed keeps
the masters in its optimizer and computes with 16-bit copies.
"""

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from lengthen.errors import ModelError, RecipeError, require
from lengthen.head import causal_lm
from lengthen.processes import has_launcher, process_count
from lengthen.recipe import Recipe

__all__ = [
    "check_parallel",
    "full_states",
    "full_tensors",
    "is_sharded",
    "shard",
    "shard_like",
    "share_head_weight",
    "unshard",
    "zero_config",
]

_BUCKET = 50_000_000
"""Elements of gradient that ZeRO reduces at a time; DeepSpeed's default, ten times that, takes 1 GB on each device."""


def check_parallel(recipe: Recipe, device: torch.device) -> None:
    """Refuse a `parallel` that can't be had here, before anything is loaded.

    Args:
        recipe: of the run.
        device: of the run.

    Raises:
        RecipeError: no launcher or a single process where shards are asked for, or a number of processes that can't
            share sequences; ZeRO without deepspeed or accelerator; the launcher has a sharding of its own.
    """
    kind, processes = recipe.parallel.data, process_count()
    is_zero = kind.startswith("zero")
    for variable, own in (("ACCELERATE_USE_FSDP", False), ("ACCELERATE_USE_DEEPSPEED", is_zero)):
        if os.environ.get(variable, "").lower() in ("1", "true") and not own:
            raise RecipeError(
                f"accelerate's config shards the model ({variable}), and the recipe says parallel={kind}; the recipe "
                "decides: set it there, and start with torchrun or `accelerate launch --multi_gpu`"
            )
    share = recipe.parallel.sequence
    if processes % share:
        raise RecipeError(
            f"parallel.sequence={share} wants a multiple of {share} processes, and there "
            f"{'is one' if processes == 1 else f'are {processes}'}; start so many with torchrun --nproc-per-node, or "
            "set another"
        )
    if kind == "ddp":
        return
    start = "torchrun --nproc-per-node N -m lengthen.cli train ..."
    if is_zero:
        require(f"parallel={kind}", "zero", "deepspeed", error=RecipeError)
    if is_zero and device.type == "cpu":
        raise RecipeError(f"parallel={kind} needs an accelerator, and there is only a CPU; set parallel=ddp or fsdp2")
    if processes == 1 and not kind.endswith("_offload"):
        raise RecipeError(
            f"parallel={kind} shards over processes, and there is one; start several ({start}) or set parallel=ddp"
        )
    if not has_launcher():
        raise RecipeError(f"parallel={kind} needs a launcher, for one process too: {start.replace('N', '1')}")


def zero_config(
    kind: str, batch_size: int, accumulation: int, max_grad_norm: float, dtype: torch.dtype
) -> dict[str, Any]:
    """DeepSpeed's config. The optimizer is ours; with offload, accelerate takes DeepSpeed's Adam for the CPU instead.

    Args:
        kind: `recipe.parallel.data`, one of the zero kinds.
        batch_size: sequences per device and forward pass.
        accumulation: forward passes per optimizer step.
        max_grad_norm: to which gradients are clipped.
        dtype: of the arithmetic.

    Source:
        https://www.deepspeed.ai/docs/config-json/
    """
    zero: dict[str, Any] = {"stage": int(kind[4]), "overlap_comm": True, "contiguous_gradients": True}
    zero |= {"reduce_bucket_size": _BUCKET}
    if kind.endswith("_offload"):
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if kind == "zero2" or kind == "zero2_offload":
        zero["allgather_bucket_size"] = _BUCKET
    if kind == "zero3_offload":
        zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    return {
        "zero_optimization": zero,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "fp16": {"enabled": dtype == torch.float16},
        "gradient_clipping": max_grad_norm,
        "gradient_accumulation_steps": accumulation,
        "train_micro_batch_size_per_gpu": batch_size,
        "train_batch_size": batch_size * accumulation * process_count(),
    }


def shard(objective: nn.Module, model: Any, device: torch.device) -> None:
    """Shard an objective's parameters over all processes, in place (FSDP2).

    Args:
        objective: the module that is called in training; its other parameters become the root unit.
        model: the causal language model (or PeftModel) inside it, in any memory.
        device: where the shards go.

    Raises:
        ModelError: the architecture does not say what its layers are.
    """
    names = set(getattr(causal_lm(model), "_no_split_modules", None) or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise ModelError(
            f"{type(causal_lm(model)).__name__} does not say what its layers are, so that fsdp2 can't shard them; "
            "set parallel=ddp"
        )
    mesh = torch.distributed.init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for layer in reversed(layers):  # inner ones first
        fully_shard(layer, mesh=mesh)
    fully_shard(objective, mesh=mesh)


def is_sharded(module: nn.Module) -> bool:
    """Whether `shard` was applied."""
    return isinstance(module, FSDPModule)


def share_head_weight(objective: Any) -> None:
    """Tell ZeRO-3, which frees each module's weights after its forward pass, that the loss needs the head's too.

    Args:
        objective: the `CausalLMObjective` that DeepSpeed has prepared; nothing happens under ZeRO-2.
    """
    head = causal_lm(objective.model).get_output_embeddings()
    for parameter in (head.weight, getattr(head, "bias", None)):
        if hasattr(parameter, "ds_id"):
            import deepspeed

            deepspeed.zero.register_external_parameter(objective, parameter)


def shard_like(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """A tensor that every process has whole, sharded as a parameter of its shape is; else as it is.

    Args:
        tensor: whole.
        parameter: sharded or not.
    """
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)


def full_tensors(parameters: Mapping[str, torch.Tensor], keep: bool) -> dict[str, torch.Tensor]:
    """Parameters as plain tensors; all processes must call this together.

    Args:
        parameters: sharded ones are gathered one at a time, to the CPU; others are taken as they are.
        keep: whether this process wants them; without, the result is empty.
    """
    whole = {}
    for name, parameter in parameters.items():
        tensor = _gathered(parameter)
        if keep:
            whole[name] = parameter.data if tensor is None else tensor.cpu()
    return whole


def _gathered(parameter: torch.Tensor) -> torch.Tensor | None:
    """The whole of a sharded parameter; None for one that is whole."""
    if isinstance(parameter, DTensor):
        return parameter.full_tensor().detach()
    if hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping"):
        # Under ZeRO the module holds a 16-bit copy, or nothing; the float32 master is the optimizer's.
        from deepspeed.utils import safe_get_full_fp32_param

        return safe_get_full_fp32_param(parameter)
    return None


def full_states(states: dict[str, Any], keep: bool) -> dict[str, Any]:
    """An optimizer's `state_dict` with plain tensors; all processes must call this together.

    Args:
        states: of an optimizer over sharded parameters.
        keep: whether this process wants them; without, the states are empty.
    """
    state = {key: full_tensors(tensors, keep) for key, tensors in states["state"].items()}
    return {**states, "state": state}


def unshard(model: Any, keep: bool) -> None:
    """Give a model its whole trained tensors back, to be saved and no longer trained; all processes together.

    Args:
        model: inside a sharded objective, or under ZeRO; any other stays as it is.
        keep: whether this process wants them.
    """
    unset_hf_deepspeed_config()  # transformers would shard what is loaded from here on under ZeRO-3, too
    whole: dict[nn.Parameter, nn.Parameter] = {}  # a tied tensor is gathered once and stays one
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.requires_grad and parameter not in whole:
                tensor = _gathered(parameter)
                whole[parameter] = nn.Parameter(tensor.cpu()) if tensor is not None and keep else parameter
            if whole.get(parameter, parameter) is not parameter:
                setattr(module, name, whole[parameter])
        if keep and is_sharded(module):
            # FSDPModule expects sharded parameters; behind it in the order of classes is the module's own.
            module.__class__ = type(module).__mro__[2]
