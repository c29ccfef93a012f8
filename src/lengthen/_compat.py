"""Everything that depends on upstream versions or private corners, each with the condition for its removal."""

from typing import Any

import torch

__all__ = ["bf16_is_fast", "gguf_dequantized"]


def bf16_is_fast(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 beat float32 there.

    Uses torch.cpu's private probe; goes when a public one names AVX512-BF16 and AMX.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return device.type == "mps"


def gguf_dequantized() -> Any:
    """The quantisation config under which a GGUF file becomes an ordinary, trainable model.

    Goes when dequantising is again what `from_pretrained(gguf_file=...)` does by default.
    """
    from transformers import GgufConfig

    return GgufConfig(dequantize=True)
