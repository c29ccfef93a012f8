"""The form of a comparison's results, for those who write it and those who read it."""

from typing_extensions import NotRequired, TypedDict

__all__ = ["Comparison", "LongPerplexity", "PerplexityRow", "ScoreRow", "SideScore", "Verdict"]


class SideScore(TypedDict):
    """Of one model on the questions of a row.

    "score" is the mean of 0 to 1, "nats" the mean loss of the right answer's tokens, "right_tokens" the mean share of
    them that are the most likely ones, and "first_wrong" counts the answers by the place of their first token that is
    not.
    """

    score: float
    nats: float
    right_tokens: float
    first_wrong: list[int]


class ScoreRow(TypedDict):
    """Both models on the same questions: of a task, at a length, at one depth or (None) at all of them.

    "difference" is run - base, "low" and "high" its 95% interval by a bootstrap over prompts (None for one prompt).
    """

    task: str
    tokens: int
    depth: float | None
    prompts: int
    questions: int
    base: SideScore
    run: SideScore
    difference: float
    low: float | None
    high: float | None
    beyond_base: bool


PerplexityRow = TypedDict(
    "PerplexityRow",
    {
        "from": int,
        "to": int,
        "tokens": int,
        "documents": int,
        "base": float | None,
        "run": float | None,
        "ratio": float | None,
        "low": float | None,
        "high": float | None,
        "beyond_base": bool,
    },
)
"""Perplexity of both models on the same tokens, by position in the document; "ratio" is run / base, with its 95%
interval by a bootstrap over documents. None is a number too large for a float."""


class LongPerplexity(TypedDict):
    """Perplexity of both models on the tokens that a long context helps (LongPPL, arXiv 2410.23771).

    "evaluator" chose them: by its loss with "short_context" tokens being over 2 nats above its loss with its whole
    context, and that below 2 nats. "share" is theirs of all tokens. The evaluator's own perplexity on them is low by
    the choice.
    """

    evaluator: str
    short_context: int
    share: float
    tokens: int
    base: float | None
    run: float | None
    ratio: float | None
    low: float | None
    high: float | None


class Verdict(TypedDict):
    """What a comparison says; see `lengthen.evaluation.compare.verdict.verdict`."""

    usable: int | None
    base_usable: int | None
    best: float | None
    best_tokens: int | None
    below: list[int]
    lost: list[str]
    kept: list[str]
    fell: bool
    sentence: str


class Comparison(TypedDict):
    """The results; a file also says what was compared, with what, and how."""

    verdict: Verdict
    scores: list[ScoreRow]
    perplexity: list[PerplexityRow]
    long_perplexity: NotRequired[LongPerplexity | None]
    seconds: NotRequired[dict[str, float]]
