"""From a run to one ordinary Hugging Face folder: adapter merged into the base, extended config, tokenizer."""

import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from lengthen.adapters.base import base_of
from lengthen.adapters.finite import check_weights
from lengthen.adapters.folder import trained_over_nf4
from lengthen.adapters.load import load, load_dequantized
from lengthen.context import base_context, state_lengths
from lengthen.errors import ModelError, OutputError, one_line
from lengthen.files import atomic_folder
from lengthen.models.devices import Dtype, pick_dtype
from lengthen.models.load import load_config, quiet_transformers
from lengthen.quantization import check_not_quantized

__all__ = ["check_is_new", "export", "load_for_export", "merge", "save_model"]

_MERGE_INTO = ("original", "dequantized")


def merge(model: Any) -> Any:
    """Fold an adapter into its base; a model without one comes back as it is.

    Raises:
        ModelError: the adapter's method has no weights that could be merged, or what comes of it is not finite.
    """
    if not isinstance(model, PeftModel):
        return model
    if not hasattr(model.base_model, "merge_and_unload"):
        kind = str(model.active_peft_config.peft_type).rsplit(".", 1)[-1].lower()
        raise ModelError(f"a {kind} adapter can't be merged into its base; load it with peft as it is")
    try:
        return model.merge_and_unload(safe_merge=True)
    except ValueError as error:  # of adapters whose own weights are finite, but too large
        raise ModelError(f"the adapter can't be merged: {one_line(error)}; train it again") from error


def export(
    model: str | Path,
    out: Path,
    dtype: Dtype = "bfloat16",
    adapter: str | Path | None = None,
    merge_into: str = "original",
    base_context: int | None = None,
    adapter_scale: float = 1.0,
) -> Path:
    """Write a merged model that plain transformers loads.

    The merge is computed in float32 and rounded once, at the end. An adapter that was trained over a 4-bit base can be
    merged into the 16-bit base it came from, or into the 4-bit weights written out, which is exactly what was trained.

    Args:
        model: a run folder, or anything MODEL can name, with `adapter`.
        out: a new or empty folder.
        dtype: of the written weights: "bfloat16", "float16" or "float32".
        adapter: a PEFT folder to merge, where `model` is not a run folder.
        merge_into: "original" or "dequantized".
        base_context: of the base, tokens, where its files leave that open.
        adapter_scale: the share of the adapter that is merged, 0 to 1.

    Returns:
        `out`, with safetensors weights, the extended config and the tokenizer with its length.

    Raises:
        ModelError: the model or adapter can't be loaded or merged.
        OutputError: `out` has content or can't be written.
    """
    check_is_new(out)
    written = pick_dtype(dtype, torch.device("cpu"))
    loaded, tokenizer = load_for_export(model, adapter, merge_into, base_context, adapter_scale)
    with atomic_folder(out) as temporary:
        save_model(merge(loaded), tokenizer, temporary, written)
        _copy_processor(Path(base_of(model).location), temporary)
    return out


def _copy_processor(base: Path, folder: Path) -> None:
    """A multimodal base keeps its towers; what prepares images or sound for them is in files of its own."""
    for name in ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"):
        if (base / name).is_file():
            shutil.copy(base / name, folder / name)


def check_is_new(out: Path) -> None:
    """Refuse a place that has content, before any work is done.

    Raises:
        OutputError: `out` is a file, or a folder that is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} has content already; choose another folder")


def load_for_export(
    model: str | Path,
    adapter: str | Path | None,
    merge_into: str,
    base_context: int | None = None,
    adapter_scale: float = 1.0,
) -> tuple[Any, Any]:
    """The model in float32 on the CPU, over 16-bit or dequantized weights, and its tokenizer.

    Args:
        model: as `export`'s.
        adapter: a PEFT folder; None for a run's own.
        merge_into: "original" or "dequantized".
        base_context: of the base, tokens, where its files leave that open.
        adapter_scale: the share of the adapter that is applied, 0 to 1.

    Raises:
        ModelError: it can't be loaded so.
    """
    if merge_into not in _MERGE_INTO:
        raise ModelError(f"unknown merge_into={merge_into}; choose {' or '.join(_MERGE_INTO)}")
    cpu = torch.device("cpu")
    check_not_quantized(load_config(base_of(model)))
    if merge_into == "original":
        options: dict[str, Any] = {"base_context": base_context, "adapter_scale": adapter_scale, "device": cpu}
        return load(model, "float32", adapter, quantize="none", **options)
    over_nf4 = trained_over_nf4(model, adapter)
    if over_nf4 is False or (over_nf4 is None and adapter is None):
        raise ModelError(
            f"{adapter or model} was not trained over a 4-bit base, as merge_into=dequantized needs; choose original"
        )
    return load_dequantized(model, adapter, cpu, base_context, adapter_scale)


def save_model(model: Any, tokenizer: Any, folder: Path, dtype: torch.dtype) -> None:
    """Write an ordinary model folder, whose tokenizer knows the model's context.

    Args:
        model: without adapters; cast to `dtype` in place.
        tokenizer: written beside it.
        folder: there already.
        dtype: of the written weights.
    """
    check_weights(model.state_dict().items(), dtype)
    model.to(dtype)
    model.config.dtype = dtype
    context = base_context(model.config)
    tokenizer.model_max_length = context
    state_lengths(model, context)
    with quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
