"""The grid of lengths and depths of retrieval measurements, its trials, and how answers are counted."""

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from lengthen.attention.peers import Peers
from lengthen.decoding.shards import check_shards
from lengthen.errors import LengthenError
from lengthen.evaluation.answers import ScoredAnswer, ask, first_wrong_counts, numbers
from lengthen.evaluation.prompts import Prompt, Question
from lengthen.progress import progress_bar

__all__ = ["ANSWER_TOKENS", "Cell", "count_cell", "is_found", "random_number", "retrieve"]

# A number has five digits; with a separator before it and a token behind it, ten tokens are enough for any tokenizer.
ANSWER_TOKENS = 10


@dataclass(frozen=True)
class Cell:
    """Answers at one length and depth, counted.

    Attributes:
        tokens: of prompt and answer together.
        depth: the share of the irrelevant tokens that lie before what is to be found, 0 to 1.
        trials: questions asked, one in each prompt.
        exact: answers of which every token is the model's most likely one, teacher-forced.
        nats: mean loss of an answer's tokens, teacher-forced.
        right_tokens: mean share of an answer's tokens that are the most likely ones.
        first_wrong: for each place in an answer, how many answers have their first wrong token there.
        correct: generated answers that begin with what was asked for; None where none were generated.
    """

    tokens: int
    depth: float
    trials: int
    exact: int
    nats: float
    right_tokens: float
    first_wrong: list[int]
    correct: int | None

    def to_json(self) -> dict[str, Any]:
        """The result as a JSON object."""
        return asdict(self)


def random_number(generator: random.Random) -> str:
    """A number of five digits, the first not 0."""
    return str(generator.randint(10_000, 99_999))


def is_found(question: Question, answer: ScoredAnswer) -> bool:
    """Whether the first number in the generated text is the right one. Tokens are not compared.

    Args:
        question: with the right answer.
        answer: with a generated text.
    """
    assert answer.text is not None
    return numbers(answer.text)[:1] == [question.expected]


def retrieve(
    model: Any,
    tokenizer: Any,
    name: str,
    make: Callable[[int, Sequence[float], random.Random], Prompt],
    lengths: Sequence[int],
    groups: Sequence[Sequence[float]],
    trials: int,
    *,
    generate: bool = True,
    batch_size: int = 1,
    seed: int = 0,
    peers: Peers | None = None,
) -> list[Cell]:
    """Make `trials` prompts for each length and group of depths, ask all of their questions, and count what is found.

    A prompt depends on the seed, its length, its depths and its number only: a cell stays the same whatever other
    lengths are measured beside it, and with any batch size.

    Args:
        model: a causal language model of transformers, or a PEFT model around one, in evaluation mode.
        tokenizer: its tokenizer.
        name: of the measurement, for the progress bar.
        make: from length, depths and random numbers to a prompt with a question for each depth.
        lengths: tokens of prompt and answer together.
        groups: depths from 0 to 1; those of a group share their prompts.
        trials: prompts for each length and group.
        generate: also let the model answer, and count the right answers.
        batch_size: prompts that are run together.
        seed: of the random numbers.
        peers: processes that read each prompt together, a shard of its tokens each; all of them call this with the same
            arguments and get the same cells. None for this process alone.

    Returns:
        A cell for each length and depth, in the order given.

    Raises:
        LengthenError: there is nothing to measure, or a depth is not from 0 to 1.
        DataError: no prompt of a length can be made.
    """
    depths = [depth for group in groups for depth in group]
    _check(lengths, depths, trials, batch_size)
    cells: dict[tuple[int, float], Cell] = {}
    with progress_bar(name, sum(lengths) * len(groups) * trials, "tokens") as advance:
        # The longest first: what does not fit the memory fails before any time is spent.
        for tokens in sorted(set(lengths), reverse=True):
            for group in groups:
                label = " ".join(map(str, group))
                made = [make(tokens, group, random.Random(f"{seed} {tokens} {label} {i}")) for i in range(trials)]
                if peers is not None and not cells:
                    check_shards(model, torch.tensor([made[0].context]), peers)
                answers: list[list[ScoredAnswer]] = []
                for start in range(0, trials, batch_size):
                    batch = made[start : start + batch_size]
                    answers += ask(model, tokenizer, batch, ANSWER_TOKENS if generate else None, peers)
                    advance(tokens * len(batch))
                for place, depth in enumerate(group):
                    questions = [prompt.questions[place] for prompt in made]
                    cells[tokens, depth] = count_cell(tokens, depth, questions, [answer[place] for answer in answers])
    return [cells[tokens, depth] for tokens in lengths for depth in depths]


def _check(lengths: Sequence[int], depths: Sequence[float], trials: int, batch_size: int) -> None:
    if not lengths or not depths or trials < 1 or batch_size < 1:
        raise LengthenError(
            f"{len(lengths)} lengths, {len(depths)} depths, {trials} trials and a batch of {batch_size} were asked "
            "for; there has to be at least one of each"
        )
    if not all(0 <= depth <= 1 for depth in depths):
        raise LengthenError(f"depths {depths} are not all from 0 (the beginning) to 1 (the end)")


def count_cell(tokens: int, depth: float, questions: Sequence[Question], answers: Sequence[ScoredAnswer]) -> Cell:
    """Count the answers of one cell.

    Args:
        tokens: of prompt and answer.
        depth: of what was asked for, 0 to 1.
        questions: those of the cell.
        answers: to them, in order.
    """
    generated = [
        is_found(question, answer)
        for question, answer in zip(questions, answers, strict=True)
        if answer.text is not None
    ]
    return Cell(
        tokens=tokens,
        depth=depth,
        trials=len(answers),
        exact=sum(answer.exact for answer in answers),
        nats=sum(answer.nats for answer in answers) / len(answers),
        right_tokens=sum(answer.right for answer in answers) / len(answers),
        first_wrong=first_wrong_counts(answers),
        correct=sum(generated) if generated else None,
    )
