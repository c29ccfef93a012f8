"""The comparison: both models asked the same, and their answers and losses paired."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lengthen.errors import LengthenError, ModelError
from lengthen.evaluation.answers import Answer, ask
from lengthen.evaluation.compare.pair import Pair
from lengthen.evaluation.compare.paired import long_perplexity, perplexity_rows, score_rows
from lengthen.evaluation.compare.probes import Probe
from lengthen.evaluation.compare.verdict import verdict
from lengthen.evaluation.document_losses import document_losses
from lengthen.progress import progress_bar
from lengthen.results import Comparison

__all__ = ["Measured", "compare"]


@dataclass(frozen=True)
class Measured:
    """What one model did.

    Attributes:
        answers: for each probe and prompt, an answer to each question.
        losses: for each document, each token's loss.
        short_losses: the same with a short context, of the one that chooses LongPPL's tokens.
        seconds: that it took, without loading.
    """

    answers: list[list[list[Answer]]]
    losses: list[np.ndarray]
    short_losses: list[np.ndarray]
    seconds: float


def compare(
    pair: Pair,
    probes: Sequence[Probe],
    documents: Sequence[np.ndarray],
    *,
    evaluator: str = "base",
    short_context: int | None = None,
    batch_size: int = 1,
) -> Comparison:
    """Ask a run and its base the same questions, score the same tokens, and say what of the context is usable.

    Perplexity is over the whole of each document: the run reads it at once, and the base, beyond its own context, by
    a sliding window. Prompts can't slide; where they are longer than the base's context the base is asked all the
    same, and the rows say so.

    Args:
        pair: from `find_pair`.
        probes: what is asked.
        documents: token ids, each at most the run's context long.
        evaluator: "base" or "run": whose losses choose the tokens of LongPPL. The base is fair to both, and chooses
            what a context of its own length helps; the run chooses for its whole context, but what it knows itself.
        short_context: tokens, with which LongPPL's other losses are measured; default an eighth of the evaluator's
            context.
        batch_size: prompts or windows that are run together.

    Returns:
        Plain data for a JSON file.

    Raises:
        LengthenError: there is nothing to compare.
        ModelError: a model can't be loaded, or its losses are not finite.
    """
    if not probes and not documents:
        raise LengthenError("there is nothing to compare: neither questions nor documents")
    if evaluator not in ("base", "run"):
        raise LengthenError(f"the evaluator is {evaluator!r}; choose base or run")
    contexts = {"base": pair.base_context, "run": pair.context}
    longest = max(map(len, documents), default=2)
    short = short_context or max(2, min(contexts[evaluator], longest) // 8)
    if documents and not 2 <= short < longest:
        raise LengthenError(f"the short context is {short} tokens; it has to be from 2 to below {longest}")
    measured = {}
    with pair.models() as models:
        for label, opened in zip(contexts, models, strict=True):
            windows = [min(contexts[label], longest), *([short] if label == evaluator else [])]
            with opened() as model:
                measured[label] = _measure(label, model, pair.tokenizer, probes, documents, windows, batch_size)
    base, run, chosen = measured["base"], measured["run"], measured[evaluator]
    scores = score_rows(probes, base.answers, run.answers, pair.base_context)
    perplexity = perplexity_rows(base.losses, run.losses, pair.base_context)
    name = pair.base_id if evaluator == "base" else pair.id
    return {
        "verdict": verdict(scores, perplexity, pair.base_context),
        "scores": scores,
        "perplexity": perplexity,
        "long_perplexity": long_perplexity(base.losses, run.losses, chosen.losses, chosen.short_losses, name, short),
        "seconds": {"base": round(base.seconds, 2), "run": round(run.seconds, 2)},
    }


def _measure(
    label: str,
    model: Any,
    tokenizer: Any,
    probes: Sequence[Probe],
    documents: Sequence[np.ndarray],
    contexts: Sequence[int],
    batch_size: int,
) -> Measured:
    """Losses with the first context and, where there is another, with that; and answers."""
    model.eval()
    total = sum(probe.tokens * len(probe.prompts) for probe in probes) + len(contexts) * sum(map(len, documents))
    began = time.perf_counter()
    with progress_bar(label, total, "tokens") as advance:
        measured: list[list[np.ndarray]] = [[], []]
        for place, context in enumerate(contexts if documents else ()):
            measured[place] = document_losses(model, documents, context, batch_size, advance)
        losses, short_losses = measured
        if not all(np.isfinite(each[1:]).all() for each in losses):
            raise ModelError(
                f"the {label}'s losses are not finite (dtype {getattr(model, 'dtype', 'unknown')}); load it in bfloat16"
                " or float32"
            )
        answers: dict[int, list[list[Answer]]] = {}
        # The longest first: what does not fit the memory fails before much time is spent.
        for place in sorted(range(len(probes)), key=lambda place: -probes[place].tokens):
            prompts, answers[place] = probes[place].prompts, []
            for start in range(0, len(prompts), batch_size):
                batch = prompts[start : start + batch_size]
                answers[place] += ask(model, tokenizer, batch)
                advance(probes[place].tokens * len(batch))
    return Measured([answers[place] for place in range(len(probes))], losses, short_losses, time.perf_counter() - began)
