"""Two models' answers and losses side by side, with intervals of the differences."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lengthen.evaluation.answers import ScoredAnswer, first_wrong_counts
from lengthen.evaluation.bootstrap import bootstrap_interval
from lengthen.evaluation.compare.probes import Probe
from lengthen.evaluation.loss_accumulator import bucket_width
from lengthen.results import LongPerplexity, PerplexityPair, PerplexityRow, ScoreRow, SideScore

__all__ = ["long_perplexity", "perplexity_rows", "position_buckets", "score_rows"]

# Nats that a long context has to gain on a token, and that may be left of its loss.
_HELPED, _KNOWN = 2.0, 2.0


def score_rows(
    probes: Sequence[Probe],
    base: Sequence[Sequence[Sequence[ScoredAnswer]]],
    run: Sequence[Sequence[Sequence[ScoredAnswer]]],
    base_context: int,
    scaled: Sequence[Sequence[Sequence[ScoredAnswer]]] | None = None,
) -> list[ScoreRow]:
    """A row for each probe, and one for each of its depths.

    Intervals are of the mean difference run - base, by a bootstrap over prompts, whose questions are not independent.

    Args:
        probes: what was asked.
        base, run: answers to each question of each prompt of each probe.
        base_context: of the base, tokens.
        scaled: the base's answers with the run's positions; None where it was not asked so.
    """
    rows = []
    for number, probe in enumerate(probes):
        answers = base[number], run[number], None if scaled is None else scaled[number]
        places = range(len(probe.prompts[0].questions) // probe.choices)
        rows.append(_score_row(probe, None, *answers, list(places), base_context))
        if probe.depths is not None and len(probe.depths) > 1:
            rows += [
                _score_row(probe, depth, *answers, [place], base_context)
                for place, depth in zip(places, probe.depths, strict=True)
            ]
    return rows


def _score_row(
    probe: Probe,
    depth: float | None,
    base: Sequence[Sequence[ScoredAnswer]],
    run: Sequence[Sequence[ScoredAnswer]],
    scaled: Sequence[Sequence[ScoredAnswer]] | None,
    places: list[int],
    base_context: int,
) -> ScoreRow:
    def scores(all_answers: Sequence[Sequence[ScoredAnswer]]) -> np.ndarray:
        return np.array([probe.scores(answers) for answers in all_answers])[:, places]

    def summary(all_answers: Sequence[Sequence[ScoredAnswer]]) -> SideScore:
        chosen = [answers[place * probe.choices] for answers in all_answers for place in places]
        return {
            "score": float(scores(all_answers).mean()),
            "nats": float(np.mean([answer.nats for answer in chosen])),
            "right_tokens": float(np.mean([answer.right for answer in chosen])),
            "first_wrong": first_wrong_counts(chosen),
        }

    difference = scores(run) - scores(base)
    low, high = bootstrap_interval(difference.sum(1), np.full(len(difference), len(places))) or (None, None)
    row: ScoreRow = {
        "task": probe.task,
        "tokens": probe.tokens,
        "depth": depth,
        "prompts": len(difference),
        "questions": difference.size,
        "base": summary(base),
        "run": summary(run),
        "difference": float(difference.mean()),
        "low": low,
        "high": high,
        "beyond_base": probe.tokens > base_context,
    }
    if scaled is not None:
        row["scaled"] = summary(scaled)
    return row


def perplexity_rows(
    base: Sequence[np.ndarray],
    run: Sequence[np.ndarray],
    base_context: int,
    scaled: Sequence[np.ndarray] | None = None,
) -> list[PerplexityRow]:
    """Perplexity by position in the document: all positions, those within the base's context, and in buckets.

    "ratio" is the run's perplexity over the base's on the same tokens, with a 95% interval by a bootstrap over
    documents. Beyond its context ("beyond_base") the base's is by a sliding window.

    Args:
        base: each token's loss in each document.
        run: the same tokens' losses.
        base_context: of the base, tokens.
        scaled: the same tokens' losses with the run's positions and nothing trained.
    """
    if not base:
        return []
    longest = max(map(len, base))
    bucket = bucket_width(longest)
    spans = [(0, longest)]
    if base_context < longest:
        spans.append((0, base_context))
    spans += [(start, min(start + bucket, longest)) for start in range(0, longest, bucket)]
    return [
        row
        for span in dict.fromkeys(spans)
        if (row := _perplexity_row(base, run, scaled, *span, base_context)) is not None
    ]


def position_buckets(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The buckets among `perplexity_rows`, in order; the other rows, wider ones, begin at 0 too.

    Args:
        rows: of a comparison, at least one.
    """
    second = min((row["from"] for row in rows if row["from"]), default=max(row["to"] for row in rows))
    return [row for row in rows if row["from"] or row["to"] == second]


def _perplexity_row(
    base: Sequence[np.ndarray],
    run: Sequence[np.ndarray],
    scaled: Sequence[np.ndarray] | None,
    start: int,
    stop: int,
    base_context: int,
) -> PerplexityRow | None:
    first = max(start, 1)  # the first token of a document is predicted by nothing
    pieces = [(b[first:stop], r[first:stop]) for b, r in zip(base, run, strict=True) if len(b) > first]
    if not pieces:
        return None
    sums = np.array([[b.sum(), r.sum()] for b, r in pieces])
    counts = np.array([len(b) for b, _ in pieces])
    row: PerplexityRow = {
        "from": start,
        "to": stop,
        "tokens": int(counts.sum()),
        "documents": len(pieces),
        **_perplexities(sums, counts),
        "beyond_base": stop > base_context,
    }
    if scaled is not None:
        row["scaled"] = _exp(np.concatenate([losses[first:stop] for losses in scaled]).mean())
    return row


def long_perplexity(
    base: Sequence[np.ndarray],
    run: Sequence[np.ndarray],
    long: Sequence[np.ndarray],
    short: Sequence[np.ndarray],
    evaluator: str,
    short_context: int,
) -> LongPerplexity | None:
    """Perplexity on the tokens that an evaluator's long context helps; None where it helps none.

    Args:
        base: each token's loss in each document.
        run: the same tokens' losses.
        long: the evaluator's, with its whole context.
        short: the evaluator's, with `short_context` tokens.
        evaluator: its name.
        short_context: in tokens.

    Source: arXiv 2410.23771 (LongPPL), section 3, with its thresholds alpha = 2 and -beta = 2 nats.
    """
    # A comparison with NaN, the loss of a first token, is False.
    chosen = [
        (at_short - at_long > _HELPED) & (at_long < _KNOWN) for at_short, at_long in zip(short, long, strict=True)
    ]
    counts = np.array([mask.sum() for mask in chosen])
    if not counts.sum():
        return None
    rows = [(b[mask].sum(), r[mask].sum()) for b, r, mask in zip(base, run, chosen, strict=True) if mask.any()]
    sums, counts = np.array(rows), counts[counts > 0]
    return {
        "evaluator": evaluator,
        "short_context": short_context,
        "share": float(counts.sum() / sum(len(each) - 1 for each in base)),
        "tokens": int(counts.sum()),
        **_perplexities(sums, counts),
    }


def _perplexities(sums: np.ndarray, counts: np.ndarray) -> PerplexityPair:
    """Of base and run, from the summed losses of both, (units, 2), and their counts, (units,)."""
    base_loss, run_loss = sums.sum(0) / counts.sum()
    ends = bootstrap_interval(sums[:, 1] - sums[:, 0], counts)
    low, high = (None, None) if ends is None else map(_exp, ends)
    return {
        "base": _exp(base_loss),
        "run": _exp(run_loss),
        "ratio": _exp(run_loss - base_loss),
        "low": low,
        "high": high,
    }


def _exp(loss: float) -> float | None:
    """None for what is too large for a float: JSON has no infinity."""
    try:
        return math.exp(loss)
    except OverflowError:
        return None
