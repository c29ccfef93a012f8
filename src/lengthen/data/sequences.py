"""The training sequences of a run: documents, instructions or a mixture, as its recipe says."""

import logging
from collections.abc import Sequence
from typing import Any

from lengthen.data.blocks import Block
from lengthen.data.counts import any_packed, count_tokens, positions_beyond
from lengthen.data.instruct.dataset import load_instructions, mix, pack_instructions
from lengthen.data.mixture import Mixture
from lengthen.data.packing import pack
from lengthen.data.skip_wise import skip_wise
from lengthen.data.sources import open_mixture
from lengthen.data.tokens import default_cache, load_tokens
from lengthen.errors import DataError
from lengthen.recipe import Recipe

__all__ = ["describe", "is_packed", "training_sequences"]

_LOG = logging.getLogger(__name__)

_LOOKED_AT = 16  # sequences of a mixture that tell how many of its tokens lie beyond the base's context


def training_sequences(
    recipe: Recipe,
    tokenizer: Any,
    config: Any,
    context: int,
    processes: int,
) -> Sequence[Block]:
    """Read, tokenize and pack what a recipe trains on.

    Args:
        recipe: of the run.
        tokenizer: of the base, with the chat template that is meant.
        config: the model's.
        context: of the base, tokens.
        processes: of the run.

    Raises:
        DataError: a document can't be used, or nothing is left to train on.
    """
    if recipe.data.is_mixture:
        return _mixture(recipe, tokenizer, config, context, processes)
    if recipe.data.kind == "instruct":
        return _instruction_blocks(recipe, tokenizer, context)
    vocabulary = config.get_text_config().vocab_size
    data = recipe.data
    store, warnings = load_tokens(data.paths, tokenizer, vocabulary, default_cache(), max_documents=data.max_documents)
    for warning in warnings:
        _LOG.warning("%s", warning)
    store = store.without(data.held_out)
    length = recipe.context.target if data.skip_wise else recipe.sequence_length
    blocks: Sequence[Block] = pack(store, length, data.packing, data.min_tokens, data.max_tokens)
    if data.skip_wise:
        blocks = skip_wise(blocks, recipe.sequence_length, recipe.context.target, recipe.seed)
    tokens = count_tokens(blocks)
    read = f"{len(store)} documents, {tokens:,} tokens in {len(blocks)} sequences"
    if recipe.context.target == context:  # nothing is extended
        _LOG.info("%s", read)
        return blocks
    beyond = positions_beyond(blocks, context)
    _LOG.info(f"{read}; {beyond:.0%} lie beyond the base's {context}")
    _check_beyond(beyond, context)
    return blocks


def _check_beyond(beyond: float, context: int) -> None:
    """Refuse data that teach nothing longer than the base's context."""
    if beyond == 0:
        raise DataError(
            f"no training token lies beyond the base's context of {context} tokens, so nothing longer is learned; "
            "use longer documents, a larger data.sequence_length, or data.packing=concatenate"
        )
    if beyond < 0.25:
        _LOG.warning(f"only {beyond:.0%} of the training tokens lie beyond the base's context; use longer documents")


def _mixture(
    recipe: Recipe,
    tokenizer: Any,
    config: Any,
    context: int,
    processes: int,
) -> Mixture:
    training = recipe.training
    assert training.steps is not None
    count = training.steps * training.accumulation * training.batch_size * processes
    mixture = open_mixture(recipe, tokenizer, config.get_text_config().vocab_size, count)
    _LOG.info(f"{mixture.tokens:,} tokens in {len(mixture)} sequences: {mixture.summary()}")
    if recipe.context.target > context:
        _check_beyond(positions_beyond(mixture[:_LOOKED_AT], context), context)
    return mixture


def _instruction_blocks(recipe: Recipe, tokenizer: Any, context: int) -> list[Block]:
    data = recipe.data
    loaded = load_instructions(
        data.paths,
        tokenizer,
        recipe.sequence_length,
        data.template,
        data.min_tokens,
        data.max_tokens,
        data.max_documents,
    )
    for warning in (warning for source in loaded for warning in source.warnings):
        _LOG.warning("%s", warning)
    examples = mix(loaded, data.weights, recipe.seed)
    blocks = pack_instructions(examples, recipe.sequence_length, data.packing)
    tokens, trained = sum(map(len, examples)), sum(int(example.trained.sum()) for example in examples)
    _LOG.info(
        f"{len(examples)} examples, {tokens:,} tokens in {len(blocks)} sequences, {trained:,} of them trained; "
        f"{positions_beyond(blocks, context):.0%} lie beyond the base's {context}"
    )
    return blocks


def describe(blocks: Sequence[Block]) -> dict[str, Any]:
    """The sequences as run.json has them: their number, tokens and, of a mixture, sources."""
    if isinstance(blocks, Mixture):
        return {"sequences": len(blocks), "tokens": blocks.tokens, "sources": blocks.describe()}
    return {"sequences": len(blocks), "tokens": count_tokens(blocks)}


def is_packed(blocks: Sequence[Block]) -> bool:
    """Whether a sequence has more than one document."""
    return blocks.packed if isinstance(blocks, Mixture) else any_packed(blocks)
