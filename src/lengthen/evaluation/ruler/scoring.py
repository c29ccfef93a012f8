"""RULER's scores, and the effective context that follows from them."""

import re
from collections.abc import Mapping, Sequence

__all__ = ["PUBLISHED_THRESHOLD", "averages", "effective_context", "match_score"]

PUBLISHED_THRESHOLD = 85.6
"""Llama2-7B's average at its own 4096 tokens, by which the paper decides (section 4)."""


def match_score(answer: str, expected: Sequence[str], match: str) -> float:
    """The score of one answer, 0 to 1, case ignored.

    Args:
        answer: the model's text.
        expected: what it should hold, at least one string.
        match: "all" for the share of `expected` that is found, "any" for 1 if one of them is.
    """
    # As published: control characters count as line ends.
    text = re.sub(r"[\x00-\x1f]", "\n", answer.strip()).strip().lower()
    found = [wanted.lower() in text for wanted in expected]
    return float(any(found)) if match == "any" else sum(found) / len(found)


def averages(scores: Sequence[tuple[int, float]]) -> dict[int, float]:
    """The mean score of all tasks by length, from one (length, score) per task and length; lengths ascend."""
    lengths = sorted({tokens for tokens, _ in scores})
    by_length = {tokens: [score for at, score in scores if at == tokens] for tokens in lengths}
    return {tokens: sum(found) / len(found) for tokens, found in by_length.items()}


def effective_context(by_length: Mapping[int, float], threshold: float) -> int | None:
    """The longest length up to which every tested length scores at least `threshold`; None if the shortest fails.

    Args:
        by_length: average scores by tokens of prompt and answer.
        threshold: the least score of a usable length.
    """
    effective = None
    for tokens in sorted(by_length):
        if by_length[tokens] < threshold:
            break
        effective = tokens
    return effective
