"""The attention layers of a model, as its config describes them: how far they attend, and with which RoPE parameters.

| layers                   | families                                          | what a longer context means for them |
|--------------------------|---------------------------------------------------|--------------------------------------|
| whole context, RoPE      | Llama, Qwen, Mistral from 0.2                     | new distances: they are scaled       |
| whole context, no RoPE   | 1 in 4 of Cohere2, EXAONE 4, Llama 4, SmolLM3     | nothing to scale (NoPE)              |
| window                   | 3 in 4 of Cohere2, 5 in 6 of Gemma 3, Mistral 0.1 | distances as before: left alone      |
"""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from lengthen.errors import ContextError

__all__ = [
    "AttentionLayer",
    "attention_layers",
    "has_chunks",
    "has_no_positions",
    "has_open_windows",
    "is_length_dependent",
    "keep_windows_open",
    "positions",
    "rope_by_type",
    "rotary_dimension",
    "text_config",
    "written_scaling",
]

# Layer types that attend to the last tokens only, and the config's field with their number.
_WINDOWS = {
    "sliding_attention": "sliding_window",
    "hybrid_sliding": "sliding_window",
    "chunked_attention": "attention_chunk_size",
}
_WHOLE = ("full_attention", "hybrid")
# Hybrids of attention and recurrence whose attention has no positions.
_NOPE = ("jamba", "kimi_linear", "nemotron_h", "zamba")
# Architectures with one set of RoPE parameters that only their window layers use. No config says so: it is in their
# modeling code, which tests/context/test_context_layers.py compares this with.
_ROPE_IN_WINDOWS_ONLY = (
    "afmoe",
    "cohere2",
    "cohere2_moe",
    "exaone4",
    "exaone4_5_text",
    "exaone_moe",
    "flint",
    "kolibri1",
    "lara_mini",
)


@dataclass(frozen=True)
class AttentionLayer:
    """One layer that attends.

    Attributes:
        kind: its type in the config's layer_types, "full_attention" or "sliding_attention" where that has none.
        window: how many tokens back it sees; None for the whole context.
        rope: its RoPE parameters, the config's own dict, which layers may share; None without RoPE (NoPE).
    """

    kind: str
    window: int | None
    rope: dict[str, Any] | None


def text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config of a model's text decoder, which for most models is the config itself."""
    return config.get_text_config(decoder=True)


def positions(config: PreTrainedConfig) -> dict[str, Any]:
    """RoPE parameters of a config, by layer type where layers differ, for comparison: equal where two rotate alike."""
    return dict(getattr(text_config(config), "rope_parameters", None) or {})


def written_scaling(content: dict[str, Any]) -> dict[str, Any]:
    """The RoPE parameters in a config.json, under their name of transformers 5 or the one before; empty without any.

    Args:
        content: of the file, for what has to be known before transformers makes a config of it.
    """
    return dict(content.get("rope_parameters") or content.get("rope_scaling") or {})


def rope_by_type(config: PreTrainedConfig) -> list[dict[str, Any]]:
    """The sets of RoPE parameters of a config, the dicts themselves: one, or one per layer type."""
    text = text_config(config)
    parameters = getattr(text, "rope_parameters", None)
    if not parameters:
        return []
    nested = text.nested_rope_parameter_keys(parameters)
    return [parameters[key] for key in nested if parameters[key]] if nested else [parameters]


def rotary_dimension(text: PreTrainedConfig, rope: dict[str, Any]) -> int:
    """How many dimensions of each head are rotated; there are half as many frequencies.

    Args:
        text: config of a text decoder.
        rope: RoPE parameters of its layers.
    """
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(head * rope.get("partial_rotary_factor", 1.0))


def attention_layers(config: PreTrainedConfig) -> list[AttentionLayer]:
    """The attention layers of a model's text decoder, from first to last; recurrent and convolutional ones left out.

    Raises:
        ContextError: it has attention layers of a kind that is not known here.
    """
    text = text_config(config)
    parameters = getattr(text, "rope_parameters", None) or {}
    nested = text.nested_rope_parameter_keys(parameters) if parameters else []
    layers: list[AttentionLayer] = []
    open_windows = has_open_windows(text)
    for index, kind in enumerate(_layer_types(text)):
        if kind in _WINDOWS or kind in _WHOLE:
            window = None if kind in _WHOLE or open_windows else getattr(text, _WINDOWS[kind], None)
            rope = parameters.get(kind) if nested else parameters or None
            layers.append(AttentionLayer(kind, window, rope if _rotates(text, kind, index) else None))
        elif "attention" in kind and kind != "linear_attention":
            raise ContextError(f"{text.model_type} has layers of the kind {kind}, whose positions lengthen can't scale")
    return layers


def _rotates(text: PreTrainedConfig, kind: str, index: int) -> bool:
    """Whether an attention layer has RoPE."""
    if has_no_positions(text):
        return False
    rotating = getattr(text, "no_rope_layers", None)  # 1 where there is RoPE, in spite of its name
    if rotating and not rotating[index]:
        return False
    only_in_windows = text.model_type in _ROPE_IN_WINDOWS_ONLY and text.sliding_window is not None
    return not (only_in_windows and kind in _WHOLE)


def has_no_positions(config: PreTrainedConfig) -> bool:
    """Whether a hybrid's attention layers have no positions at all (NoPE), even if RoPE parameters stand there."""
    text = text_config(config)
    if text.model_type == "granitemoehybrid":
        return text.position_embedding_type != "rope"
    return text.model_type in _NOPE or getattr(text, "use_mem_rope", True) is False


def has_open_windows(config: PreTrainedConfig) -> bool:
    """Whether a model's windows are none, since all its attention layers have them and they hold the whole context.

    Phi-3's of 262,144 tokens are such. Beside layers that see the whole context, a window stays one however long it is:
    a longer context makes it narrower than that.
    """
    text = text_config(config)
    kinds = _layer_types(text)
    maximum = getattr(text, "max_position_embeddings", None)
    windows = [getattr(text, field, None) for kind, field in _WINDOWS.items() if kind in kinds]
    if any(kind in _WHOLE for kind in kinds) or not isinstance(maximum, int):
        return False
    return bool(windows) and all(window is not None and window >= maximum for window in windows)


def keep_windows_open(config: PreTrainedConfig, context: int) -> None:
    """Have windows that hold the whole context hold a longer one too: they were none, and are to stay none.

    Args:
        config: of the base, changed in place.
        context: the longer one, tokens.
    """
    text = text_config(config)
    if not has_open_windows(text):
        return
    kinds = _layer_types(text)
    for kind, field in _WINDOWS.items():
        if kind in kinds:
            setattr(text, field, max(getattr(text, field), context))


def has_chunks(config: PreTrainedConfig) -> bool:
    """Whether the layers that see less than the whole context see their own chunk of it, and no window."""
    return "chunked_attention" in _layer_types(text_config(config))


def is_length_dependent(config: PreTrainedConfig) -> bool:
    """Whether the rotary frequencies change with the length of the input, so that chunked prefill would differ.

    Without RoPE there are none to change.
    """
    return any(
        rope["rope_type"] == "dynamic"
        or (rope["rope_type"] == "longrope" and rope["short_factor"] != rope["long_factor"])
        for rope in rope_by_type(config)
    )


def _layer_types(text: PreTrainedConfig) -> list[str]:
    types = getattr(text, "layer_types", None)
    if types:
        return list(types)
    windowed = bool(getattr(text, "sliding_window", None)) and getattr(text, "use_sliding_window", True)
    return ["sliding_attention" if windowed else "full_attention"] * text.num_hidden_layers
