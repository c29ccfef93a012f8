"""4-bit bases (QLoRA, arXiv 2305.14314): NF4 weights with doubly quantized constants, through bitsandbytes.

The linear layers are quantized, except the head; embeddings, norms, biases and the head stay as they are, and so do
layers whose sizes bitsandbytes' kernels don't take. A quantized base is frozen; LoRA learns over it.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lengthen.errors import ModelError, require

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedModel

__all__ = [
    "check_nf4",
    "check_not_quantized",
    "compute_dtype",
    "count_quantized",
    "count_weights",
    "dequantize",
    "is_packed",
    "is_quantized",
    "nf4_config",
    "prepare_for_training",
    "quantizable",
    "quantize",
]

# Shapes that the kernels need: rows of whole blocks of 64, and rows in multiples of 32.
_IN, _OUT = 64, 32


def check_nf4(config: Any, device: torch.device) -> None:
    """Refuse what can't be loaded in 4 bits, before anything is.

    Args:
        config: the base's.
        device: where it is to be.

    Raises:
        ModelError: bitsandbytes is missing or has nothing for the device, or the base is quantized already.
    """
    check_not_quantized(config)
    require("quantize=nf4", "nf4", "bitsandbytes", error=ModelError)
    import bitsandbytes

    supported = getattr(bitsandbytes, "supported_torch_devices", {"cpu", "cuda"})
    if device.type not in supported:
        raise ModelError(
            f"bitsandbytes has no 4-bit kernels for {device.type} (only {', '.join(sorted(supported))}); leave "
            "quantize out"
        )


def check_not_quantized(config: Any) -> None:
    """Refuse a base that is published in quantized weights, for all that has to write weights in the end.

    What is trained over such weights could not be merged into them without changing them once more, and the 16-bit
    weights they were made from are not in them.

    Args:
        config: the base's.

    Raises:
        ModelError: its weights are quantized.
    """
    method = getattr(config, "quantization_config", None)
    if method is not None:
        name = method.get("quant_method") if isinstance(method, dict) else getattr(method, "quant_method", None)
        name = getattr(name, "value", name)
        raise ModelError(
            f"the base is published in quantized weights ({name}), over which nothing can be trained and exported; "
            "give the 16-bit base that they were made from, with quantize=nf4 for 4 bits"
        )


def quantizable(model: "PreTrainedModel") -> tuple[list[str], list[str]]:
    """Names of the linear layers that NF4 takes, and of those that it leaves in 16 bits.

    Args:
        model: a causal language model; its tensors may be on the meta device.
    """
    head = model.get_output_embeddings()
    taken: list[str] = []
    left: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            fits = module.in_features % _IN == 0 and module.out_features % _OUT == 0
            (taken if fits and module is not head else left).append(name)
    return taken, left


def nf4_config(model: "PreTrainedModel", dtype: torch.dtype) -> "BitsAndBytesConfig":
    """The arguments of `from_pretrained` that load the weights of a model in 4 bits.

    Args:
        model: the same model without weights (on the meta device).
        dtype: of the matrix products.
    """
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=quantizable(model)[1],
    )


def quantize(model: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """Quantize a loaded model in place, as `from_pretrained` with `nf4_config` does while it loads.

    For weights that come from a GGUF file, which `from_pretrained` can't dequantize and quantize in one go.

    Args:
        model: with ordinary weights.
        dtype: of the matrix products.
        device: where the 4-bit layers go.
    """
    from bitsandbytes.nn import Linear4bit, Params4bit

    for name in quantizable(model)[0]:
        linear: Any = model.get_submodule(name)
        packed = Linear4bit(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            compute_dtype=dtype,
            quant_type="nf4",
            device="meta",
        )
        weight: Any = Params4bit(linear.weight.detach(), quant_type="nf4", compress_statistics=True, module=packed)
        packed.weight = weight.to(device)
        packed.bias = linear.bias
        packed.train(linear.training)
        model.set_submodule(name, packed)
    model.is_loaded_in_4bit = True  # peft asks for it
    return model


def dequantize(model: Any) -> Any:
    """Turn the 4-bit layers into ordinary ones with exactly the weights that they compute with, in place."""
    from bitsandbytes.functional import dequantize_4bit

    for name, packed in list(_packed_layers(model)):
        weight = dequantize_4bit(packed.weight.data, packed.weight.quant_state)
        linear = nn.Linear(packed.in_features, packed.out_features, bias=packed.bias is not None, device="meta")
        linear.weight = nn.Parameter(weight.to(packed.compute_dtype), requires_grad=False)
        linear.bias = packed.bias
        linear.train(packed.training)
        model.set_submodule(name, linear)
    model.is_loaded_in_4bit = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    for attribute in ("hf_quantizer", "quantization_method", "is_quantized"):
        if hasattr(model, attribute):
            delattr(model, attribute)
    return model


def prepare_for_training(model: nn.Module) -> None:
    """Make the 4-bit layers train after an evaluation as they did before it.

    On CPUs with AVX512-BF16, bitsandbytes repacks the weights in the first evaluation, for a path without gradients
    that training then takes too: the loss rises. This turns that path off.
    """
    for _, packed in _packed_layers(model):
        packed.support_avx512bf16_for_cpu = False


def count_quantized(model: "PreTrainedModel") -> str:
    """How many linear layers and weights are in 4 bits, for people."""
    packed = [module for _, module in _packed_layers(model)]
    linear = sum(isinstance(module, nn.Linear) for module in model.modules())
    weights = sum(count_weights(module.weight) for module in packed)
    total = sum(map(count_weights, model.parameters()))
    return f"{len(packed)} of {linear} linear layers, {weights / total:.0%} of the weights"


def compute_dtype(model: nn.Module) -> torch.dtype:
    """The dtype in which the 4-bit layers of a model compute."""
    dtypes: Iterator[torch.dtype] = (
        packed.compute_dtype for _, packed in _packed_layers(model) if hasattr(packed, "compute_dtype")
    )
    return next(dtypes)  # peft's layers around them show their weights, and not this


def is_packed(tensor: object) -> bool:
    """Whether a parameter holds 4-bit weights."""
    # By its class's name: bitsandbytes need not be installed for models that don't use it.
    return type(tensor).__name__ == "Params4bit"


def count_weights(parameter: torch.Tensor) -> int:
    """How many weights a parameter holds; in 4 bits two share a byte."""
    return parameter.numel() * (2 if is_packed(parameter) else 1)


def is_quantized(model: nn.Module) -> bool:
    """Whether any linear layer holds 4-bit weights."""
    return next(_packed_layers(model), None) is not None


def _packed_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if is_packed(getattr(module, "weight", None)):
            yield name, module
