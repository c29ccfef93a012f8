"""What retrieval measurements share: the grid of lengths and depths, its trials, and how answers are compared."""

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lengthen.errors import LengthenError
from lengthen.evaluation.answers import answers, numbers
from lengthen.progress import progress_bar

__all__ = ["ANSWER_TOKENS", "Cell", "Trial", "random_number", "retrieve"]

# A number has five digits; with a separator before it and a token behind it, ten tokens are enough for any tokenizer.
ANSWER_TOKENS = 10


@dataclass(frozen=True)
class Trial:
    """One prompt.

    Attributes:
        ids: its tokens.
        expected: the numbers that were hidden in it, in the order in which they are asked for.
    """

    ids: list[int]
    expected: list[str]


@dataclass(frozen=True)
class Cell:
    """What was found at one length and depth.

    Attributes:
        tokens: of prompt and answer together.
        depth: the share of the irrelevant tokens that lie before what is to be found, 0 to 1.
        correct: trials in which all that was asked for was answered exactly, in its order.
        trials: in all.
        found: the share of the hidden numbers that the answers have in their places; correct / trials where one
            number is hidden.
    """

    tokens: int
    depth: float
    correct: int
    trials: int
    found: float

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


def random_number(generator: random.Random) -> str:
    """A number of five digits, the first not 0."""
    return str(generator.randint(10_000, 99_999))


def retrieve(
    model: Any,
    tokenizer: Any,
    name: str,
    make: Callable[[int, float, random.Random], Trial],
    answer_tokens: int,
    lengths: Sequence[int],
    depths: Sequence[float],
    trials: int,
    batch_size: int = 1,
    seed: int = 0,
    quiet: bool = False,
) -> list[Cell]:
    """Ask `trials` times at each length and depth, and count what is answered.

    A trial's prompt depends on the seed, its length, its depth and its number only: a cell stays the same whatever
    others are measured beside it, and with any batch size.

    Args:
        model: a causal language model of transformers, or a PEFT model around one, in evaluation mode.
        tokenizer: its tokenizer.
        name: of the measurement, for the progress bar.
        make: from length, depth and random numbers to a trial.
        answer_tokens: tokens that are generated for each answer.
        lengths: tokens of prompt and answer together.
        depths: shares from 0 to 1.
        trials: per cell.
        batch_size: prompts that are run together.
        seed: of the random numbers.
        quiet: show no progress bar.

    Returns:
        A cell for each length and depth, in the order given.

    Raises:
        LengthenError: there is nothing to measure, or a depth is not from 0 to 1.
        DataError: no prompt of a length can be made.
    """
    if not lengths or not depths or trials < 1 or batch_size < 1:
        raise LengthenError(
            f"{len(lengths)} lengths, {len(depths)} depths, {trials} trials and a batch of {batch_size} were asked "
            "for; there has to be at least one of each"
        )
    if not all(0 <= depth <= 1 for depth in depths):
        raise LengthenError(f"depths {list(depths)} are not all from 0 (the beginning) to 1 (the end)")
    cells = {}
    with progress_bar(name, sum(lengths) * len(depths) * trials, "tokens", quiet) as advance:
        # The longest first: what does not fit the memory fails before any time is spent.
        for tokens in sorted(set(lengths), reverse=True):
            for depth in depths:
                made = [make(tokens, depth, random.Random(f"{seed} {tokens} {depth} {i}")) for i in range(trials)]
                texts: list[str] = []
                for start in range(0, trials, batch_size):
                    batch = made[start : start + batch_size]
                    texts += answers(model, tokenizer, [trial.ids for trial in batch], answer_tokens)
                    advance(tokens * len(batch))
                cells[tokens, depth] = _count(tokens, depth, made, texts)
    return [cells[tokens, depth] for tokens in lengths for depth in depths]


def _count(tokens: int, depth: float, made: Sequence[Trial], texts: Sequence[str]) -> Cell:
    hits = [
        sum(a == b for a, b in zip(trial.expected, numbers(text), strict=False))
        for trial, text in zip(made, texts, strict=True)
    ]
    asked = len(made[0].expected)
    return Cell(tokens, depth, hits.count(asked), len(made), sum(hits) / (asked * len(made)))
