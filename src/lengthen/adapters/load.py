"""Load a model for use: a base, or a base and the adapter over it."""

import json
import warnings
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lengthen.context import extend
from lengthen.errors import ModelError
from lengthen.models import (
    Source,
    default_device,
    find,
    from_pretrained,
    load_base,
    load_config,
    load_tokenizer,
    pick_dtype,
    shortened,
    weight_hash,
)

__all__ = ["load"]


def load(
    model: str | Path,
    dtype: str | None = None,
    adapter: str | Path | None = None,
    quantize: str | None = None,
    *,
    method: str | None = None,
    target: int | None = None,
    device: torch.device | None = None,
) -> tuple[Any, PreTrainedTokenizerBase]:
    """Load a model for evaluation or generation, with full attention, in evaluation mode.

    Args:
        model: hub id, model folder, .gguf file, run folder, or alias.
        dtype: "auto" (default), "float32", "bfloat16" or "float16".
        adapter: a PEFT folder to put over the base. One that lengthen wrote brings its extended config along.
        quantize: 4-bit bases are not in this version.
        method: scale the base's positions without training, by this method of `lengthen.context`.
        target: context for `method`, tokens.
        device: default the accelerator where there is one.

    Returns:
        The model (a PeftModel where there is an adapter) and its tokenizer.

    Raises:
        ModelError: not found, without weights, or an adapter that was made for another base.
        ContextError: `method` can't be applied.
    """
    if quantize is not None:
        raise ModelError(f"quantize={quantize}: 4-bit bases are not supported by this version; leave it out")
    if (method is None) != (target is None):
        raise ModelError("scaling positions needs both a method and a target; give both or neither")
    model = str(model)
    source = find(model)
    device = device or default_device()
    if source.run is not None:
        if adapter is not None:
            raise ModelError(f"{model} is a run folder and has its adapter already; leave --adapter out")
        adapter, source = source.run / "adapter", _base_of(source.run)
    tokenizer = load_tokenizer(model)
    folder = Path(adapter) if adapter is not None else None
    if folder is not None and not (folder / "adapter_config.json").is_file():
        raise ModelError(f"{folder} has no adapter_config.json, so it holds no adapter; give a PEFT folder")
    loaded = _load_scaled(source, folder, pick_dtype(dtype, device), method, target, device)
    if folder is not None:
        loaded = _with_adapter(loaded, folder, source)
    return loaded.eval(), tokenizer


def _load_scaled(
    source: Source,
    adapter: Path | None,
    dtype: torch.dtype,
    method: str | None,
    target: int | None,
    device: torch.device,
) -> Any:
    """The base, with the positions that its adapter was trained with, or scaled anew."""
    if adapter is None or not (adapter / "config.json").is_file():
        config = load_config(source)
    else:
        config = from_pretrained(AutoConfig, Source(str(adapter), str(adapter)))
        record = _record(adapter)
        plain = load_config(source)
        # Adapters for bases of another shape would only fail somewhere inside the weights.
        if record is not None and (plain.model_type, _shape(plain)) != (config.model_type, _shape(config)):
            raise ModelError(f"the adapter {adapter} was made for {record['id']}; {source.id} has another shape")
    if method is not None and target is not None:
        config = extend(config, target, method)
    return load_base(source, config, dtype, device=device)


def _shape(config: PreTrainedConfig) -> list[Any]:
    text = config.get_text_config()
    return [getattr(text, name, None) for name in ("hidden_size", "num_hidden_layers", "vocab_size")]


def _record(adapter: Path) -> dict[str, Any] | None:
    """What lengthen noted about the base of an adapter; None for adapters of others."""
    path = adapter / "base.json"
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {key: str(record[key]) for key in ("id", "model", "weight_hash")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is damaged, so the adapter's base is not known; restore it") from error


def _base_of(run: Path) -> Source:
    """The base that a run folder's adapter was trained over."""
    record = _record(run / "adapter")
    if record is None:
        raise ModelError(f"{run / 'adapter'} has no base.json; give the base itself and --adapter {run / 'adapter'}")
    try:
        source = find(record["model"])
        load_config(source)
    except ModelError as error:
        raise ModelError(
            f"the base of {run} was {record['id']} at {record['model']}, which is not there; give the base itself and "
            f"--adapter {run / 'adapter'}"
        ) from error
    return source


def _with_adapter(base: PreTrainedModel, folder: Path, source: Source) -> nn.Module:
    from peft import PeftModel

    record = _record(folder)
    if record is not None and weight_hash(base) != record["weight_hash"]:
        raise ModelError(f"the adapter {folder} was made for {record['id']}; the weights of {source.id} are others")
    with warnings.catch_warnings():
        # peft warns about tied embeddings that it then ties, and reads a name that transformers deprecated.
        warnings.filterwarnings("ignore", message=".*(tie|is_gradient_checkpointing).*")
        # And it leaves what a file lacks as it was initialised.
        warnings.filterwarnings("error", message=".*missing adapter keys.*")
        try:
            return PeftModel.from_pretrained(base, str(folder))
        except UnpicklingError as error:
            raise ModelError(
                f"the .bin weights of the adapter {folder} hold more than tensors, and loading them could run any code"
            ) from error
        except (OSError, RuntimeError, ValueError, TypeError, SafetensorError, UserWarning) as error:
            raise ModelError(f"the adapter {folder} does not fit {source.id}: {shortened(error)}") from error
