"""The context that a base's maker states: which number of its files it is, and what to do where they leave it open."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from lengthen.context.layers import rope_by_type, text_config
from lengthen.errors import ContextError

__all__ = ["LENGTH_FIELDS", "StatedContext", "base_context", "settle_context", "state_lengths", "stated_context"]

# Names of the context in configs beside max_position_embeddings, which alone decides what a model computes.
LENGTH_FIELDS = ("max_sequence_length", "model_max_length", "seq_length", "max_seq_length")
# Context lengths that models are pretrained at, before any linear interpolation.
_PRETRAINED = range(2048, 32768 + 1)


@dataclass(frozen=True)
class StatedContext:
    """How long a base's context is.

    Attributes:
        tokens: the context.
        source: where the number comes from, for people.
    """

    tokens: int
    source: str


def base_context(config: PreTrainedConfig) -> int:
    """The context a model was made for, in tokens: see `stated_context`.

    Raises:
        ContextError: the config does not say, or leaves it open.
    """
    return stated_context(config).tokens


def stated_context(
    config: PreTrainedConfig, given: int | None = None, statements: Iterable[tuple[int, str]] = ()
) -> StatedContext:
    """The context that a base's maker states, and where the number comes from.

    That is `max_position_embeddings`. Two kinds of config keep the maximum from before their scaling there: YaRN as
    Qwen's model cards have it added and Yarn-Mistral has it, and vicuna's and LongLoRA's linear scaling. YaRN's factor
    is by definition what the original maximum, which stands beside it, was stretched by: their product is the context.
    Linear scaling names no original, and looks as in bases whose maximum is scaled already (deepseek-coder); what else
    their folder states decides, and then which of both can have been a pretraining length. Where that decides nothing,
    nothing is guessed.

    Args:
        config: the base's.
        given: what the user states, tokens; decides.
        statements: other lengths in the base's folder, tokens, with what states them.

    Raises:
        ContextError: the config does not say, or leaves it open.
    """
    if given is not None:
        return StatedContext(given, "stated by the user")
    text = text_config(config)
    readings = _readings(text)
    if len(readings) == 1:
        return readings[0]
    tokens = [reading.tokens for reading in readings]
    stated = {number: source for number, source in statements if number in tokens}
    if len(stated) == 1:
        ((number, source),) = stated.items()
        return StatedContext(number, f"{source}, which decides between {tokens[0]} and {tokens[1]}")
    rope = _scaled_rope(text)
    plausible = [reading for reading in readings if reading.tokens / rope["factor"] in _PRETRAINED]
    if rope["rope_type"] == "linear" and len(plausible) == 1:
        return plausible[0]
    raise ContextError(
        f"the context of this {text.model_type} is not clear: {readings[0].tokens} tokens ({readings[0].source}) or "
        f"{readings[1].tokens} ({readings[1].source}); say which with context.base in a recipe, or `base_context`"
    )


def settle_context(
    config: PreTrainedConfig, given: int | None = None, statements: Iterable[tuple[int, str]] = ()
) -> PreTrainedConfig:
    """Write the stated context into a config's `max_position_embeddings`, and the maximum that stood there beside it.

    No frequency changes by that, and whoever reads the config later (a run, an export, other tools) finds the context.
    A context that is not clear stays so; `base_context` then says why.

    Args:
        config: changed in place.
        given: as in `stated_context`.
        statements: as in `stated_context`.

    Raises:
        ContextError: the config has no maximum beside which the given context could stand.
    """
    text = text_config(config)
    try:
        context = stated_context(config, given, statements).tokens
    except ContextError:
        return config
    rope, maximum = _scaled_rope(text), _maximum(text)
    text.max_position_embeddings = context
    says_it = [reading.tokens for reading in _readings(text)] == [context]
    if rope["rope_type"] != "default" and (context > maximum or not says_it):
        original = rope.get("original_max_position_embeddings") or round(context / (rope.get("factor") or 1.0))
        text.original_max_position_embeddings = original
    return config


def _scaled_rope(text: PreTrainedConfig) -> dict[str, Any]:
    """The parameters that tell how the context was reached: those that scale, where layers differ."""
    every = rope_by_type(text)
    scaled = [rope for rope in every if rope.get("rope_type", "default") != "default"]
    return (scaled or every or [{"rope_type": "default"}])[0]


def _maximum(text: PreTrainedConfig) -> int:
    for name in ("max_position_embeddings", "max_seq_len"):
        maximum = getattr(text, name, None)
        if isinstance(maximum, int):
            return maximum
    raise ContextError(f"{text.model_type} has no max_position_embeddings in its config; add the base's context there")


def _readings(text: PreTrainedConfig) -> list[StatedContext]:
    """The contexts that a config can mean, one or two."""
    maximum = _maximum(text)
    rope = _scaled_rope(text)
    kind, factor = rope["rope_type"], rope.get("factor") or 1.0
    as_written = StatedContext(maximum, "max_position_embeddings")
    before = getattr(text, "original_max_position_embeddings", None)
    if before and before < maximum:  # both maxima stand there, so the later one is the scaled one
        return [as_written]
    # Command R keeps a shorter maximum beside the context that it was trained for.
    longer = getattr(text, "model_max_length", None)
    if kind == "default" and isinstance(longer, int) and longer > maximum:
        return [StatedContext(longer, "model_max_length")]
    if factor == 1 or kind not in ("linear", "yarn", "llama3", "longrope"):
        return [as_written]
    original = rope.get("original_max_position_embeddings") or before
    if original is not None:
        return _readings_by_original(as_written, original, kind, factor)
    if kind != "linear":
        return [as_written]
    product = f"max_position_embeddings times the {kind} factor {factor:g}"
    return [as_written, StatedContext(int(maximum * factor), product)]


def _readings_by_original(as_written: StatedContext, original: int, kind: str, factor: float) -> list[StatedContext]:
    """The contexts that scaled positions with a stated original maximum can mean."""
    maximum = as_written.tokens
    scaled = StatedContext(int(original * factor), f"original maximum {original} times the {kind} factor {factor:g}")
    if scaled.tokens <= maximum:
        return [as_written]
    if kind == "yarn" and original <= maximum:  # Qwen2.5, and Qwen3, whose maximum has room for an answer
        return [scaled]
    # llama3's factor is none of the context (32 in Llama 3.2, which is 16 times as long as its original maximum).
    return [as_written] if original < maximum else [as_written, scaled]


def state_lengths(model: Any, context: int) -> None:
    """Have every file of a model folder state the same context, before it is written.

    Beside `max_position_embeddings`, older configs keep a length under other names, and a generation config may limit
    prompt and answer together (vicuna's `max_length`), so that plain `generate` would refuse what the context allows.

    Args:
        model: a transformers model; its config and generation config are changed.
        context: tokens.
    """
    text = text_config(model.config)
    for name in LENGTH_FIELDS:
        if isinstance(getattr(text, name, None), int):
            setattr(text, name, context)
    generation = getattr(model, "generation_config", None)
    if generation is not None and generation.max_length is not None and generation.max_length < context:
        generation.max_length = None
