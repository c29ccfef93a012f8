"""Fingerprints of weights, by which a run finds its base again."""

import hashlib

import torch
from torch import nn

from lengthen.quantization import is_packed, is_quantized

__all__ = ["weight_hashes"]


def weight_hashes(model: nn.Module) -> dict[str, str | None]:
    """Fingerprints of a model's weights that do not depend on the file format or the dtype they are loaded in.

    Taken over names, shapes and at least 4096 evenly spaced values of each parameter (all of a smaller one), rounded
    to bfloat16.

    Returns:
        "weight_hash" over all parameters, None where some are in 4 bits; "unquantized_hash" over those that never
        are: the embeddings and all vectors.
    """
    if hasattr(model, "hashes_before_rounding"):
        return model.hashes_before_rounding  # type: ignore[return-value]
    whole, kept = hashlib.sha256(), hashlib.sha256()
    embeddings = model.get_input_embeddings().weight  # type: ignore[operator]
    for name, parameter in sorted(model.named_parameters()):
        if is_packed(parameter):
            continue
        values = parameter.detach().flatten()
        sample = values[:: max(1, values.numel() // 4096)].to(torch.bfloat16).cpu().contiguous()
        for digest in (whole, kept) if parameter.ndim == 1 or parameter is embeddings else (whole,):
            digest.update(f"{name} {tuple(parameter.shape)}".encode())
            digest.update(sample.view(torch.int16).numpy().tobytes())
    return {
        "weight_hash": None if is_quantized(model) else whole.hexdigest(),
        "unquantized_hash": kept.hexdigest(),
    }
