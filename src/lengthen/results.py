"""The form of every results file: what evaluation writes, and report and ruler read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import NotRequired, TypedDict

from lengthen.errors import DataError

__all__ = [
    "BenchmarkRow",
    "Comparison",
    "GridCell",
    "LongPerplexity",
    "Perplexity",
    "PerplexityPair",
    "PerplexityRow",
    "RulerFile",
    "ScoreRow",
    "SideScore",
    "Verdict",
    "as_interval",
    "check_metrics",
    "check_results",
    "found_curves",
    "rows_of",
]

Count = Annotated[int, Field(ge=0)]
Length = Annotated[int, Field(ge=1)]
Bucket = TypedDict("Bucket", {"from": Count, "to": Count, "perplexity": float | None})


class Interval(TypedDict):
    """A 95% confidence interval; an end of None was too large for a float."""

    low: float | None
    high: float | None


class Perplexity(TypedDict):
    """At one context; a perplexity of None was too large for a float."""

    context: Length
    perplexity: float | None
    interval: NotRequired[Interval | None]
    by_position: NotRequired[list[Bucket]]


class PerplexityFile(TypedDict):
    """The file of `lengthen eval perplexity`, and a run's validation.json."""

    results: Annotated[list[Perplexity], Field(min_length=1)]
    protocol: NotRequired[str]
    documents: NotRequired[list[str]]
    data: NotRequired[list[str]]


class GridCell(TypedDict):
    """A cell of a grid of lengths and depths."""

    tokens: Length
    depth: Annotated[float, Field(ge=0, le=1)]
    trials: Length
    exact: Count
    nats: float
    correct: Count | None


class GridFile(TypedDict):
    """The file of `lengthen eval passkey` and `lengthen eval needle`."""

    results: Annotated[list[GridCell], Field(min_length=1)]
    needles: NotRequired[int]


class RulerAverage(TypedDict):
    """The mean score of RULER's tasks at one length."""

    tokens: Length
    score: float


class RulerScore(RulerAverage):
    """The score of one of RULER's tasks at one length; what the likelihood of its right answers says, beside it."""

    task: str
    trials: NotRequired[Length]
    found: NotRequired[float]
    nats: NotRequired[float]
    right_tokens: NotRequired[float]
    first_wrong: NotRequired[list[Count]]


class RulerFile(TypedDict):
    """Of `lengthen eval ruler`; "context" is what the model was made for, in tokens."""

    results: list[RulerScore]
    averages: Annotated[list[RulerAverage], Field(min_length=1)]
    model: NotRequired[str]
    adapter: NotRequired[str | None]
    method: NotRequired[str | None]
    context: NotRequired[int]
    threshold: NotRequired[float | None]
    effective_context: NotRequired[int | None]


class TaskResult(TypedDict):
    """The score of one task and metric."""

    task: str
    metric: str
    score: float
    samples: NotRequired[int | None]


class TasksFile(TypedDict):
    """The file of `lengthen eval tasks`."""

    results: Annotated[list[TaskResult], Field(min_length=1)]


class MetricsRecord(TypedDict):
    """A line of metrics.jsonl."""

    step: Length
    loss: float
    learning_rate: float
    tokens_per_second: float
    seconds: float
    peak_memory_bytes: Count


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
    "scaled" is the base with the run's positions, untrained, where it was asked too.
    """

    task: str
    tokens: int
    depth: float | None
    prompts: int
    questions: int
    base: SideScore
    run: SideScore
    scaled: NotRequired[SideScore]
    difference: float
    low: float | None
    high: float | None
    beyond_base: bool


class PerplexityPair(TypedDict):
    """Perplexity of both models on the same tokens; "ratio" is run / base, with its 95% interval by a bootstrap over
    documents. None is a number too large for a float.
    """

    base: float | None
    run: float | None
    ratio: float | None
    low: float | None
    high: float | None


_From = TypedDict("_From", {"from": int})


class PerplexityRow(PerplexityPair, _From):
    """Perplexity by position in the document. Beyond its context the base reads by a sliding window."""

    to: int
    tokens: int
    documents: int
    scaled: NotRequired[float | None]
    beyond_base: bool


class LongPerplexity(PerplexityPair):
    """Perplexity of both models on the tokens that a long context helps (LongPPL, arXiv 2410.23771).

    "evaluator" chose them: by its loss with "short_context" tokens being over 2 nats above its loss with its whole
    context, and that below 2 nats. "share" is theirs of all tokens. The evaluator's own perplexity on them is low by
    the choice.
    """

    evaluator: str
    short_context: int
    share: float
    tokens: int


class BenchmarkRow(TypedDict):
    """Both models on a task of lm-eval; "difference" is run - base.

    "low" and "high" are its 95% interval by a bootstrap over samples, None where samples have no score of their own.
    The standard errors are lm-eval's, None where it has none.
    """

    task: str
    metric: str
    samples: int | None
    base: float
    base_stderr: float | None
    run: float
    run_stderr: float | None
    difference: float
    low: float | None
    high: float | None


class Verdict(TypedDict):
    """The verdict of a comparison; see `lengthen.evaluation.compare.verdict.verdict`.

    Files written before short abilities could be undecided have none that are.
    """

    task: str | None
    usable: int | None
    base_usable: int | None
    best: float | None
    best_tokens: int | None
    below: list[int]
    lost: list[str]
    undecided: NotRequired[list[str]]
    kept: list[str]
    fell: bool
    sentence: str


class Comparison(TypedDict):
    """The results; a file also says what was compared, with what, and how."""

    verdict: Verdict
    scores: list[ScoreRow]
    perplexity: list[PerplexityRow]
    long_perplexity: NotRequired[LongPerplexity | None]
    lm_eval: NotRequired[list[BenchmarkRow]]
    seconds: NotRequired[dict[str, float]]


def as_interval(ends: Mapping[str, Any] | None, form: str, none: str = "-") -> str:
    """Both ends of an interval as text.

    Args:
        ends: with "low" and "high".
        form: of each, as `format` takes it.
        none: where there is no interval, or an end was too large for a float.
    """
    if ends is None or ends["low"] is None or ends["high"] is None:
        return none
    return f"{ends['low']:{form}} to {ends['high']:{form}}"


def rows_of(scores: Sequence[ScoreRow], task: str | None) -> list[ScoreRow]:
    """The rows of a task by length, at all depths together.

    Args:
        scores: of a comparison.
        task: whose rows; None, where nothing was asked, has none.
    """
    return [row for row in scores if row["task"] == task and row["depth"] is None]


def found_curves(scores: Sequence[ScoreRow], task: str | None) -> dict[str, dict[int, float]]:
    """The score of a task by length, of each side that was asked: base, scaled, run.

    Args:
        scores: of a comparison.
        task: as in `rows_of`.
    """
    sides: tuple[Literal["base", "scaled", "run"], ...] = ("base", "scaled", "run")
    rows = rows_of(scores, task)
    curves = {side: {row["tokens"]: row[side]["score"] for row in rows if side in row} for side in sides}
    return {side: curve for side, curve in curves.items() if curve}


_FILES: dict[str, TypeAdapter[Any]] = {
    "perplexity": TypeAdapter(PerplexityFile),
    "passkey": TypeAdapter(GridFile),
    "needle": TypeAdapter(GridFile),
    "ruler": TypeAdapter(RulerFile),
    "tasks": TypeAdapter(TasksFile),
    "compare": TypeAdapter(Comparison),
}
_METRICS: TypeAdapter[Any] = TypeAdapter(list[MetricsRecord])


def check_results(kind: str, content: dict[str, Any], path: Path) -> dict[str, Any]:
    """The content of a results file in the form of its kind, without what is not part of it.

    Args:
        kind: perplexity, passkey, needle, ruler, tasks or compare.
        content: of the file.
        path: of the file, for messages.

    Raises:
        DataError: there is no such kind, or something has another form; the first such place is named.
    """
    if kind not in _FILES:
        raise DataError(f"{path} is not a results file of `lengthen eval`; take it away or measure again")
    try:
        checked: dict[str, Any] = _FILES[kind].validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path}: {place}: {first['msg']}; measure again, or take the file away") from error
    return checked


def check_metrics(records: list[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl in their form, without what is not part of it.

    Args:
        records: of metrics.jsonl.
        path: of the file, for messages.

    Raises:
        DataError: one has another form; its line is named.
    """
    try:
        checked: list[dict[str, Any]] = _METRICS.validate_python(records)
    except ValidationError as error:
        line = int(error.errors()[0]["loc"][0]) + 1
        raise DataError(f"{path}, line {line}, is not what a run writes; mend or remove the line") from error
    return checked
