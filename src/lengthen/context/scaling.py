"""Position scaling: from a base's config and a target context to a new config, by each method's formula.

`gguf.py` has the inverse of one: Llama 3's parameters from the divisors in a file.

The scaled config must be in place before the model is built, since transformers computes the rotary frequencies then.

| method  | what it does                                                    | source                     |
|---------|-----------------------------------------------------------------|----------------------------|
| linear  | positions divided by ceil(target / context)                     | arXiv 2306.15595           |
| ntk     | a fixed raised base, theta' = theta * s^(d/(d-2))               | arXiv 2309.00071, sec. 3.1 |
| yarn    | high frequencies kept, low ones divided by s, scores warmed     | arXiv 2309.00071           |
| llama3  | as yarn in kind, with Llama 3.1's smooth band                   | arXiv 2407.21783           |
| theta   | a given base                                                    | arXiv 2309.16039           |
| longrope| one factor per frequency, lists from the base or the recipe     | arXiv 2402.13753           |
| none    | the positions as they are, only the maximum raised              |                            |
"""

import copy
import math
import warnings
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from lengthen.context.layers import (
    AttentionLayer,
    attention_layers,
    has_no_positions,
    keep_windows_open,
    rotary_dimension,
    text_config,
)
from lengthen.context.stated import base_context
from lengthen.errors import ContextError, one_line

__all__ = ["METHODS", "available_methods", "extend", "scaled_layers"]

# The band of Llama 3.1's scaling, as published with its weights.
_LLAMA3_BAND = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}


def extend(
    config: PreTrainedConfig,
    context: int,
    method: str = "linear",
    *,
    factor: float | None = None,
    theta: float | None = None,
    short_factor: list[float] | None = None,
    long_factor: list[float] | None = None,
) -> PreTrainedConfig:
    """Scale the positions of a config so that a model built from it takes `context` tokens.

    A base that is scaled already composes: the same type multiplies the factors and keeps the first original
    maximum; `theta` and `ntk` apply over an unscaled base only; anything else is refused.

    Args:
        config: the base's; left as it is.
        context: target, in tokens; above the base's context. With method "none" it may also be just that, to train
            without extending anything: the config stays as it is.
        method: one of `METHODS`.
        factor: s, how far the base's context is stretched; default target / context, for "linear" rounded up to a
            whole number, as LongLoRA does.
        theta: the new RoPE base; for "theta" only, and needed there.
        short_factor: "longrope" only: one factor per frequency for inputs within the original maximum.
        long_factor: "longrope" only: the same for longer inputs. Both default to the base's own lists.

    Returns:
        A copy with `rope_parameters`, `original_max_position_embeddings` and `max_position_embeddings` set.

    Raises:
        ContextError: nothing to scale, a target not above the base's context, scalings that don't compose, or that
            the architecture does not take.

    Warns:
        UserWarning: window layers share the RoPE parameters that are scaled.
    """
    if method not in METHODS:
        raise ContextError(f"unknown position scaling {method!r}; choose one of {', '.join(METHODS)}")
    scaled, sharing = _layers_for(config, method)
    current = base_context(config)
    if context == current and method == "none":
        return copy.deepcopy(config)
    if context <= current:
        raise ContextError(
            f"context.target is {context} tokens, but the base has {current}; choose a larger target, or exactly that "
            "with context.method=none to train without extending"
        )
    if factor is None:
        factor = math.ceil(context / current) if method == "linear" else context / current
    elif factor * current < context:
        raise ContextError(
            f"context.factor {factor:g} stretches the base's {current} tokens to {factor * current:g}, below target "
            f"{context}; leave it out or use at least {context / current:g}"
        )
    scaling = _Scaling(method, factor, theta, short_factor, long_factor)
    _check_options(scaling)
    extended = _scaled(config, context, scaling)
    problem = _refusal(extended, method)
    if problem is not None:
        raise ContextError(f"{problem}; it takes context.method={' or '.join(available_methods(config)[0])}")
    if sharing:
        warnings.warn(
            f"{len(sharing)} window layers of {text_config(config).model_type} share their RoPE parameters with its "
            f"{len(scaled)} whole-context layers, so their positions are scaled too",
            stacklevel=2,
        )
    return extended


def available_methods(config: PreTrainedConfig) -> tuple[list[str], str]:
    """The methods that take a base to twice its context, and why the first of the others doesn't ("" for none of them).

    "theta" is among them with a base, and "longrope" with lists of factors, that a recipe would give.

    Args:
        config: the base's.
    """
    found, problems = [], []
    for method in METHODS:
        try:
            _layers_for(config, method)
            scaling = _Scaling(method, 2.0, **_example_options(config, method))
            problem = _refusal(_scaled(config, 2 * base_context(config), scaling), method)
        except ContextError as error:
            problem = str(error)
        if problem is None:
            found.append(method)
        else:
            problems.append(problem)
    return found, problems[0] if problems else ""


def _example_options(config: PreTrainedConfig, method: str) -> dict[str, Any]:
    """What a method can't do without, and a base doesn't bring."""
    if method == "theta":
        return {"theta": 1e7}
    if method == "longrope":
        text = text_config(config)
        rope = scaled_layers(text)[0][0].rope or {}
        if "long_factor" not in rope:
            ones = [1.0] * (rotary_dimension(text, rope) // 2)
            return {"short_factor": ones, "long_factor": ones}
    return {}


@dataclass(frozen=True)
class _Scaling:
    """How positions are to be scaled; its fields are the arguments of `extend`."""

    method: str
    factor: float
    theta: float | None = None
    short_factor: list[float] | None = None
    long_factor: list[float] | None = None


def _scaled(config: PreTrainedConfig, context: int, scaling: _Scaling) -> PreTrainedConfig:
    """A copy of a config with the RoPE parameters of its whole-context layers scaled, and its maxima written."""
    extended = copy.deepcopy(config)
    text = text_config(extended)
    rope: dict[str, Any] = {}
    if scaling.method != "none":
        rope = scaled_layers(text)[0][0].rope or {}
        _check_composition(text, rope, scaling.method)
    original = getattr(text, "original_max_position_embeddings", None)
    original = original or rope.get("original_max_position_embeddings") or text.max_position_embeddings
    if scaling.method != "none":
        _SCALE[scaling.method](rope, scaling, rotary_dimension(text, rope), original)
    keep_windows_open(text, context)
    text.original_max_position_embeddings = original
    text.max_position_embeddings = context
    return extended


def _refusal(config: PreTrainedConfig, method: str) -> str | None:
    """Why an architecture's own config class does not take these RoPE parameters; None where it does."""
    text = text_config(config)
    try:
        text.validate_rope()
    except Exception as error:  # what these checks raise differs by architecture
        return f"{text.model_type} can't have its positions scaled by {method} ({one_line(error)})"
    return None


def _layers_for(config: PreTrainedConfig, method: str) -> tuple[list[AttentionLayer], list[AttentionLayer]]:
    """The `scaled_layers` of a method; those of "none" are none.

    Positions that are embeddings have none for a later token; attention without positions goes on as it is.
    """
    if method != "none":
        return scaled_layers(config)
    if not has_no_positions(config) and not any(layer.rope for layer in attention_layers(config)):
        raise ContextError(
            f"{text_config(config).model_type} has no RoPE in its layers; only RoPE bases can be extended"
        )
    return [], []


def scaled_layers(config: PreTrainedConfig) -> tuple[list[AttentionLayer], list[AttentionLayer]]:
    """The layers whose positions a longer context scales, and the window layers that share their RoPE parameters.

    Layers that attend to the whole context meet distances they never saw; window layers don't, and are left alone
    where their parameters are their own.

    Raises:
        ContextError: there is nothing to scale, with the reason.
    """
    layers, name = attention_layers(config), text_config(config).model_type
    if not any(layer.rope for layer in layers):
        advice = "only RoPE bases can be extended"
        if has_no_positions(config):
            advice = "train it for a longer context with context.method=none"
        raise ContextError(f"{name} has no RoPE in its layers, so there is nothing to scale; {advice}")
    whole = _whole_context(layers, name)
    scaled = [layer for layer in whole if layer.rope]
    if not scaled:
        raise ContextError(
            f"{name} has RoPE in its window layers only, which a longer context does not change, and no positions in "
            f"the {len(whole)} layers that see all of it: there is nothing to scale; train it for the longer context "
            "with context.method=none"
        )
    if any(layer.rope is not scaled[0].rope for layer in scaled):
        raise ContextError(f"the whole-context layers of {name} rotate positions in several ways; none can be scaled")
    return scaled, [layer for layer in layers if layer.window is not None and layer.rope is scaled[0].rope]


def _whole_context(layers: list[AttentionLayer], name: str) -> list[AttentionLayer]:
    whole = [layer for layer in layers if layer.window is None]
    if not whole:
        raise ContextError(
            f"every attention layer of {name} sees a window of {max(layer.window or 0 for layer in layers)} tokens, so "
            "none could use a longer context; if the model can do without (sliding_window: null in its config.json), "
            "extend it so"
        )
    return whole


def _check_options(scaling: _Scaling) -> None:
    method, theta = scaling.method, scaling.theta
    if method == "theta" and not (theta and theta > 1):
        raise ContextError(f"context.method=theta needs context.theta, the new RoPE base, above 1; it is {theta}")
    if method != "theta" and theta is not None:
        raise ContextError(f"context.theta is for context.method=theta; the method is {method}")
    if method != "longrope" and (scaling.short_factor is not None or scaling.long_factor is not None):
        raise ContextError(f"short_factor and long_factor are for context.method=longrope; the method is {method}")


def _check_composition(config: PreTrainedConfig, rope: dict[str, Any], method: str) -> None:
    present = rope["rope_type"]
    if method == "none":
        return
    if present == "default":
        # ntk and theta leave the type "default": the recorded original maximum tells that they were applied.
        raised = getattr(config, "original_max_position_embeddings", None)
        if raised and raised < config.max_position_embeddings and method not in ("ntk", "theta"):
            raise ContextError(
                f"the base's RoPE base was raised already (from {raised} to {config.max_position_embeddings} tokens); "
                f"{method} does not compose with that; use ntk or theta"
            )
    elif present != method:
        advice = f"use context.method={present}" if present in METHODS else "take another base"
        raise ContextError(
            f"the base is scaled already with {present!r}, which {method!r} does not compose with; {advice}"
        )


# Each changes the RoPE parameters of a config: how, its rotary dimension d, and its first maximum in tokens.


def _raise_base(rope: dict[str, Any], scaling: _Scaling, rotary: int, _original: int) -> None:
    rope["rope_theta"] *= scaling.factor ** (rotary / (rotary - 2))


def _set_base(rope: dict[str, Any], scaling: _Scaling, _rotary: int, _original: int) -> None:
    assert scaling.theta is not None
    rope["rope_theta"] = float(scaling.theta)


def _multiply_factor(rope: dict[str, Any], scaling: _Scaling, _rotary: int, _original: int) -> None:
    _drop_default_attention_factor(rope)
    rope["factor"] = float(rope.get("factor") or 1.0) * scaling.factor
    rope["rope_type"] = scaling.method


def _multiply_yarn(rope: dict[str, Any], scaling: _Scaling, rotary: int, original: int) -> None:
    _multiply_factor(rope, scaling, rotary, original)
    rope["original_max_position_embeddings"] = original


def _multiply_llama3(rope: dict[str, Any], scaling: _Scaling, rotary: int, original: int) -> None:
    if rope["rope_type"] == "default":
        rope.update(_LLAMA3_BAND)
    _multiply_yarn(rope, scaling, rotary, original)


def _set_longrope(rope: dict[str, Any], scaling: _Scaling, rotary: int, original: int) -> None:
    short, long = scaling.short_factor, scaling.long_factor
    rope["original_max_position_embeddings"] = original
    if short is None and long is None and rope["rope_type"] == "longrope":
        rope["long_factor"] = [value * scaling.factor for value in rope["long_factor"]]
        return
    if short is None or long is None:
        raise ContextError("longrope needs context.short_factor and context.long_factor; the base brings none")
    for name, values in (("short_factor", short), ("long_factor", long)):
        if len(values) != rotary // 2:
            raise ContextError(
                f"context.{name} has {len(values)} values; this base has {rotary // 2} rotary frequencies"
            )
    rope.update(rope_type="longrope", short_factor=list(short), long_factor=list(long))


def _drop_default_attention_factor(rope: dict[str, Any]) -> None:
    """A written-out default must follow the new factor; one that was chosen can't be scaled by a rule."""
    written = rope.get("attention_factor")
    if written is None:
        return
    default = 0.1 * math.log(rope.get("factor") or 1.0) + 1.0
    if not math.isclose(written, default, rel_tol=1e-3):
        raise ContextError(
            f"the base's YaRN has an attention_factor of its own ({written}; the default is {default:.4f}), and no "
            "rule says what it becomes for a longer context; take another method or base"
        )
    del rope["attention_factor"]


_SCALE = {
    "linear": _multiply_factor,
    "ntk": _raise_base,
    "yarn": _multiply_yarn,
    "llama3": _multiply_llama3,
    "theta": _set_base,
    "longrope": _set_longrope,
}
METHODS = (*_SCALE, "none")
