"""The files of adapter folders as LongLoRA and LongQLoRA published them."""

from pathlib import Path

import torch
from peft import LoraConfig

from lengthen.adapters.weights import plain_name, read_tensors, weights_file
from lengthen.errors import ModelError, one_line
from lengthen.files import read_object

__all__ = ["read_settings", "read_trained"]


def read_settings(folder: Path) -> LoraConfig:
    """The LoRA config of a folder.

    Args:
        folder: with adapter_config.json.

    Raises:
        ModelError: it is missing, damaged, or of another method than LoRA.
    """
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise ModelError(f"{folder} has no adapter_config.json, so it holds no adapter; give an adapter folder")
    settings = read_object(path, "restore it", ModelError)
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise ModelError(f"{path} is of kind {kind}; LongLoRA's and LongQLoRA's adapters are LORA")
    known = LoraConfig.__dataclass_fields__
    try:
        # Old peft versions wrote keys that are gone since, without meaning for LoRA on linear layers.
        config = LoraConfig(**{key: value for key, value in settings.items() if key in known})
    except (TypeError, ValueError) as error:
        raise ModelError(f"{path} is not a LoRA config: {one_line(error)}; restore it") from error
    # Freezing would keep peft from counting anything as trained; it is written as it should be when it is saved.
    config.inference_mode = False
    if not isinstance(config.r, int) or config.r < 1 or not config.target_modules:
        raise ModelError(f"{path} lacks r or target_modules; restore it")
    return config


def read_trained(folder: Path) -> dict[str, torch.Tensor]:
    """All trained tensors, named as in the base, LoRA matrices as `<layer>.lora_A.weight`.

    peft may have put the embeddings into its own file too, where the vocabulary was changed.

    Args:
        folder: adapter_model.bin (or .safetensors), and trainable_params.bin where there is one.

    Raises:
        ModelError: a file is missing, damaged, holds more than tensors, or contradicts the other.
    """
    adapter = weights_file(folder)
    tensors: dict[str, torch.Tensor] = {}
    extra = folder / "trainable_params.bin"
    for path in [adapter, extra] if extra.is_file() else [adapter]:
        for key, tensor in read_tensors(path).items():
            if ".original_module." in key:  # the base's own, which peft writes beside resized embeddings
                continue
            name = plain_name(key)
            if name in tensors and not torch.equal(tensors[name], tensor):
                raise ModelError(f"{name} is in {adapter.name} and in {extra.name} of {folder}, with other values")
            tensors[name] = tensor
    if not any(".lora_" in name for name in tensors):
        # DeepSpeed stage 3 and some peft versions leave an empty file of 443 bytes.
        raise ModelError(
            f"{adapter} holds no LoRA weights; it was saved without them, so make it anew from the full checkpoint, as "
            "with LongLoRA's get_trainable_weights.py"
        )
    return tensors
