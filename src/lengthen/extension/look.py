"""The first look: what the base and the data are, in three lines, and which documents are kept to be measured on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedConfig

from lengthen.context import available_methods, base_context
from lengthen.data.token_store import TokenStore
from lengthen.data.tokens import default_cache, load_tokens
from lengthen.doctor.model import s2_of
from lengthen.errors import ContextError, DataError
from lengthen.extension.request import ExtendRequest
from lengthen.models.load import load_config, load_tokenizer, quiet_transformers, read_context
from lengthen.models.resolve import ModelSource, resolve_base
from lengthen.quantization import check_not_quantized
from lengthen.recipe import Recipe

__all__ = ["Look", "check_base", "choose_held_out", "look", "read"]

# Best first. A base whose positions are scaled already takes the method that it has: longrope, which needs lists, is
# taken where the base brings them.
_METHODS = ("yarn", "llama3", "ntk", "linear", "longrope")
_MOST_HELD_OUT = 8  # documents
_HELD_OUT_SHARE = 0.15  # of all tokens, at most


@dataclass(frozen=True)
class Look:
    """The base and the data, as they were found.

    Attributes:
        source: where the base is.
        config: the base's.
        context: the base's, tokens.
        method: of position scaling, the best that this base takes.
        lines: base, positions and data, a line each, for people.
        warnings: of the data.
        held_out: names of documents of the data that are kept from training; empty where others were named to measure
            on, or where the data are too few to keep any.
        longest: tokens of the longest document that is trained on.
    """

    source: ModelSource
    config: PreTrainedConfig
    context: int
    method: str
    lines: tuple[str, ...]
    warnings: tuple[str, ...]
    held_out: tuple[str, ...]
    longest: int


def check_base(request: ExtendRequest, stated: int | None) -> tuple[ModelSource, PreTrainedConfig, int]:
    """Where the base is, its config and its context, if it can be extended as far as asked.

    Args:
        request: what was asked for.
        stated: the base's context, where its files leave it open and the recipe says it.

    Raises:
        ModelError: it can't be found or read, or is no base.
        ContextError: its context is as long already.
    """
    source = resolve_base(request.model)
    config = load_config(source, stated)
    check_not_quantized(config)
    context = base_context(config)
    if request.to <= context:
        raise ContextError(
            f"{source.id} has a context of {context:,} tokens already, so there is nothing to extend to "
            f"{request.to:,}; ask for more than {context:,}, or use it as it is"
        )
    return source, config, context


def read(
    paths: tuple[str, ...], tokenizer: Any, config: PreTrainedConfig, on_read: Callable[[], None] = lambda: None
) -> tuple[TokenStore, list[str]]:
    """The documents of some paths in tokens, from the cache where they were read before; and warnings.

    Args:
        paths: files, folders, token files, or datasets by name.
        tokenizer: of the base.
        config: of the base; ids must have rows in its embeddings.
        on_read: as in `load_tokens`.

    Raises:
        DataError: a source can't be read, or has ids beyond the vocabulary.
    """
    return load_tokens(paths, tokenizer, config.get_text_config().vocab_size, default_cache(), on_read=on_read)


def look(request: ExtendRequest, recipe: Recipe, on_read: Callable[[], None] = lambda: None) -> Look:
    """Look at the base and at the data.

    Args:
        request: what was asked for.
        recipe: as far as it is decided; its data section says how documents become sequences.
        on_read: as in `load_tokens`.

    Raises:
        LengthenError: the base can't be extended so, or the data can't be read or have nothing long enough.
    """
    source, config, context = check_base(request, recipe.context.base)
    tokenizer = load_tokenizer(request.model)
    store, warnings = read(request.data, tokenizer, config, on_read)
    lengths = store.lengths
    held_out = () if request.eval_data or recipe.data.held_out else choose_held_out(store, request.to)
    trained = store.without([*held_out, *recipe.data.held_out])
    if recipe.data.packing == "documents":
        _check_long_enough(trained, context, request.to)
    beyond = int(np.maximum(lengths - context, 0).sum()) / max(1, int(lengths.sum()))
    stated = read_context(source, recipe.context.base)
    with quiet_transformers():
        methods, reason = available_methods(config)
    methods = [each for each in methods if each != "none"]
    method = next((each for each in _METHODS if each in methods), None)
    if method is None:
        raise ContextError(f"the positions of {source.id} can't be scaled: {reason}")
    kept = f"; {len(held_out)} kept to measure on" if held_out else ""
    lines = (
        f"base: {source.id}, {config.model_type}, {context:,} tokens by {stated.source}",
        f"positions: scaled by {method}, takes {', '.join(methods)}; S2: {s2_of(config)}",
        f"data: {len(store):,} documents, {int(lengths.sum()):,} tokens, {beyond:.0%} of them beyond {context:,}; the "
        f"longest has {int(lengths.max()):,}{kept}",
    )
    longest = int(trained.lengths.max())
    if longest < request.to and recipe.data.packing == "documents":
        warnings.append(
            f"no document is as long as {request.to:,} tokens (the longest has {longest:,}): beyond that, only facts "
            "in joined documents are trained on and measured"
        )
    return Look(source, config, context, method, lines, tuple(warnings), held_out, longest)


def choose_held_out(store: TokenStore, target: int) -> tuple[str, ...]:
    """Documents to measure on: long ones, spread over the data, with at most 15% of the tokens.

    Args:
        store: all documents.
        target: tokens; documents that have them are preferred.
    """
    lengths = store.lengths
    enough = np.nonzero(lengths >= target)[0]
    if len(enough) < 2:
        enough = np.sort(np.argsort(-lengths, kind="stable")[: len(lengths) // 2])
    room = _HELD_OUT_SHARE * lengths.sum()
    for count in range(min(_MOST_HELD_OUT, len(enough)), 0, -1):
        chosen = enough[[(2 * i + 1) * len(enough) // (2 * count) for i in range(count)]]
        names = [store.names[index] for index in chosen]
        # Names are what a recipe keeps documents apart by.
        if lengths[chosen].sum() <= room and all(store.names.count(name) == 1 for name in names):
            return tuple(names)
    return ()


def _check_long_enough(store: TokenStore, context: int, target: int) -> None:
    """Refuse documents of which none goes beyond the base's context."""
    lengths = store.lengths
    longest = int(lengths.max())
    if longest > context:
        return
    half = lengths[lengths > longest // 2]
    raise DataError(
        f"no document is longer than the base's context of {context:,} tokens: the longest has {longest:,}, and "
        f"{half.sum() / lengths.sum():.0%} of the tokens are in documents over {longest // 2:,}; so they allow no "
        f"target beyond {longest:,}, not {target:,}; give longer ones, or join short ones with data.packing=concatenate"
    )
