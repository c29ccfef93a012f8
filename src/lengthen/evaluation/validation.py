"""A run's measurement of itself at its end, on its validation data."""

import math
from typing import Any

import numpy as np
import torch

from lengthen.adapters.load import load
from lengthen.data.instruct.dataset import load_instructions
from lengthen.data.tokens import default_cache, load_tokens
from lengthen.evaluation.losses import token_losses
from lengthen.evaluation.sliding_perplexity import perplexity
from lengthen.files import write_json
from lengthen.recipe import Recipe
from lengthen.run_folder import RunFolder

__all__ = ["validate"]


def validate(recipe: Recipe, run: RunFolder) -> None:
    """Perplexity of what came out, on the first `context.target` tokens of each validation document.

    Args:
        recipe: of the run, with validation data.
        run: its folder, with what was trained; gets evals/validation.json.

    Raises:
        DataError: the validation data can't be used.
    """
    model, tokenizer = load(run.path)
    if recipe.data.kind == "instruct":
        _validate_answers(recipe, run, model, tokenizer)
        return
    vocabulary = model.config.get_text_config().vocab_size
    store, _ = load_tokens(
        recipe.data.validation, tokenizer, vocabulary, default_cache(), max_documents=recipe.data.max_documents
    )
    documents = [store[i][: recipe.context.target] for i in range(len(store)) if len(store[i]) > 1]
    result = perplexity(model, documents, recipe.context.target)
    write_json(run.validation, {"data": recipe.data.validation, "results": [result.to_json()]})


def _validate_answers(recipe: Recipe, run: RunFolder, model: Any, tokenizer: Any) -> None:
    """Perplexity of the trained tokens (answers) of the validation examples, each read by itself."""
    data = recipe.data
    loaded = load_instructions(
        data.validation, tokenizer, recipe.sequence_length, data.template, max_examples=data.max_documents
    )
    examples = [example for source in loaded for example in source.examples]
    total, count = 0.0, 0
    model.eval()
    for example in examples:
        ids = torch.from_numpy(example.input_ids.astype(np.int64)).to(model.device)
        trained = torch.from_numpy(example.trained[1:])
        total += token_losses(model, ids[None])[0].cpu()[trained].double().sum().item()
        count += int(trained.sum())
    loss = total / count
    result = {"perplexity": math.exp(loss), "loss": loss, "tokens": count, "examples": len(examples)}
    write_json(run.validation, {"data": data.validation, "results": [result]})
