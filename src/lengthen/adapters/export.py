"""From a run to one ordinary Hugging Face folder: adapter merged into the base, extended config, tokenizer."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from lengthen.adapters.load import load
from lengthen.errors import ModelError, OutputError
from lengthen.files import atomic_folder
from lengthen.models import pick_dtype, quiet_transformers

__all__ = ["export", "merge"]


def merge(model: Any) -> Any:
    """Fold an adapter into its base; a model without one comes back as it is.

    Raises:
        ModelError: the adapter's method has no weights that could be merged.
    """
    if not isinstance(model, PeftModel):
        return model
    if not hasattr(model.base_model, "merge_and_unload"):
        kind = str(model.active_peft_config.peft_type).rsplit(".", 1)[-1].lower()
        raise ModelError(f"a {kind} adapter can't be merged into its base; load it with peft as it is")
    return model.merge_and_unload(safe_merge=True)


def export(model: str | Path, out: Path, dtype: str = "bfloat16", adapter: str | Path | None = None) -> Path:
    """Write a merged model that plain transformers loads.

    The merge is computed in float32 and rounded once, at the end.

    Args:
        model: a run folder, or anything MODEL can name, with `adapter`.
        out: a new or empty folder.
        dtype: of the written weights: "bfloat16", "float16" or "float32".
        adapter: a PEFT folder to merge, where `model` is not a run folder.

    Returns:
        `out`, with safetensors weights, the extended config and the tokenizer with its length.

    Raises:
        ModelError: the model or adapter can't be loaded or merged.
        OutputError: `out` has content or can't be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} has content already; choose another folder")
    written = pick_dtype(dtype, torch.device("cpu"))
    loaded, tokenizer = load(model, "float32", adapter, device=torch.device("cpu"))
    merged = merge(loaded).to(written)
    merged.config.dtype = written
    tokenizer.model_max_length = merged.config.get_text_config().max_position_embeddings
    with atomic_folder(out) as temporary, quiet_transformers():
        merged.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    return out
