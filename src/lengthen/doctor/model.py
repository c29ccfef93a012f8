"""A report on a base and an adapter: context, RoPE by layer, windows, S2, vocabulary, template, what an export holds.

Only configs, tokenizers and adapters are read.
"""

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from transformers import AutoModelForCausalLM, PreTrainedConfig

from lengthen import attention
from lengthen.adapters.base import base_of
from lengthen.adapters.finite import check_adapter
from lengthen.adapters.folder import adapter_config, adapter_rows, check_folder
from lengthen.adapters.tokenizer import has_tokenizer, tokenizer_beside
from lengthen.context import attention_layers, available_methods, stated_context
from lengthen.context.layers import rope_by_type, text_config
from lengthen.errors import LengthenError, ModelError, one_line
from lengthen.gguf import stored_types
from lengthen.models.load import empty_model, keeps_towers, load_config, quiet_transformers, read_context, towers_of
from lengthen.models.resolve import ModelSource, resolve_model
from lengthen.quantization import check_not_quantized
from lengthen.run_folder import RunFolder, read_base_record
from lengthen.upstream import check_chat_template, reading
from lengthen.vocabulary import vocabulary_size

__all__ = ["Finding", "examine_model", "s2_of"]

_TEMPLATES = "`template` or data.template, such as llama2, vicuna, alpaca or chatml"
# Sizes of the models in which S2 is tried; those of mamba layers have to fit the hidden size.
_SMALL = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "head_dim": 16,
    "mamba_n_heads": 4,
    "mamba_d_head": 32,
}


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        subject: what it is about, such as "context".
        text: what was found, one line.
        is_problem: whether some command would refuse it, or does something else than one may think.
    """

    subject: str
    text: str
    is_problem: bool = False

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


def examine_model(model: str, adapter: Path | None = None, context: int | None = None) -> list[Finding]:
    """Say what MODEL is, and the adapter over it, if there is one.

    Args:
        model: hub id, model folder, .gguf file, run folder or alias.
        adapter: a PEFT folder.
        context: of the base, tokens, where its files leave that open.

    Raises:
        ModelError: there is no such model, or its config can't be read.
    """
    source = resolve_model(model)
    if source.run is not None and adapter is None:
        adapter = RunFolder(source.run).adapter
    base = base_of(model)
    kind = "run folder" if source.run is not None else "GGUF file" if source.gguf else "base"
    config = load_config(base, context)
    text = text_config(config)
    findings = [Finding("model", f"{source.id}: {kind}, {config.model_type}{_of(base.id, source.id)}")]
    findings += _positions(base, config, context)
    findings += _weights(base, config)
    rows = text.vocab_size
    if adapter is not None:
        check_folder(adapter)
        try:
            rows = adapter_rows(adapter, empty_model(config)) or rows
        except ModelError as error:
            findings.append(Finding("adapter", str(error), is_problem=True))
            return findings
        findings += _adapter(adapter, text.vocab_size, rows)
    findings += _tokenizer(model, adapter, rows)
    return findings


def _of(base: str, model: str) -> str:
    return "" if base == model else f", over {base}"


def _positions(source: ModelSource, config: PreTrainedConfig, given: int | None) -> Iterator[Finding]:
    try:
        stated = read_context(source, given)
        yield Finding("context", f"{stated.tokens:,} tokens ({stated.source})")
    except LengthenError as error:
        yield Finding("context", str(error), is_problem=True)
    text = text_config(config)
    original = getattr(text, "original_max_position_embeddings", None)
    if original and original < (getattr(text, "max_position_embeddings", None) or 0):
        yield Finding("context", f"{original:,} tokens before its positions were scaled")
    try:
        layers = attention_layers(config)
    except LengthenError as error:
        yield Finding("layers", str(error), is_problem=True)
        return
    for (window, rope), count in Counter((layer.window, _shown(layer.rope)) for layer in layers).items():
        reach = "the whole context" if window is None else f"the last {window:,} tokens"
        yield Finding("layers", f"{count} attend to {reach}, {rope}")
    others = text.num_hidden_layers - len(layers)
    if others > 0:
        yield Finding("layers", f"{others} without attention (recurrent or convolutional)")
    with quiet_transformers():
        methods, reason = available_methods(config)
    takes = f"takes {', '.join(methods)}" + ("" if "linear" in methods else f"; {reason}")
    yield Finding("scaling", takes if methods else reason, is_problem=not methods)
    s2 = s2_of(config)
    yield Finding("S2", s2, is_problem=s2.startswith("no"))


def _shown(rope: dict[str, Any] | None) -> str:
    if rope is None:
        return "no positions (NoPE)"
    numbers = {key: value for key, value in rope.items() if isinstance(value, int | float)}
    return f"RoPE {rope['rope_type']}: " + ", ".join(
        f"{key} {str(value).lower() if isinstance(value, bool) else f'{value:.10g}'}" for key, value in numbers.items()
    )


def s2_of(config: PreTrainedConfig) -> str:
    """Whether S2 works in a model of this config, in how many layers, and whether documents can be packed.

    Found as a run would find it, in a small model with a layer of each type.
    """
    try:
        with reading(config.model_type, "{name}: {error}"), quiet_transformers():
            model = _small(config)
            attention.set_group_size(model, 4, backend="sdpa")
            used, tried = attention.check_s2(model)
            packing = "documents can be packed" if attention.keeps_documents_apart(model) else "no packing"
    except LengthenError as error:
        return f"no: {one_line(error)}"
    layers = attention_layers(config)
    whole = sum(layer.window is None for layer in layers)
    return f"yes, in {'all' if used == tried else f'{whole} of {len(layers)}'} attention layers; {packing}"


def _small(config: PreTrainedConfig) -> Any:
    """A model of the same architecture with few and narrow layers, one at least of each type."""
    text = text_config(copy.deepcopy(config))
    if not isinstance(getattr(type(text), "layer_types", None), property):  # which follows from other fields
        _keep_one_layer_of_each_type(text)
    _narrow(text)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(text, name, 0)
    return AutoModelForCausalLM.from_config(text, attn_implementation="s2", dtype=torch.float32)


def _keep_one_layer_of_each_type(text: PreTrainedConfig) -> None:
    types = getattr(text, "layer_types", None)
    kinds = list(dict.fromkeys(types)) if types else [None]
    if getattr(text, "num_kv_shared_layers", 0):  # the last layers use keys and values of earlier ones
        text.num_kv_shared_layers, kinds = len(kinds), kinds * 2
    text.num_hidden_layers = len(kinds)
    if types:
        text.layer_types = kinds


def _narrow(text: PreTrainedConfig) -> None:
    is_multi_head = getattr(text, "num_key_value_heads", None) == text.num_attention_heads
    for name, value in _SMALL.items():
        if getattr(text, name, None) is not None and not (name == "head_dim" and hasattr(text, "qk_rope_head_dim")):
            by_layer = isinstance(getattr(text, name), list)
            setattr(text, name, [value] * text.num_hidden_layers if by_layer else value)
    if getattr(text, "activation_sparsity_pattern", None):
        text.activation_sparsity_pattern = text.activation_sparsity_pattern[: text.num_hidden_layers]
    if getattr(text, "num_key_value_heads", None) is not None:
        text.num_key_value_heads = 4 if is_multi_head else 2
    rotated = getattr(text, "qk_rope_head_dim", _SMALL["head_dim"])
    for rope in rope_by_type(text):
        for name in ("short_factor", "long_factor"):
            if name in rope:
                rope[name] = rope[name][: int(rotated * rope.get("partial_rotary_factor", 1.0)) // 2]


def _weights(source: ModelSource, config: PreTrainedConfig) -> Iterator[Finding]:
    if source.gguf:
        types = stored_types(Path(source.location, source.gguf))
        yield Finding("weights", f"stored as {', '.join(types)}; dequantized when they are loaded")
    elif config.dtype is not None:
        yield Finding("weights", f"stored as {str(config.dtype).removeprefix('torch.')}")
    tied = getattr(config, "tie_word_embeddings", False)
    yield Finding("embeddings", "tied to the head" if tied else "apart from the head")
    try:
        check_not_quantized(config)
    except LengthenError as error:
        yield Finding("quantization", str(error), is_problem=True)
    towers = towers_of(config)
    if towers:
        try:
            fate = "not trained, kept in exports as they are" if keeps_towers(config) else "neither loaded nor exported"
            yield Finding("towers", f"{' and '.join(towers)} beside the text decoder: {fate}")
        except LengthenError as error:
            yield Finding("towers", str(error), is_problem=True)


def _adapter(adapter: Path, base_rows: int, rows: int) -> Iterator[Finding]:
    record, own = read_base_record(adapter), adapter_config(adapter)
    by = f"made by lengthen over {record['id']}" if record else "made elsewhere, without a note of its base's weights"
    yield Finding("adapter", f"{adapter}: {by}")
    yield Finding("adapter", _parts(adapter))
    if own is not None:
        yield Finding("adapter", f"brings positions for {stated_context(own).tokens:,} tokens")
    if rows != base_rows:
        yield Finding("adapter", f"brings {rows:,} embedding rows; its base has {base_rows:,}")
    try:
        check_adapter(adapter)
    except LengthenError as error:
        yield Finding("adapter", str(error).removeprefix(f"the adapter {adapter} "), is_problem=True)
        return
    yield Finding("export", "adapter merged, positions in config.json, the tokenizer with their length")


def _parts(adapter: Path) -> str:
    """The kind of an adapter, and the modules that it changes."""
    with reading(f"the adapter {adapter}"):
        settings = PeftConfig.from_pretrained(str(adapter))
    kind, rank = str(settings.peft_type).rsplit(".", 1)[-1], getattr(settings, "r", None)
    targets, saved = (getattr(settings, name, None) or () for name in ("target_modules", "modules_to_save"))
    text = kind if rank is None else f"{kind} of rank {rank}"
    if targets:
        text += f" on {targets if isinstance(targets, str) else ', '.join(sorted(targets))}"
    return f"{text}; trained whole: {', '.join(sorted(saved))}" if saved else text


def _tokenizer(model: str, adapter: Path | None, rows: int) -> Iterator[Finding]:
    try:
        tokenizer = tokenizer_beside(model, adapter)
    except LengthenError as error:
        yield Finding("tokenizer", str(error), is_problem=True)
        return
    ids = vocabulary_size(tokenizer)
    lacking = ids > rows
    said = "; some ids have no row" if lacking else ""
    owner = "; the adapter's own" if adapter is not None and has_tokenizer(adapter) else ""
    yield Finding("tokenizer", f"{ids:,} ids, {rows:,} embedding rows{said}{owner}", is_problem=lacking)
    names = {"bos": tokenizer.bos_token, "eos": tokenizer.eos_token, "pad": tokenizer.pad_token}
    first = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    begins = "begins texts with bos" if first and tokenizer.bos_token else "puts nothing before texts"
    yield Finding("tokens", ", ".join(f"{name} {token!r}" for name, token in names.items()) + f"; {begins}")
    try:
        check_chat_template(tokenizer)
        yield Finding("template", "has a chat template")
    except LengthenError:
        named = f" as its default (by name: {', '.join(tokenizer.chat_template)})" if tokenizer.chat_template else ""
        yield Finding("template", f"no chat template{named}; chat and instruction data need one named: {_TEMPLATES}")
