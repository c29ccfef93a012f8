"""What a merge into another base than the one trained over costs, in perplexity."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lengthen
from lengthen.adapters.load import base_record
from lengthen.data.tokens import default_cache, load_tokens
from lengthen.evaluation.sliding_perplexity import perplexity

__all__ = ["perplexities"]

DOCUMENTS, TOKENS = 4, 4096


def perplexities(
    model: str, merged: Path, adapter: str | None, data: Sequence[str] | None, quiet: bool = True
) -> dict[str, Any] | None:
    """Perplexity of what was trained and of what it was merged into, on the first 4,096 tokens of four documents.

    Args:
        model: a run folder, or a base with `adapter`.
        merged: the folder of the merge.
        adapter: a PEFT folder.
        data: documents; default the run's validation documents, else what it was trained on.
        quiet: show no progress.

    Returns:
        "trained", "merged" and how many "tokens" were scored; None where the base was not in 4 bits, or there are
        no documents.
    """
    record = base_record(Path(adapter) if adapter else Path(model) / "adapter")
    if record is None or "quantize" not in record:
        return None
    recipe_file = Path(model) / "recipe.yaml"
    if data is None and recipe_file.is_file():
        recipe = lengthen.load_recipe(recipe_file)
        data = recipe.data.validation or recipe.data.train
    if not data:
        return None
    trained, tokenizer = lengthen.load(model, adapter=adapter)
    vocabulary = trained.config.get_text_config().vocab_size
    store, _ = load_tokens(data, tokenizer, vocabulary, cache=default_cache(), quiet=quiet)
    context = min(TOKENS, trained.config.get_text_config().max_position_embeddings)
    longest = sorted(range(len(store)), key=lambda i: len(store[i]), reverse=True)[:DOCUMENTS]
    documents = [store[i][:context] for i in longest]
    before = perplexity(trained, documents, context, quiet=quiet)
    del trained
    after = perplexity(lengthen.load(merged)[0], documents, context, quiet=quiet)
    return {"trained": before.perplexity, "merged": after.perplexity, "tokens": before.tokens}
