"""Which token comes next: temperature, the likeliest ones, penalties, log probabilities.

Shapes: V vocabulary, B rows of a batch.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from lengthen.errors import DataError

__all__ = ["GREEDY", "Logprob", "Sampler", "SamplingParams", "logprobs_of", "pick_tokens"]


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How tokens are drawn.

    Attributes:
        temperature: 0 takes the likeliest token each time; above 0 draws from the whole distribution.
        top_p: draw from the likeliest tokens that have this probability together; 0 leaves the likeliest one.
        top_k: draw from this many of the likeliest tokens; 0 for all.
        min_p: draw from tokens of at least this share of the likeliest one's probability.
        seed: of the draws; None for another one each time.
        repetition_penalty: logits of tokens of prompt and answer are divided by it, or multiplied where negative.
        presence_penalty: is subtracted from the logits of tokens of the answer.
        frequency_penalty: the same, once for each time that the token is in the answer.
        min_new_tokens: the answer does not end by a token before it has so many.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    min_new_tokens: int = 0

    def check(self) -> None:
        """Refuse values out of range.

        Raises:
            DataError: with the value and what to change.
        """
        if not 0 <= self.temperature < float("inf"):
            raise DataError(f"`temperature` is {self.temperature}; it must be 0 (greedy) or above")
        if not 0 <= self.top_p <= 1:
            raise DataError(f"`top_p` is {self.top_p}; it must be from 0 to 1")
        if self.top_k < 0:
            raise DataError(f"`top_k` is {self.top_k}; it must be 0 (all tokens) or above")
        if not 0 <= self.min_p <= 1:
            raise DataError(f"`min_p` is {self.min_p}; it must be from 0 to 1")
        if not 0 < self.repetition_penalty < float("inf"):
            raise DataError(f"`repetition_penalty` is {self.repetition_penalty}; it must be above 0")


GREEDY = SamplingParams()
"""The likeliest token each time."""


@dataclass(frozen=True)
class Logprob:
    """Natural logarithm of a token's probability, as the model gives it, before penalties and temperature.

    Attributes:
        token: the token.
        value: its log probability.
        top: the likeliest tokens with theirs, the likeliest first.
    """

    token: int
    value: float
    top: tuple[tuple[int, float], ...]


def logprobs_of(logits_TV: torch.Tensor, tokens: Sequence[int], count: int) -> list[Logprob]:
    """The log probabilities of tokens, and of the `count` likeliest beside each.

    Args:
        logits_TV: float32, for each token those it was predicted by.
        tokens: T of them.
        count: at most V.
    """
    logprobs_TV = logits_TV.log_softmax(dim=-1)
    values = logprobs_TV.gather(1, torch.tensor([*tokens], device=logits_TV.device)[:, None])[:, 0].tolist()
    top = logprobs_TV.topk(min(count, logits_TV.shape[-1]), dim=-1)
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return [
        Logprob(token, value, tuple(zip(*likeliest, strict=True)))
        for token, value, likeliest in zip(tokens, values, pairs, strict=True)
    ]


class Sampler:
    """How the tokens of one request are drawn, with a random state of its own.

    The random numbers come from the CPU, so that they are the same on every device, and none waits for another.

    Args:
        params: how.
        prompt: tokens before the answer, for the penalty on repetition.
        ends: tokens that end an answer.
    """

    def __init__(self, params: SamplingParams, prompt: Sequence[int] = (), ends: Iterable[int] = ()):
        self.params = params
        self._generator = torch.Generator()
        self._new: Counter[int] = Counter()
        self._seen = set(prompt) if params.repetition_penalty != 1 else set()
        self._ends = sorted(set(ends))
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(params.seed)

    @property
    def is_greedy(self) -> bool:
        """Whether it takes the likeliest token."""
        return self.params.temperature == 0

    @property
    def is_plain(self) -> bool:
        """Whether it takes the logits as they are now."""
        params = self.params
        has_penalty = params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1
        return not has_penalty and self._new.total() >= params.min_new_tokens

    def uniform(self) -> float:
        """The next random number, from 0 to below 1."""
        return torch.rand((), dtype=torch.float64, generator=self._generator).item()

    def took(self, token: int) -> None:
        """Note a token of the answer."""
        self._new[token] += 1
        if self._seen:
            self._seen.add(token)

    def penalize_(self, logits_V: torch.Tensor) -> None:
        """Change the logits by the penalties, and forbid ends before `min_new_tokens`, in place."""
        params, device = self.params, logits_V.device
        if self._seen:
            seen = torch.tensor(sorted(self._seen), device=device)
            values, factor = logits_V[seen], params.repetition_penalty
            logits_V[seen] = torch.where(values > 0, values / factor, values * factor)
        if self._new:
            new = torch.tensor(list(self._new), device=device)
            counts = torch.tensor(list(self._new.values()), device=device, dtype=logits_V.dtype)
            logits_V[new] -= params.presence_penalty + params.frequency_penalty * counts
        if self._new.total() < params.min_new_tokens:
            logits_V[self._ends] = float("-inf")


def pick_tokens(logits_BV: torch.Tensor, samplers: Sequence[Sampler]) -> list[int | None]:
    """The next token of each row; None where its logits are no numbers, which must not stop the other rows.

    All rows are drawn together, and the tokens come to the CPU once, as a step of a GPU is too short to wait for it
    in each row.

    Args:
        logits_BV: float32.
        samplers: one for each row.
    """
    is_finite_B = logits_BV.amax(dim=-1).isfinite()  # the largest of NaNs is NaN
    changed = [row for row, sampler in enumerate(samplers) if not sampler.is_plain]
    if changed:
        logits_BV = logits_BV.clone()
        for row in changed:
            samplers[row].penalize_(logits_BV[row])
    tokens_B = logits_BV.argmax(dim=-1)
    if not all(sampler.is_greedy for sampler in samplers):
        # A greedy row is drawn too, and what is drawn thrown away.
        rows = [
            (each.params.temperature or 1.0, each.params.min_p, each.params.top_k or logits_BV.shape[-1],
             each.params.top_p, 0.0 if each.is_greedy else each.uniform())
            for each in samplers
        ]  # fmt: skip
        settings_SB = torch.tensor(rows, dtype=torch.float64).T.to(logits_BV.device)
        is_greedy_B = torch.tensor([sampler.is_greedy for sampler in samplers]).to(logits_BV.device)
        tokens_B = torch.where(is_greedy_B, tokens_B, _draw(logits_BV, *settings_SB))
    return [None if token < 0 else token for token in torch.where(is_finite_B, tokens_B, -1).tolist()]


def _draw(
    logits_BV: torch.Tensor,
    temperature_B: torch.Tensor,
    min_p_B: torch.Tensor,
    top_k_B: torch.Tensor,
    top_p_B: torch.Tensor,
    uniform_B: torch.Tensor,
) -> torch.Tensor:
    """Tokens (B,) by inversion: the first one up to which the probability is above the random number."""
    scaled_BV = (logits_BV - logits_BV.amax(dim=-1, keepdim=True)) / temperature_B.float()[:, None]
    sorted_BV, order_BV = scaled_BV.softmax(dim=-1).sort(dim=-1, descending=True)
    places_V = torch.arange(logits_BV.shape[-1], device=logits_BV.device)
    sorted_BV = sorted_BV.masked_fill(places_V >= top_k_B[:, None], 0)
    sorted_BV = sorted_BV.masked_fill(sorted_BV < min_p_B.float()[:, None] * sorted_BV[:, :1], 0)
    before_BV = sorted_BV.cumsum(dim=-1, dtype=torch.float64) - sorted_BV
    # top_p is a share of what the others leave. A token is out where those before it have it already; the first one
    # never is.
    enough_B1 = top_p_B[:, None] * sorted_BV.sum(dim=-1, dtype=torch.float64, keepdim=True)
    is_out_BV = (before_BV >= enough_B1) & (top_p_B[:, None] < 1) & (places_V > 0)
    upto_BV = sorted_BV.masked_fill(is_out_BV, 0).cumsum(dim=-1, dtype=torch.float64)
    place_B = (upto_BV <= uniform_B[:, None] * upto_BV[:, -1:]).sum(dim=-1)
    return order_BV.gather(-1, place_B.clamp(max=logits_BV.shape[-1] - 1)[:, None])[:, 0]
