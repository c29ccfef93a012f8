"""The cost of a merge into another base than the one trained over, in perplexity."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lengthen.adapters.folder import trained_over_nf4
from lengthen.adapters.load import load
from lengthen.data.instruct.dataset import load_instructions
from lengthen.data.instruct.templates import use_template
from lengthen.data.tokens import default_cache, load_tokens
from lengthen.errors import DataError
from lengthen.evaluation.sliding_perplexity import perplexity
from lengthen.models.load import load_config, load_tokenizer
from lengthen.models.resolve import resolve_model
from lengthen.recipe import Recipe, load_recipe
from lengthen.run_folder import RunFolder

__all__ = ["documents_to_score", "perplexities"]

DOCUMENTS, TOKENS = 4, 4096
_EXAMPLES = 64
"""Instruction examples to choose from; they are tokenized for this alone."""


def documents_to_score(model: str, adapter: str | None, data: Sequence[str] | None) -> list[np.ndarray] | None:
    """The longest four documents, cut to 4,096 tokens, for `perplexities`.

    Args:
        model: a run folder, or a base with `adapter`.
        adapter: a PEFT folder.
        data: documents; default the run's validation data, else what it was trained on.

    Returns:
        Token ids; None where the base was not in 4 bits, and a merge is what was trained.

    Raises:
        DataError: the data can't be read, or none are named and there is no run to have some.
    """
    if not trained_over_nf4(model, adapter):
        return None
    tokenizer, most = load_tokenizer(model), None
    if data is None:
        if adapter is not None:
            raise DataError("no documents were named")
        recipe = load_recipe(RunFolder(Path(model)).recipe)
        data, most = recipe.data.validation or recipe.data.paths, recipe.data.max_documents
        if recipe.data.kind == "instruct":
            return _examples(recipe, data, tokenizer)
    vocabulary = load_config(resolve_model(model)).get_text_config().vocab_size
    store, _ = load_tokens(data, tokenizer, vocabulary, default_cache(), max_documents=most)
    longest = np.argsort(-store.lengths, kind="stable")[:DOCUMENTS]
    return [store[index][:TOKENS] for index in longest]


def _examples(recipe: Recipe, data: Sequence[str], tokenizer: Any) -> list[np.ndarray]:
    use_template(tokenizer, recipe.data.template)
    most = min(recipe.data.max_documents or _EXAMPLES, _EXAMPLES)
    template, length = recipe.data.template, recipe.sequence_length
    loaded = load_instructions(data, tokenizer, length, template, max_examples=most)
    found = [example.input_ids for source in loaded for example in source.examples]
    return [tokens[:TOKENS] for tokens in sorted(found, key=len, reverse=True)[:DOCUMENTS]]


def perplexities(
    model: str,
    merged: Path,
    adapter: str | None,
    documents: Sequence[np.ndarray],
    adapter_scale: float = 1.0,
) -> dict[str, float]:
    """Perplexity of what was trained and of what it was merged into.

    Args:
        model: a run folder, or a base with `adapter`.
        merged: the folder of the merge.
        adapter: a PEFT folder.
        documents: from `documents_to_score`.
        adapter_scale: the share of the adapter that was merged.

    Returns:
        "trained", "merged" and how many "tokens" were scored.
    """
    trained, _ = load(model, adapter=adapter, adapter_scale=adapter_scale)
    context = min(TOKENS, trained.config.get_text_config().max_position_embeddings)
    documents = [tokens[:context] for tokens in documents]
    before = perplexity(trained, documents, context)
    del trained
    after = perplexity(load(merged)[0], documents, context)
    return {"trained": before.perplexity, "merged": after.perplexity, "tokens": before.tokens}
