"""Positions in GGUF files: the RoPE scaling that a file states, as a transformers config says it.

transformers reads the base frequency of a GGUF file and drops everything else. llama.cpp's keys and tensors, and what
they become:

| in the file                                    | in the config                                              |
|------------------------------------------------|------------------------------------------------------------|
| rope.scaling.type linear (or none), .factor    | linear                                                     |
| rope.scaling.type yarn, .factor, .original...  | yarn, with attention factor and betas where they are given |
| rope_factors_long, rope_factors_short          | longrope                                                   |
| rope_freqs, one divisor per frequency          | llama3 where it is that curve, else longrope               |

Source: GGUF's specification (ggml, docs/gguf.md); llama.cpp's llama-model.cpp and ggml_rope_yarn.
"""

import math
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedConfig

from lengthen.context.layers import attention_layers, rotary_dimension, text_config
from lengthen.errors import ModelError, require
from lengthen.upstream import reading

__all__ = ["add_positions", "stored_types"]

_TENSORS = ("rope_freqs", "rope_factors_long", "rope_factors_short")


@dataclass(frozen=True)
class _GgufPositions:
    """The positions that a GGUF file states.

    Attributes:
        keys: the metadata under `<architecture>.`, numbers and texts, without that prefix.
        divisors: by tensor name, one number per rotary frequency, that the frequency is divided by.
        types: how many tensors are stored in each type ("Q4_1", "F32").
    """

    keys: dict[str, Any]
    divisors: dict[str, list[float]]
    types: Counter[str]


def _read_positions(path: Path) -> _GgufPositions:
    """Read the metadata of a GGUF file.

    Raises:
        ModelError: it is no GGUF file, is damaged, or the package gguf is missing.
    """
    return _read(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _read(path: Path, _changed: int) -> _GgufPositions:
    require(f"reading {path.name}", "gguf", "gguf", error=ModelError)
    from gguf import GGUFReader, GGUFValueType

    with reading(path.name):
        file = GGUFReader(path)
        architecture = file.fields["general.architecture"].contents()
        prefix = f"{architecture}."
        keys = {
            name.removeprefix(prefix): field.contents()
            for name, field in file.fields.items()
            if name.startswith(prefix) and field.types[0] != GGUFValueType.ARRAY
        }
        divisors = {
            name: np.asarray(tensor.data, dtype=np.float64).tolist()
            for tensor in file.tensors
            if (name := tensor.name.removesuffix(".weight").rsplit(".", 1)[-1]) in _TENSORS
        }
        types = Counter(tensor.tensor_type.name for tensor in file.tensors)
    return _GgufPositions(keys, divisors, types)


def stored_types(path: Path) -> list[str]:
    """The types that a GGUF file keeps its weights in, such as "Q4_1", the most frequent first.

    Raises:
        ModelError: as `add_positions`.
    """
    return [name for name, _ in _read_positions(path).types.most_common()]


def add_positions(config: PreTrainedConfig, path: Path) -> PreTrainedConfig:
    """Give the config that transformers made of a GGUF file the positions that the file states.

    Args:
        config: changed in place.
        path: the file.

    Raises:
        ModelError: the file can't be read, or scales positions in a way that this architecture has no place for.
    """
    found = _read_positions(path)
    if "rope.dimension_count" not in found.keys and "rope.freq_base" not in found.keys and not found.divisors:
        return config  # an architecture without RoPE
    text = text_config(config)
    whole = [layer for layer in attention_layers(text) if layer.rope is not None and layer.window is None]
    ropes = [layer.rope for layer in whole or attention_layers(text) if layer.rope is not None]
    if not ropes:
        raise ModelError(f"{path.name} states RoPE parameters, but {text.model_type} has no layers that take them")
    rope = ropes[0]
    rope["rope_theta"] = float(found.keys.get("rope.freq_base", 10000.0))
    _check_rotary_dimension(text, rope, found, path)
    scaling = _scaling(found, text, rope, path)
    if scaling is not None:
        rope.update(scaling)
        # GGUF's context_length is what the model was trained for, so a linear factor is in it already. Beside YaRN it
        # may be the maximum from before (Qwen3), as in the config that the file was made from.
        maximum, factor = text.max_position_embeddings, scaling.get("factor", 1.0)
        original = scaling.get("original_max_position_embeddings", round(maximum / factor))
        is_from_before = scaling["rope_type"] == "yarn" and original * factor > maximum
        if original < maximum and not is_from_before:
            text.original_max_position_embeddings = original
    with reading(path.name, "the positions of {name} do not fit its architecture: {error}"):
        text.validate_rope()
    return config


def _check_rotary_dimension(text: PreTrainedConfig, rope: dict[str, Any], found: _GgufPositions, path: Path) -> None:
    stated = found.keys.get("rope.dimension_count")
    ours = rotary_dimension(text, rope)
    if stated is not None and stated != ours:
        raise ModelError(
            f"{path.name} rotates {stated} dimensions of each head, and transformers' {text.model_type} would rotate "
            f"{ours}: it would be another model; take the safetensors weights"
        )


def _scaling(found: _GgufPositions, text: PreTrainedConfig, rope: dict[str, Any], path: Path) -> dict[str, Any] | None:
    keys, divisors = found.keys, found.divisors
    # llama.cpp takes a factor without a type for linear.
    kind = keys.get("rope.scaling.type", "linear")
    factor = float(keys.get("rope.scaling.factor", keys.get("rope.scale_linear", 0.0))) or 1.0
    _check_scaling(kind, factor, "rope_freqs" in divisors, path)
    rotary = rotary_dimension(text, rope)
    original = int(keys.get("rope.scaling.original_context_length", text.max_position_embeddings))
    if "rope_factors_long" in divisors:
        attention = keys.get("rope.scaling.attn_factor")
        short, long = (divisors[f"rope_factors_{length}"] for length in ("short", "long"))
        return _longrope(short, long, original, attention, rotary, path)
    if "rope_freqs" in divisors:
        given = divisors["rope_freqs"]
        if set(given) == {1.0}:
            return None
        # With both lists alike, longrope is one divisor per frequency, at any length.
        return _as_llama3(given, rotary, rope["rope_theta"]) or _longrope(given, given, original, 1.0, rotary, path)
    if kind == "longrope":
        raise ModelError(f"{path.name} names longrope and lacks its factors (rope_factors_long); take another file")
    if kind == "none" or factor == 1.0:
        return None
    return _yarn(keys, factor, original, path) if kind == "yarn" else {"rope_type": "linear", "factor": factor}


def _check_scaling(kind: str, factor: float, has_divisors: bool, path: Path) -> None:
    if has_divisors and (kind == "yarn" or (kind == "linear" and factor != 1.0)):
        raise ModelError(
            f"{path.name} scales positions twice, by {kind} and by its tensor rope_freqs; that has no place "
            "in a config; take the safetensors weights"
        )
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise ModelError(
            f"{path.name} scales positions by {kind!r}, which is not known here; take the safetensors weights"
        )


def _yarn(keys: dict[str, Any], factor: float, original: int, path: Path) -> dict[str, Any]:
    unknown = [
        name
        for name, plain in (("yarn_log_multiplier", (0.0,)), ("yarn_ext_factor", (1.0, -1.0)))
        if keys.get(f"rope.scaling.{name}", plain[0]) not in plain
    ]
    if unknown:
        raise ModelError(f"{path.name} has a YaRN of its own ({', '.join(unknown)}); take the safetensors weights")
    scaling: dict[str, Any] = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    for name in ("beta_fast", "beta_slow"):
        if f"rope.scaling.yarn_{name}" in keys:
            scaling[name] = float(keys[f"rope.scaling.yarn_{name}"])
    # llama.cpp multiplies its factor with YaRN's own; transformers takes the product.
    attention = float(keys.get("rope.scaling.yarn_attn_factor", keys.get("rope.scaling.attn_factor", 1.0)))
    if attention != 1.0:
        scaling["attention_factor"] = attention * (0.1 * math.log(factor) + 1.0)
    return scaling


def _longrope(
    short: list[float], long: list[float], original: int, attention: float | None, rotary: int, path: Path
) -> dict[str, Any]:
    if len(short) != rotary // 2 or len(long) != rotary // 2:
        raise ModelError(
            f"{path.name} scales {len(long)} rotary frequencies, and the model has {rotary // 2}; the file is damaged, "
            "or needs a newer transformers"
        )
    scaling: dict[str, Any] = {"rope_type": "longrope", "short_factor": short, "long_factor": long}
    if attention is not None:
        scaling["attention_factor"] = float(attention)
    return {**scaling, "original_max_position_embeddings": original}


def _as_llama3(divisors: list[float], rotary: int, theta: float) -> dict[str, Any] | None:
    """The parameters of Llama 3's curve that give these divisors; None where they are no such curve.

    Between its two wavelengths, 1 / divisor is linear in 1 / wavelength; the line and the largest divisor give all.
    """
    given, wavelengths = np.asarray(divisors), 2 * math.pi * theta ** (np.arange(0, rotary, 2) / rotary)
    factor = float(given.max())
    between = (given > 1 + 1e-4) & (given < factor * (1 - 1e-4))
    if between.sum() < 2:
        return None
    smooth = (1 / given[between] - 1 / factor) / (1 - 1 / factor)
    slope, intercept = np.polyfit(1 / wavelengths[between], smooth, 1)
    if not intercept < 0 < slope:
        return None
    band = -1 / intercept  # high_freq_factor - low_freq_factor, with the latter 1, as published
    original = round(float(slope * band))
    high = round(1 + float(band), 3)
    smooth = np.clip((original / wavelengths - 1) / (high - 1), 0, 1)
    if not np.allclose(1 / given, (1 - smooth) / factor + smooth, rtol=1e-3, atol=0):
        return None
    return {
        "rope_type": "llama3",
        "factor": round(factor, 4),
        "low_freq_factor": 1.0,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
