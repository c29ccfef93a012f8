"""Put what is trained over a base: LoRA + embeddings + norms as one PEFT adapter, another PEFT method, or everything.

Every trained tensor is a float32 master, whatever the base's dtype: in bfloat16, a norm weight near 1 moves in steps
of 2^-8, and at the papers' learning rate it never moves at all.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel, PeftType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from lengthen.adapters.targets import expert_parameters, is_norm, linear_targets, norm_modules, shortest_suffixes
from lengthen.errors import ModelError, RecipeError
from lengthen.head import embedding_parameters
from lengthen.quantization import count_weights
from lengthen.recipe import AdapterRecipe

__all__ = ["TrainableCount", "add_adapter", "count_trainable", "has_tied_embeddings", "quiet_peft_model"]


@dataclass(frozen=True)
class TrainableCount:
    """How many parameters a run trains, by kind; tied tensors count once."""

    adapter: int
    embeddings: int
    norms: int
    other: int
    total: int

    @property
    def trainable(self) -> int:
        """All trained parameters."""
        return self.adapter + self.embeddings + self.norms + self.other

    def __str__(self) -> str:
        kinds = {"adapter": self.adapter, "embeddings": self.embeddings, "norms": self.norms, "other": self.other}
        parts = ", ".join(f"{kind} {count:,}" for kind, count in kinds.items() if count)
        return f"{self.trainable:,} of {self.total:,} parameters ({self.trainable / self.total:.2%}): {parts}"


def has_tied_embeddings(model: Any) -> bool:
    """Whether the head shares its weight with the input embeddings."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def add_adapter(model: Any, recipe: AdapterRecipe, autocast: bool = False) -> Any:
    """Make exactly the recipe's tensors trainable, as float32 masters.

    Args:
        model: a base without adapters, in the dtype of the run.
        recipe: what to train.
        autocast: the model will only run under torch's autocast.

    Returns:
        A PeftModel; for kind "full" the model itself.

    Raises:
        RecipeError: an unknown PEFT method or option.
        ModelError: the base lacks the modules that the recipe names.
    """
    compute_dtype = model.dtype
    if recipe.kind == "full":
        model.requires_grad_(True)
    elif recipe.kind == "lora":
        model = _add_lora(model, recipe)
        if autocast and recipe.variant != "dora":
            _keep_input_dtype(model)
    else:
        model = _add_other(model, recipe)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    _cast_outputs(model, compute_dtype)
    return model


def _add_lora(model: Any, recipe: AdapterRecipe) -> PeftModel:
    experts = expert_parameters(model) if recipe.targets == "all" else []
    if experts and (recipe.dropout or recipe.variant not in ("lora", "rslora")):
        raise ModelError(
            f"{type(model).__name__} has experts, on which peft has LoRA only without dropout and variants; set "
            "adapter.dropout=0 and adapter.variant=lora, or name adapter.targets"
        )
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=recipe.rank,
        lora_alpha=recipe.alpha,  # type: ignore[arg-type]
        lora_dropout=recipe.dropout,
        target_modules=linear_targets(model, recipe.targets),
        target_parameters=experts or None,
        modules_to_save=_trained_whole(model, recipe) or None,
        ensure_weight_tying=recipe.embeddings and has_tied_embeddings(model),
        use_rslora=recipe.variant == "rslora",
        use_dora=recipe.variant == "dora",
        init_lora_weights="pissa" if recipe.variant == "pissa" else True,
    )
    return quiet_peft_model(model, config)


def _trained_whole(model: Any, recipe: AdapterRecipe) -> list[str]:
    """Names of the norms and embeddings that are trained themselves."""
    modules = dict(model.named_modules())
    chosen = norm_modules(model, recipe.norms == "with_qk") if recipe.norms else []
    if recipe.norms and not chosen:
        raise ModelError(f"{type(model).__name__} has no norms to train; set adapter.norms=false")
    if recipe.embeddings:
        embeddings = model.get_input_embeddings()
        chosen += [name for name, module in modules.items() if module is embeddings]
    return shortest_suffixes(chosen, list(modules))


def _keep_input_dtype(model: PeftModel) -> None:
    """Keep peft from casting what LoRA takes to the float32 of its matrices, which autocast would cast back.

    Loss and gradients are bit for bit the same (dropout only draws other elements). DoRA also multiplies the matrices
    on their own, in the input's dtype.
    """
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.cast_input_dtype_enabled = False  # type: ignore[assignment]


def quiet_peft_model(model: Any, config: Any) -> PeftModel:
    """`get_peft_model` without the warnings that say nothing here.

    Args:
        model: the base.
        config: of the PEFT method.
    """
    with warnings.catch_warnings():
        # peft warns about tied embeddings that it then ties.
        warnings.filterwarnings("ignore", message=".*tie.*")
        return get_peft_model(model, config)


def _add_other(model: Any, recipe: AdapterRecipe) -> PeftModel:
    kinds = {
        kind.value.lower(): PEFT_TYPE_TO_CONFIG_MAPPING[kind]
        for kind in PeftType
        if kind in PEFT_TYPE_TO_CONFIG_MAPPING
    }
    if recipe.kind not in kinds:
        raise RecipeError(
            f"adapter.kind: unknown {recipe.kind!r}; choose lora, full or one of peft's {', '.join(sorted(kinds))}"
        )
    try:
        model = quiet_peft_model(model, kinds[recipe.kind](task_type="CAUSAL_LM", **recipe.options))
    # peft checks little of what it is given: some wrong or missing options only fail where they are used.
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise RecipeError(
            f"adapter.options for {recipe.kind}: {error}; see the {kinds[recipe.kind].__name__} of peft"
        ) from error
    if not any(parameter.requires_grad and parameter.numel() for parameter in model.parameters()):
        raise RecipeError(f"adapter.kind {recipe.kind} with adapter.options {recipe.options} trains nothing")
    return model


def _cast_outputs(model: nn.Module, dtype: torch.dtype) -> None:
    """Keep the residual stream in the base's dtype where a float32 embedding or norm would promote it."""

    def cast(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        return output.to(dtype) if isinstance(output, torch.Tensor) else output

    for module in model.modules():
        own = list(module.parameters(recurse=False))
        is_promoting = isinstance(module, nn.Embedding) or is_norm(module)
        if is_promoting and any(parameter.requires_grad for parameter in own):
            module.register_forward_hook(cast)


def count_trainable(model: Any) -> TrainableCount:
    """Count the trained parameters by kind."""
    counts = {"adapter": 0, "embeddings": 0, "norms": 0, "other": 0}
    embeddings = embedding_parameters(model)
    norms = {id(p) for module in model.modules() if is_norm(module) for p in module.parameters()}
    total = 0
    for name, parameter in model.named_parameters():
        if "original_module" not in name:  # the base's copy of a tensor that the adapter replaces
            total += count_weights(parameter)
        if not parameter.requires_grad:
            continue
        if id(parameter) in norms:
            kind = "norms"
        elif id(parameter) in embeddings and "lora_" not in name:
            kind = "embeddings"
        else:
            kind = "adapter" if isinstance(model, PeftModel) else "other"
        counts[kind] += parameter.numel()
    return TrainableCount(**counts, total=total)
