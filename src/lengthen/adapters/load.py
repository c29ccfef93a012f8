"""Load a model for use: a base, or a base and the adapter over it."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lengthen.adapters.base import base_of_run, base_shape, check_base
from lengthen.adapters.finite import check_adapter
from lengthen.adapters.folder import adapter_config, adapter_rows, check_folder
from lengthen.adapters.scale import check_scale, scale_adapter
from lengthen.adapters.tokenizer import tokenizer_beside
from lengthen.context import extend
from lengthen.context.layers import text_config
from lengthen.errors import ModelError
from lengthen.models.devices import Device, Dtype, pick_device, pick_dtype
from lengthen.models.fingerprint import weight_hashes
from lengthen.models.load import load_base, load_config, quiet_transformers
from lengthen.models.resolve import ModelSource, resolve_model
from lengthen.quantization import dequantize
from lengthen.run_folder import RunFolder, read_base_record
from lengthen.upstream import reading
from lengthen.vocabulary import embedding_rows, guard_embeddings

__all__ = [
    "BaseApart",
    "attaching",
    "load",
    "load_apart",
    "load_dequantized",
]


@dataclass(frozen=True)
class BaseApart:
    """A base as an adapter expects it, and the adapter, not yet put over it.

    Attributes:
        model: the base, in evaluation mode, with the positions that the adapter was trained with.
        tokenizer: of MODEL.
        source: where the base's files are.
        adapter: the PEFT folder; None where MODEL names no adapter.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    source: ModelSource
    adapter: Path | None


@dataclass(frozen=True)
class _Scaling:
    """The base's context, where its files leave it open, and a scaling of its positions without training."""

    base_context: int | None = None
    method: str | None = None
    target: int | None = None

    def __post_init__(self) -> None:
        if (self.method is None) != (self.target is None):
            raise ModelError("scaling positions needs both a method and a target; give both or neither")


def load(
    model: str | Path,
    dtype: Dtype | None = None,
    adapter: str | Path | None = None,
    quantize: str | None = None,
    *,
    method: str | None = None,
    target: int | None = None,
    base_context: int | None = None,
    adapter_scale: float = 1.0,
    device: Device | None = None,
    device_map: Device | dict[str, Device] | None = None,
) -> tuple[Any, PreTrainedTokenizerBase]:
    """Load a model for evaluation or generation, with full attention, in evaluation mode.

    Args:
        model: hub id, model folder, .gguf file, run folder, or alias.
        dtype: "auto" (default), or float32, bfloat16 or float16, by name or as torch's.
        adapter: a PEFT folder to put over the base. One that lengthen wrote brings its extended config along.
        quantize: "nf4" holds the base in 4 bits, "none" does not; default what the adapter was trained over.
        method: scale the base's positions without training, by this method of `lengthen.context`.
        target: context for `method`, tokens.
        base_context: of the base, tokens, where its files leave that open.
        adapter_scale: the share of the adapter that is applied, from 0 (the base's weights) to 1.
        device: a torch.device, its name, or an accelerator's number; default the accelerator where there is one.
        device_map: the same in transformers' words; "auto" is the default, and several devices are refused.

    Returns:
        The model (a PeftModel where there is an adapter) and its tokenizer.

    Raises:
        ModelError: not found, without weights, an adapter that was made for another base, or no such dtype or device.
        ContextError: `method` can't be applied.
    """
    scaling = _Scaling(base_context, method, target)
    check_scale(adapter_scale)
    apart = _load_apart(str(model), dtype, adapter, quantize, scaling, pick_device(device, device_map))
    return _joined(apart, str(model), adapter_scale)


def load_apart(
    model: str | Path, dtype: Dtype | None, quantize: str | None, device: torch.device, base_context: int | None = None
) -> BaseApart:
    """As `load` of a base or run folder, but with its adapter still apart.

    Args:
        model: a base, or a run folder.
        dtype: of the base; None for what its files have.
        quantize: "nf4", "none", or None for what the adapter was trained over.
        device: where to.
        base_context: of the base, tokens, where its files leave that open.

    Raises:
        LengthenError: as `load`.
    """
    return _load_apart(str(model), dtype, None, quantize, _Scaling(base_context), device)


def load_dequantized(
    model: str | Path,
    adapter: str | Path | None,
    device: torch.device,
    base_context: int | None = None,
    adapter_scale: float = 1.0,
) -> Any:
    """As `load` with quantize="nf4" in float32, with ordinary weights that are exactly those of the 4-bit layers.

    For merging: an adapter can't be folded into packed 4-bit weights without changing them once more.

    Args:
        model: a base, or a run folder.
        adapter: a PEFT folder over a base.
        device: where to.
        base_context: of the base, tokens, where its files leave that open.
        adapter_scale: the share of the adapter that is applied, 0 to 1.

    Raises:
        LengthenError: as `load`.
    """
    check_scale(adapter_scale)
    apart = _load_apart(str(model), "float32", adapter, "nf4", _Scaling(base_context), device)
    return _joined(replace(apart, model=dequantize(apart.model)), str(model), adapter_scale)


def _joined(apart: BaseApart, model: str, adapter_scale: float) -> tuple[Any, PreTrainedTokenizerBase]:
    """Put the adapter over its base."""
    loaded = apart.model
    if apart.adapter is not None:
        loaded = _with_adapter(loaded, apart.adapter, apart.source)
        scale_adapter(loaded, adapter_scale, apart.adapter)
    elif adapter_scale != 1:
        raise ModelError(f"{model} has no adapter that adapter_scale={adapter_scale:g} could scale; leave it out")
    return loaded.eval(), apart.tokenizer


def _load_apart(
    model: str,
    dtype: Dtype | None,
    adapter: str | Path | None,
    quantize: str | None,
    scaling: _Scaling,
    device: torch.device,
) -> BaseApart:
    if quantize not in (None, "none", "nf4"):
        raise ModelError(f"unknown quantize={quantize}; choose nf4 or none")
    source = resolve_model(model)
    if source.run is not None:
        if adapter is not None:
            raise ModelError(f"{model} is a run folder and has its adapter already; leave `adapter` out")
        adapter, source = RunFolder(source.run).adapter, base_of_run(source.run)
    folder, record = Path(adapter) if adapter is not None else None, None
    if folder is not None:
        check_folder(folder)
        record = read_base_record(folder)
        check_adapter(folder)
    tokenizer = tokenizer_beside(model, folder)
    nf4 = (quantize or (record or {}).get("quantize")) == "nf4"
    loaded: Any = load_base(
        source,
        _scaled_config(source, folder, record, scaling),
        pick_dtype(dtype, device, nf4),
        device=device,
        nf4=nf4,
    )
    if folder is not None and record is not None:
        check_base(weight_hashes(loaded), folder, record, source)
    if folder is not None:
        _resize_like(loaded, folder)
    guard_embeddings(loaded, tokenizer)
    return BaseApart(loaded.eval(), tokenizer, source, folder)


def _resize_like(model: Any, adapter: Path) -> None:
    """Give a base the embedding rows that an adapter was trained with, where tokens were added to it.

    The rows that are added are filled by the adapter's.
    """
    rows, wanted = embedding_rows(model), adapter_rows(adapter, model)
    if wanted is None or wanted == rows:
        return
    if wanted < rows:
        raise ModelError(f"the adapter {adapter} has {wanted} embedding rows, and its base {rows}; give its own base")
    with quiet_transformers():
        model.resize_token_embeddings(wanted, mean_resizing=False)


def _scaled_config(
    source: ModelSource, adapter: Path | None, record: dict[str, Any] | None, scaling: _Scaling
) -> PreTrainedConfig:
    """The base's config, with the positions that its adapter was trained with, or scaled anew."""
    plain = load_config(source, scaling.base_context)
    config = plain if adapter is None else adapter_config(adapter) or plain
    text_config(config).vocab_size = text_config(plain).vocab_size  # rows that an adapter added come after the weights
    # Adapters for bases of another shape would only fail somewhere inside the weights.
    if record is not None and base_shape(plain) != base_shape(config):
        raise ModelError(f"the adapter {adapter} was made for {record['id']}; {source.id} has another shape")
    if scaling.method is not None and scaling.target is not None:
        config = extend(config, scaling.target, scaling.method)
    return config


def _with_adapter(base: PreTrainedModel, folder: Path, source: ModelSource) -> Any:
    from peft import PeftModel

    with attaching(folder, source.id):
        return PeftModel.from_pretrained(base, str(folder))


@contextmanager
def attaching(folder: Path, base: str) -> Iterator[None]:
    """Turn what goes wrong while peft puts an adapter over a base into one error that names both.

    Args:
        folder: the adapter's.
        base: name of its base.

    Raises:
        ModelError: the adapter's files are damaged, lack something, or do not fit.
    """
    with warnings.catch_warnings(), reading(f"the adapter {folder}", f"{{name}} does not fit {base}: {{error}}"):
        # peft warns about tied embeddings that it then ties.
        warnings.filterwarnings("ignore", message=".*tie.*")
        # And it leaves what a file lacks as it was initialized.
        warnings.filterwarnings("error", message=".*missing adapter keys.*")
        yield
