"""The measurement: prompts of every task and length, a model's answers, and their scores."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

from lengthen.errors import DataError, LengthenError
from lengthen.evaluation.answers import ScoredAnswer, ask, first_wrong_counts
from lengthen.evaluation.prompts import Prompt, encode, make_prompt
from lengthen.evaluation.ruler.scoring import averages, match_score
from lengthen.evaluation.ruler.tasks import TASKS, RulerTexts, SampleRequest
from lengthen.progress import progress_bar

__all__ = ["Prompts", "RulerResult", "TaskScore", "make_prompts", "ruler"]


@dataclass(frozen=True)
class Prompts:
    """The prompts of one task at one length.

    Attributes:
        prompts: each with one question, length less the task's answer tokens.
        expected: what the answer to each should hold.
        least_tokens: the shortest length at which all of them could be made.
    """

    prompts: list[Prompt]
    expected: list[tuple[str, ...]]
    least_tokens: int


@dataclass(frozen=True)
class TaskScore:
    """A task's score at one length.

    Attributes:
        task: its name.
        tokens: of the prompt and the tokens kept for the answer together.
        score: mean over the prompts, 0 to 100.
        trials: prompts answered.
        found: mean share, 0 to 100, of the right answers whose every token is the model's most likely one, in any
            order, teacher-forced.
        nats: mean loss of the right answers' tokens.
        right_tokens: mean share, 0 to 1, of those tokens that are the most likely ones.
        first_wrong: for each place in an answer, how many answers have their first wrong token there.
        least_tokens: the shortest length at which these prompts could be made.
    """

    task: str
    tokens: int
    score: float
    trials: int
    found: float
    nats: float
    right_tokens: float
    first_wrong: list[int]
    least_tokens: int

    def to_json(self) -> dict[str, Any]:
        """The result as a JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class RulerResult:
    """All scores; by task in RULER's order, and by length as asked."""

    scores: list[TaskScore]

    @property
    def averages(self) -> dict[int, float]:
        """The mean of the tasks by length; lengths ascend."""
        return averages([(score.tokens, score.score) for score in self.scores])


def make_prompts(task: str, tokenizer: Any, tokens: int, trials: int, seed: int, sources: RulerTexts) -> Prompts:
    """Make a task's prompts at one length.

    A sample depends on seed, task, length and its number only.

    Args:
        task: a key of `TASKS`.
        tokenizer: of the model.
        tokens: exact length of prompt and answer together, BOS included where the tokenizer adds it.
        trials: how many.
        seed: of all that is random.
        sources: with the questions of this task, if it asks questions.

    Raises:
        DataError: the length is too short (the message says the least), the sources are too small for it, or the
            tokenizer can't make it.
    """
    kind = TASKS[task]

    def count(text: str) -> int:
        return len(encode(tokenizer, text))

    numbers = _question_numbers(task, trials, seed, sources)
    builders = [
        kind.make(SampleRequest(Random(f"{seed} {task} {tokens} {index}"), tokens, sources, number))
        for index, number in enumerate(numbers)
    ]
    least = kind.answer_tokens + max(builder.least_tokens(count) for builder in builders)
    if least > tokens:
        raise DataError(f"{task} needs at least {least} tokens with this tokenizer, but {tokens} were asked for")
    try:
        texts = [builder.prompt_of_length(count, tokens - kind.answer_tokens) for builder in builders]
    except DataError as error:
        raise DataError(f"{task} at {tokens} tokens, {kind.answer_tokens} of them for the answer: {error}") from error
    prompts = [
        make_prompt(tokenizer, "", [(text, builder.answers if kind.match == "all" else builder.answers[0])])
        for text, builder in zip(texts, builders, strict=True)
    ]
    return Prompts(prompts, [builder.answers for builder in builders], least)


def _question_numbers(task: str, trials: int, seed: int, sources: RulerTexts) -> list[int]:
    """Which question each sample asks: different ones, the same at every length."""
    if task not in sources.questions:
        return list(range(trials))
    count = len(sources.questions[task].questions)
    if trials > count:
        raise DataError(f"{task} has {count} questions in its file, but {trials} trials were asked for; lower trials")
    return Random(f"{seed} {task}").sample(range(count), trials)


def ruler(
    model: Any,
    tokenizer: Any,
    sources: RulerTexts,
    tasks: Sequence[str],
    lengths: Sequence[int],
    trials: int = 20,
    *,
    batch_size: int = 1,
    seed: int = 0,
) -> RulerResult:
    """Measure the tasks at each length. All prompts are made before the first is answered.

    Args:
        model: a causal language model of transformers, or a PEFT model around one, in evaluation mode.
        tokenizer: its tokenizer.
        sources: prose, and the questions of the question tasks.
        tasks: keys of `TASKS`.
        lengths: tokens of prompt and answer together.
        trials: prompts per task and length; the paper has 500.
        batch_size: prompts that are run together.
        seed: of all that is random.

    Raises:
        LengthenError: there is nothing to measure.
        DataError: prompts of a length can't be made; every such task and length is named.
    """
    if not tasks or not lengths or trials < 1 or batch_size < 1:
        raise LengthenError(
            f"{len(tasks)} tasks, {len(lengths)} lengths, {trials} trials and a batch of {batch_size} were asked "
            "for; there has to be at least one of each"
        )
    made = _make_all(tokenizer, sources, tasks, lengths, trials, seed)
    scores: dict[tuple[str, int], TaskScore] = {}
    with progress_bar("answering", sum(lengths) * len(tasks) * trials, "tokens") as advance:
        # The longest first: what does not fit the memory fails before any time is spent.
        for task, tokens in sorted(made, key=lambda key: -key[1]):
            prompts = made[task, tokens]
            found: list[ScoredAnswer] = []
            for start in range(0, trials, batch_size):
                batch = prompts.prompts[start : start + batch_size]
                found += [answer for (answer,) in ask(model, tokenizer, batch, TASKS[task].answer_tokens)]
                advance(tokens * len(batch))
            matched = [
                match_score(answer.text or "", expected, TASKS[task].match)
                for answer, expected in zip(found, prompts.expected, strict=True)
            ]
            scores[task, tokens] = TaskScore(
                task,
                tokens,
                score=round(100 * sum(matched) / trials, 2),
                trials=trials,
                found=round(100 * sum(answer.found for answer in found) / trials, 2),
                nats=sum(answer.nats for answer in found) / trials,
                right_tokens=sum(answer.right for answer in found) / trials,
                first_wrong=first_wrong_counts(found),
                least_tokens=prompts.least_tokens,
            )
    return RulerResult([scores[key] for key in made])


def _make_all(
    tokenizer: Any, sources: RulerTexts, tasks: Sequence[str], lengths: Sequence[int], trials: int, seed: int
) -> dict[tuple[str, int], Prompts]:
    made, problems = {}, []
    with progress_bar("writing prompts", len(tasks) * len(lengths), "tasks") as advance:
        for task in tasks:
            for tokens in lengths:
                try:
                    made[task, tokens] = make_prompts(task, tokenizer, tokens, trials, seed, sources)
                except DataError as error:
                    problems.append(str(error))
                advance(1)
    if problems:
        raise DataError("; ".join(problems) + ". Change `lengths`, or choose other `tasks`")
    return made
