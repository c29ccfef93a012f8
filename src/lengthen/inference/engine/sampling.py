"""What is asked for, which token comes next, and where the text stops."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lengthen.errors import DataError

__all__ = ["GenerationRequest", "Sampler", "StopText", "pick_tokens"]


@dataclass(frozen=True)
class GenerationRequest:
    """A prompt, and how it is to be continued.

    Attributes:
        prompt: tokens, at least one.
        adapter: its name; None for the base alone.
        max_new_tokens: at most this many.
        temperature: 0 takes the likeliest token each time.
        top_p: draw from the likeliest tokens that have this probability together.
        seed: of the draws; None for another one each time.
        stop: the answer ends before the first of these texts.
        ignore_end: go on after the model's end token, as benchmarks need.
    """

    prompt: Sequence[int]
    adapter: str | None = None
    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = 0
    stop: tuple[str, ...] = ()
    ignore_end: bool = False

    def check(self, context: int, vocabulary: int) -> None:
        """Refuse what can't be done.

        Args:
            context: tokens of prompt and answer together, at most.
            vocabulary: tokens that there are.

        Raises:
            DataError: with the value and what to change.
        """
        if not self.prompt:
            raise DataError("the prompt is empty; give some text to continue")
        wrong = next((token for token in self.prompt if not 0 <= token < vocabulary), None)
        if wrong is not None:
            raise DataError(f"the prompt has the token {wrong}, and there are tokens 0 to {vocabulary - 1}")
        if self.max_new_tokens < 1:
            raise DataError(f"max_tokens is {self.max_new_tokens}; it must be at least 1")
        if len(self.prompt) + self.max_new_tokens > context:
            raise DataError(
                f"the prompt has {len(self.prompt)} tokens and {self.max_new_tokens} more are asked for, but the "
                f"context is {context}; shorten the prompt or lower max_tokens"
            )
        if not 0 <= self.temperature < float("inf"):
            raise DataError(f"temperature is {self.temperature}; it must be 0 (greedy) or above")
        if not 0 < self.top_p <= 1:
            raise DataError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if "" in self.stop:
            raise DataError("a stop text is empty; leave it out")


class Sampler:
    """Draws the tokens of one request, from a random state of its own."""

    def __init__(self, request: GenerationRequest, device: torch.device):
        self._temperature, self._top_p = request.temperature, request.top_p
        self._generator = torch.Generator(device)
        if request.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(request.seed)

    @property
    def is_greedy(self) -> bool:
        """Whether it takes the likeliest token."""
        return self._temperature == 0

    def draw(self, logits_V: torch.Tensor) -> int:
        """Draw a token from float32 logits."""
        probabilities_V = ((logits_V - logits_V.max()) / self._temperature).softmax(dim=-1)
        if self._top_p < 1:
            sorted_V, tokens_V = probabilities_V.sort(descending=True)
            # A token is out where those before it have top_p already; the first one never is.
            sorted_V[sorted_V.cumsum(dim=-1) - sorted_V >= self._top_p] = 0
            probabilities_V = torch.zeros_like(probabilities_V).scatter_(0, tokens_V, sorted_V)
        return int(torch.multinomial(probabilities_V, 1, generator=self._generator))


def pick_tokens(logits_BV: torch.Tensor, samplers: Sequence[Sampler]) -> list[int | None]:
    """The next token of each row; None where its logits are no numbers, which must not stop the other rows.

    Args:
        logits_BV: float32.
        samplers: one for each row.
    """
    tokens: list[Any] = logits_BV.argmax(dim=-1).tolist()
    is_finite = logits_BV.amax(dim=-1).isfinite().tolist()  # the largest of NaNs is NaN
    for row, sampler in enumerate(samplers):
        if not is_finite[row]:
            tokens[row] = None
        elif not sampler.is_greedy:
            tokens[row] = sampler.draw(logits_BV[row])
    return tokens


class StopText:
    """Lets text through until the first of some texts, which may come in pieces.

    Attributes:
        is_over: whether one of them came.
    """

    def __init__(self, stop: Sequence[str]):
        self._stop = tuple(stop)
        self._held = ""
        self.is_over = False

    def push(self, piece: str) -> str:
        """Take more text and return what can be shown: nothing that may turn out to be the start of a stop text."""
        if not self._stop or self.is_over:
            return "" if self.is_over else piece
        text = self._held + piece
        found = [at for at in (text.find(each) for each in self._stop) if at >= 0]
        if found:
            self.is_over, self._held = True, ""
            return text[: min(found)]
        held = max(_overlap(text, each) for each in self._stop)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def end(self) -> str:
        """What was held back, where nothing more comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text are the start of a stop text."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
