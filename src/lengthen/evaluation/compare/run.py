"""The comparison: all sides asked the same, and their answers and losses paired."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lengthen.errors import LengthenError, ModelError
from lengthen.evaluation.answers import ScoredAnswer, ask
from lengthen.evaluation.compare.benchmarks import Benchmarks, Scored, benchmark_rows, score_benchmarks
from lengthen.evaluation.compare.pair import Pair
from lengthen.evaluation.compare.paired import long_perplexity, perplexity_rows, score_rows
from lengthen.evaluation.compare.probes import Probe
from lengthen.evaluation.compare.verdict import verdict
from lengthen.evaluation.document_losses import document_losses
from lengthen.evaluation.haystack import Haystack
from lengthen.progress import progress_bar
from lengthen.results import Comparison

__all__ = ["Measurement", "Questionnaire", "Side", "compare", "comparison_header", "judge", "measure"]

Side = Literal["base", "scaled", "run"]


@dataclass(frozen=True)
class Questionnaire:
    """The prompts and documents for every side.

    Attributes:
        probes: questions.
        documents: token ids, each at most the run's context long; each token's loss is measured.
        base_context: of the base, tokens; what is longer it reads by a sliding window.
        context: of the run, tokens.
        names: of the documents, for results.
        evaluator: "base" or "run": whose losses choose the tokens of LongPPL. The base is fair to both, and chooses
            what a context of its own length helps; the run chooses for its whole context, but what it knows itself.
        short_context: tokens, with which LongPPL's other losses are measured; default an eighth of the evaluator's
            context.
        stride: of the base's sliding window, tokens; default half its context. Less is fairer to it, and slower.
        batch_size: prompts or windows that are run together.

    Raises:
        LengthenError: there is nothing to ask, or a setting is out of range.
    """

    probes: Sequence[Probe]
    documents: Sequence[np.ndarray]
    base_context: int
    context: int
    names: Sequence[str] = ()
    evaluator: str = "base"
    short_context: int | None = None
    stride: int | None = None
    batch_size: int = 1

    def __post_init__(self) -> None:
        if not self.probes and not self.documents:
            raise LengthenError("there is nothing to compare: neither questions nor documents")
        if self.evaluator not in ("base", "run"):
            raise LengthenError(f"the evaluator is {self.evaluator!r}; choose base or run")
        if self.documents and not 2 <= self.short < self.longest:
            raise LengthenError(
                f"the short context is {self.short} tokens; it has to be from 2 to below {self.longest}"
            )

    @property
    def longest(self) -> int:
        """Tokens of the longest document."""
        return max(map(len, self.documents), default=2)

    @property
    def short(self) -> int:
        """The short context of LongPPL, tokens."""
        return self.short_context or max(2, min(self.context_of(self.evaluator), self.longest) // 8)

    def context_of(self, side: str) -> int:
        """Tokens that a side reads at once."""
        return self.base_context if side == "base" else self.context

    def stride_of(self, side: str) -> int | None:
        """Tokens that a side's window moves by; None for half of it."""
        return self.stride if side == "base" and self.base_context < self.longest else None

    def tokens(self, side: str) -> int:
        """How many a side has to read, about."""
        windows = [(self.context_of(side), self.stride_of(side))]
        windows += [(self.short, None)] if side == self.evaluator else []
        read = sum(
            context + max(0, len(ids) - context) // (stride or context // 2) * context
            if len(ids) > context
            else len(ids)
            for ids in self.documents
            for context, stride in windows
        )
        return sum(probe.tokens * len(probe.prompts) for probe in self.probes) + read


@dataclass(frozen=True)
class Measurement:
    """Answers and losses of one side.

    Attributes:
        answers: for each probe and prompt, an answer to each question.
        losses: for each document, each token's loss.
        short_losses: the same with a short context, of the one that chooses LongPPL's tokens.
        seconds: that it took, without loading.
    """

    answers: list[list[list[ScoredAnswer]]]
    losses: list[np.ndarray]
    short_losses: list[np.ndarray]
    seconds: float


def compare(
    pair: Pair,
    probes: Sequence[Probe],
    documents: Sequence[np.ndarray],
    *,
    scaled: bool = False,
    evaluator: str = "base",
    short_context: int | None = None,
    stride: int | None = None,
    batch_size: int = 1,
    benchmarks: Benchmarks | None = None,
) -> Comparison:
    """Ask a run and its base the same questions, score the same tokens, and say what of the context is usable.

    Perplexity is over the whole of each document: the run reads it at once, and the base, beyond its own context, by
    a sliding window. Prompts can't slide; where they are longer than the base's context the base is asked all the
    same, and the rows say so.

    Args:
        pair: from `find_pair`.
        probes: what is asked.
        documents: token ids, each at most the run's context long.
        scaled: also ask the base with the run's positions, untrained.
        evaluator, short_context, stride, batch_size: see `Questionnaire`.
        benchmarks: tasks of lm-eval, of base and run; they stand beside the verdict and are no part of it.

    Returns:
        Plain data for a JSON file.

    Raises:
        LengthenError: there is nothing to compare.
        ModelError: a model can't be loaded, or its losses are not finite.
        DataError: data of lm-eval's tasks can't be read or fetched.
    """
    asked = Questionnaire(
        probes, documents, pair.base_context, pair.context, (), evaluator, short_context, stride, batch_size
    )
    sides: list[Side] = ["base", "scaled", "run"] if scaled else ["base", "run"]
    measured: dict[Side, Measurement] = {}
    scored: dict[Side, Scored] = {}
    with pair.models() as models:
        for side in sides:
            with getattr(models, side)() as model:
                if benchmarks is not None and side != "scaled":  # first, as their data may be out of reach
                    scored[side] = score_benchmarks(benchmarks, model, pair.tokenizer, pair.base_context)
                with progress_bar(side, asked.tokens(side), "tokens") as advance:
                    measured[side] = measure(asked, side, model, pair.tokenizer, advance)
    found = judge(asked, measured, pair.base_id if evaluator == "base" else pair.id)
    return {**found, "lm_eval": benchmark_rows(scored["base"], scored["run"])} if scored else found


def comparison_header(
    pair: Pair,
    probes: Sequence[Probe],
    haystack: Haystack,
    names: Sequence[str],
    *,
    lengths: Sequence[int],
    depths: Sequence[float],
    trials: int | Sequence[int],
    seed: int,
) -> dict[str, Any]:
    """What was compared and by which questions, as a results file says it before the results.

    Args:
        pair: run and base.
        probes: questions.
        haystack: the text around what was hidden.
        names: of the documents.
        lengths: of prompt and answer, tokens.
        depths: of what was hidden, 0 to 1.
        trials: prompts at each length; one number for all, or one for each.
        seed: of the questions.
    """
    adapter = pair.options.get("adapter")
    return {
        "model": pair.id,
        **{key: pair.options.get(key) for key in ("dtype", "quantize", "method", "target")},
        "adapter_scale": pair.options.get("adapter_scale", 1.0),
        "adapter": None if adapter is None else str(adapter),
        "base": pair.base_id,
        "context": pair.context,
        "base_context": pair.base_context,
        "lengths": list(lengths),
        "depths": list(depths),
        "trials": trials if isinstance(trials, int) else list(trials),
        "tasks": list(dict.fromkeys(probe.task for probe in probes)),
        "seed": seed,
        "haystack": haystack.to_json(),
        "documents": list(names),
    }


def measure(
    asked: Questionnaire,
    side: Side,
    model: Any,
    tokenizer: Any,
    on_tokens: Callable[[int], None] = lambda _tokens: None,
) -> Measurement:
    """Losses of the documents, and answers to the questions.

    Args:
        asked: what is measured.
        side: which one this is.
        model: a causal language model of transformers, or a PEFT model around one.
        tokenizer: its tokenizer.
        on_tokens: called with the tokens read since the last call.

    Raises:
        ModelError: the losses are not finite.
    """
    model.eval()
    began = time.perf_counter()
    losses: list[np.ndarray] = []
    short_losses: list[np.ndarray] = []
    if asked.documents:
        window = min(asked.context_of(side), asked.longest)
        losses = document_losses(model, asked.documents, window, asked.batch_size, asked.stride_of(side), on_tokens)
        if side == asked.evaluator:
            short_losses = document_losses(model, asked.documents, asked.short, asked.batch_size, on_tokens=on_tokens)
    if not all(np.isfinite(each[1:]).all() for each in losses):
        raise ModelError(
            f"the {side}'s losses are not finite (dtype {getattr(model, 'dtype', 'unknown')}); load it in bfloat16 or "
            "float32"
        )
    answers: dict[int, list[list[ScoredAnswer]]] = {}
    # The longest first: what does not fit the memory fails before much time is spent.
    for place in sorted(range(len(asked.probes)), key=lambda place: -asked.probes[place].tokens):
        prompts, answers[place] = asked.probes[place].prompts, []
        for start in range(0, len(prompts), asked.batch_size):
            batch = prompts[start : start + asked.batch_size]
            answers[place] += ask(model, tokenizer, batch)
            on_tokens(asked.probes[place].tokens * len(batch))
    ordered = [answers[place] for place in range(len(asked.probes))]
    return Measurement(ordered, losses, short_losses, time.perf_counter() - began)


def judge(asked: Questionnaire, measured: Mapping[Side, Measurement], evaluator: str) -> Comparison:
    """Answers and losses of the sides compared, with the verdict.

    Args:
        asked: what was measured.
        measured: of base and run, and of scaled positions where they were measured.
        evaluator: the name of the side that chose LongPPL's tokens.

    Returns:
        Plain data for a JSON file.
    """
    base, run, scaled = measured["base"], measured["run"], measured.get("scaled")
    chosen = base if asked.evaluator == "base" else run
    scores = score_rows(
        asked.probes, base.answers, run.answers, asked.base_context, None if scaled is None else scaled.answers
    )
    perplexity = perplexity_rows(
        base.losses, run.losses, asked.base_context, scaled=None if scaled is None else scaled.losses
    )
    return {
        "verdict": verdict(scores, perplexity, asked.base_context),
        "scores": scores,
        "perplexity": perplexity,
        "long_perplexity": long_perplexity(
            base.losses, run.losses, chosen.losses, chosen.short_losses, evaluator, asked.short
        ),
        "seconds": {side: round(each.seconds, 2) for side, each in measured.items()},
    }
