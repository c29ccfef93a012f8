"""What is asked for, which token comes next, and where the text stops."""

from collections.abc import Sequence
from dataclasses import dataclass

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
    """How the tokens of one request are drawn, with a random state of its own.

    The random numbers come from the CPU, so that they are the same on every device, and none waits for another.

    Attributes:
        temperature, top_p: the request's.
    """

    def __init__(self, request: GenerationRequest):
        self.temperature, self.top_p = request.temperature, request.top_p
        self._generator = torch.Generator()
        if request.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(request.seed)

    @property
    def is_greedy(self) -> bool:
        """Whether it takes the likeliest token."""
        return self.temperature == 0

    def uniform(self) -> float:
        """The next random number, from 0 to below 1."""
        return torch.rand((), dtype=torch.float64, generator=self._generator).item()


def pick_tokens(logits_BV: torch.Tensor, samplers: Sequence[Sampler]) -> list[int | None]:
    """The next token of each row; None where its logits are no numbers, which must not stop the other rows.

    What a row gets does not depend on the others. All rows are drawn together: a GPU is waited for once.

    Args:
        logits_BV: float32.
        samplers: one for each row.
    """
    tokens_B = logits_BV.argmax(dim=-1)
    if not all(sampler.is_greedy for sampler in samplers):
        # A greedy row is drawn too, and what is drawn thrown away.
        rows = [(each.temperature or 1.0, each.top_p, 0.0 if each.is_greedy else each.uniform()) for each in samplers]
        temperature_B, top_p_B, uniform_B = torch.tensor(rows, dtype=torch.float64).T.to(logits_BV.device)
        is_greedy_B = torch.tensor([sampler.is_greedy for sampler in samplers]).to(logits_BV.device)
        drawn_B = _draw(logits_BV, temperature_B, top_p_B, uniform_B)
        tokens_B = torch.where(is_greedy_B, tokens_B, drawn_B)
    is_finite_B = logits_BV.amax(dim=-1).isfinite()  # the largest of NaNs is NaN
    return [None if token < 0 else token for token in torch.where(is_finite_B, tokens_B, -1).tolist()]


def _draw(
    logits_BV: torch.Tensor, temperature_B: torch.Tensor, top_p_B: torch.Tensor, uniform_B: torch.Tensor
) -> torch.Tensor:
    """Tokens (B,) by inversion: the first one up to which the probability is above the random number."""
    scaled_BV = (logits_BV - logits_BV.amax(dim=-1, keepdim=True)) / temperature_B.float()[:, None]
    sorted_BV, order_BV = scaled_BV.softmax(dim=-1).sort(dim=-1, descending=True)
    before_BV = sorted_BV.cumsum(dim=-1, dtype=torch.float64) - sorted_BV
    # A token is out where those before it have top_p already; the first one never is.
    is_out_BV = (before_BV >= top_p_B[:, None]) & (top_p_B[:, None] < 1)
    upto_BV = sorted_BV.masked_fill(is_out_BV, 0).cumsum(dim=-1, dtype=torch.float64)
    place_B = (upto_BV <= uniform_B[:, None] * upto_BV[:, -1:]).sum(dim=-1)
    return order_BV.gather(-1, place_B.clamp(max=logits_BV.shape[-1] - 1)[:, None])[:, 0]


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
