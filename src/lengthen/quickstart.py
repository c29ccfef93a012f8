"""The whole line in two minutes on a laptop: extend the shipped base eightfold and measure it before and after."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import lengthen
from lengthen.data.stdlib import STDLIB
from lengthen.data.tokens import default_cache, load_tokens
from lengthen.errors import DataError
from lengthen.evaluation import PerplexityResult, perplexity
from lengthen.evaluation.plot import plot_by_context
from lengthen.files import write_json
from lengthen.models.load import load_tokenizer
from lengthen.recipe import load_recipe
from lengthen.report import write_report
from lengthen.run_folder import RunFolder
from lengthen.training.run import train

__all__ = ["CONTEXTS", "held_out_documents", "quickstart"]

CONTEXTS = (256, 512, 1024, 2048)
DOCUMENTS = 16


def quickstart(out: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Extend `tiny` from 256 to 2048 tokens and measure base, scaled and extended model.

    All three score the same tokens, the first 2048 of 16 held-out files of the standard library, at each context.

    Args:
        out: a new or empty run folder.
        overrides: of the recipe "quickstart", `section.key=value` each.

    Returns:
        {"seconds", "documents", "base", "scaled", "extended", "by_position", "run"}; the three hold perplexity by
        context, and by_position holds it for each of them by position at the longest one. The run folder also gets
        it, as evals/quickstart.json, perplexity.png and report.html.

    Raises:
        LengthenError: the folder can't be used, or this Python has no standard library sources.
    """
    started = time.perf_counter()
    recipe = load_recipe("quickstart", [f"out={out}", *overrides])
    run = Path(recipe.out or out)
    documents = held_out_documents(recipe.model)
    scaling = {"method": recipe.context.method, "target": recipe.context.target}
    base = _measure(lengthen.load(recipe.model)[0], documents)
    scaled = _measure(lengthen.load(recipe.model, **scaling)[0], documents)
    train(recipe)
    extended = _measure(lengthen.load(str(run))[0], documents)
    measured = {"base": base, "scaled": scaled, "extended": extended}
    curves = {
        name: {context: round(result.perplexity, 3) for context, result in results.items()}
        for name, results in measured.items()
    }
    labels = {"base": "base", "scaled": "scaled, untrained", "extended": "extended"}
    plotted = {labels[name]: curve for name, curve in curves.items()}
    plot_by_context(plotted, run / "perplexity.png", "A 256-token model extended to 2,048 tokens", CONTEXTS[0])
    result = {
        "seconds": round(time.perf_counter() - started, 1),
        "documents": len(documents),
        **{name: {str(context): value for context, value in curve.items()} for name, curve in curves.items()},
        "by_position": {name: results[CONTEXTS[-1]].to_json()["by_position"] for name, results in measured.items()},
        "run": str(run),
    }
    write_json(RunFolder(run).evals / "quickstart.json", result)
    write_report(run)
    return result


def held_out_documents(model: str) -> list[np.ndarray]:
    """The first 2048 tokens of 16 held-out files that have them, spread evenly over the library."""
    tokenizer = load_tokenizer(model)
    store, _ = load_tokens([f"{STDLIB}:validation"], tokenizer, len(tokenizer), default_cache())
    longest = CONTEXTS[-1]
    long_enough = [store[i][:longest] for i in range(len(store)) if len(store[i]) >= longest]
    if len(long_enough) < DOCUMENTS:
        raise DataError(
            f"this Python's library has {len(long_enough)} held-out files of {longest} tokens, but {DOCUMENTS} are "
            "needed; use a Python with its full standard library"
        )
    return [long_enough[i * len(long_enough) // DOCUMENTS] for i in range(DOCUMENTS)]


def _measure(model: Any, documents: list[np.ndarray]) -> dict[int, PerplexityResult]:
    return {context: perplexity(model, documents, context, batch_size=16 * 256 // context or 1) for context in CONTEXTS}
