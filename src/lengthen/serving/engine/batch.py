"""The requests that are computed together: their prompts by chunks, then one token of each at a time."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from lengthen._compat import without_cudnn_attention
from lengthen.decoding.prefill import hidden_chunks, new_cache
from lengthen.decoding.sampling import logprobs_of, pick_tokens
from lengthen.head import logits_from
from lengthen.serving.engine.adapter_pool import AdapterPool
from lengthen.serving.engine.base_model import LoadedBase
from lengthen.serving.engine.kv_cache import BatchedKVCache, padded_tokens
from lengthen.serving.engine.request import GenerationEvent, RequestState

__all__ = ["Batch", "Stats"]

# How long a request that is being written may have to wait for prompts, in chunks.
_CHUNKS_AT_MOST = 4
# Tokens of prompts whose log probabilities are computed at once: each has as many logits as there are tokens.
_SCORED_AT_MOST = 512


@dataclass
class Stats:
    """Counts since the engine was made.

    Attributes:
        finished: requests by adapter (None for the base) and by why they ended.
        prompt_tokens, new_tokens: read and generated.
        steps: forward passes that generated a token in each row.
        waited_seconds: until the first token, summed over `answered` requests.
    """

    finished: Counter[tuple[str | None, str]] = field(default_factory=Counter)
    prompt_tokens: int = 0
    new_tokens: int = 0
    steps: int = 0
    waited_seconds: float = 0.0
    answered: int = 0


class _Prefill:
    """Prompts that are read together, from their first token to the last but one."""

    def __init__(self, states: list[RequestState], device: torch.device, cache: Any):
        self.states, self.cache, self.done = states, cache, 0
        self.width = max(len(state.request.prompt) for state in states) - 1
        rows = [list(state.request.prompt[:-1]) for state in states]
        # Padding comes after the shorter ones, so that they don't see it, and their rows end before it.
        padded = [row + [0] * (self.width - len(row)) for row in rows]
        self.ids_BT = torch.tensor(padded, dtype=torch.long, device=device).view(len(rows), self.width)


class Batch:
    """Requests that were admitted. Each is prefilled, then decoded until it ends; rows join and leave at every token.

    Args:
        base: what all share.
        pool: the adapters in memory.
        chunk: tokens of prompts that are read in one forward pass, at most.
        max_tokens: tokens whose keys and values there is memory for.
        stats: where tokens are counted.
        on_end: called with each request that ends, and its last event.

    Attributes:
        cache: keys and values of the requests that are decoded, in their order.
    """

    def __init__(
        self,
        base: LoadedBase,
        pool: AdapterPool,
        chunk: int,
        max_tokens: int,
        stats: Stats,
        on_end: Callable[[RequestState, GenerationEvent], None],
    ):
        self._base, self._pool, self._chunk, self._max_tokens = base, pool, chunk, max_tokens
        self._stats, self._on_end = stats, on_end
        self.cache = BatchedKVCache(base.key_value_shapes, base.dtype, base.device, max_tokens)
        self._admitted: list[RequestState] = []
        self._prefilling: _Prefill | None = None
        self._decoding: list[RequestState] = []

    @property
    def states(self) -> list[RequestState]:
        """All that have not ended."""
        return [*self._admitted, *(self._prefilling.states if self._prefilling else ()), *self._decoding]

    def has_memory_for(self, state: RequestState) -> bool:
        """Whether keys and values fit, of this request beside the others, at their longest."""
        return padded_tokens([each.max_total_tokens for each in (*self.states, state)]) <= self._max_tokens

    def add(self, state: RequestState) -> None:
        """Admit a request, whose adapter must be in memory."""
        self._admitted.append(state)

    def drop_cancelled(self) -> None:
        """End the requests that were cancelled; prompts that are read together end when all of them were."""
        # Others cancel meanwhile, so each is asked once.
        cancelled = [state for state in self._admitted if state.is_cancelled]
        self._admitted = [state for state in self._admitted if state not in cancelled]
        if self._prefilling is not None and all(state.is_cancelled for state in self._prefilling.states):
            cancelled += self._prefilling.states
            self._prefilling = None
        for state in cancelled:
            self._on_end(state, GenerationEvent(finish="cancelled"))
        for row in reversed(range(len(self._decoding))):
            if self._decoding[row].is_cancelled:
                self._leave(row, GenerationEvent(finish="cancelled"))

    def fail(self, reason: str) -> None:
        """End all requests.

        Args:
            reason: that they are told.
        """
        failed = self.states
        self._admitted, self._prefilling, self._decoding = [], None, []
        self.cache.clear()
        for state in failed:
            self._on_end(state, GenerationEvent(finish="failed", error=reason))

    def prefill(self) -> None:
        """Prefill a chunk, and up to three more while most requests still wait.

        A decode step costs the same for few sequences as for many, so it is worth waiting until there are many.
        """
        for _ in range(_CHUNKS_AT_MOST):
            self._prefill_chunk()
            if len(self.states) <= 2 * len(self._decoding):
                return

    def _prefill_chunk(self) -> None:
        if self._prefilling is None:
            if not self._admitted:
                return
            self._prefilling = _Prefill(self._next_to_prefill(), self._base.device, new_cache(self._base.model))
        prefill = self._prefilling
        scores = any(state.request.prompt_logprobs is not None for state in prefill.states)
        width = max(1, (min(self._chunk, _SCORED_AT_MOST) if scores else self._chunk) // len(prefill.states))
        ids_BT = prefill.ids_BT[:, prefill.done : prefill.done + width]
        if ids_BT.shape[1]:
            adapters = [state.adapter.loaded if state.adapter else None for state in prefill.states]
            with self._pool.rows(adapters, ids_BT.shape[1]):
                for hidden_BTH in hidden_chunks(self._base.model, ids_BT, ids_BT.shape[1], prefill.cache):
                    self._score_prompts(prefill, hidden_BTH)
            prefill.done += ids_BT.shape[1]
        if prefill.done == prefill.width:
            self._prefilling = None
            for row, state in enumerate(prefill.states):
                length = len(state.request.prompt) - 1
                self._stats.prompt_tokens += length + 1
                if state.request.max_new_tokens == 0:
                    self._on_end(state, GenerationEvent(prompt_logprobs=state.prompt_event(), finish="length"))
                    continue
                self.cache.append(prefill.cache if length else None, row, length, state.max_total_tokens)
                self._decoding.append(state)

    def _score_prompts(self, prefill: _Prefill, hidden_BTH: torch.Tensor) -> None:
        """Note how likely the tokens after those that were just read were, for requests that ask for it."""
        wanted = [state.request.prompt_logprobs for state in prefill.states]
        if all(count is None for count in wanted):
            return
        # All rows together, since adapters may have a head of their own in each.
        logits_BTV = logits_from(self._base.model, hidden_BTH)
        for row, (state, count) in enumerate(zip(prefill.states, wanted, strict=True)):
            tokens = state.request.prompt[prefill.done + 1 : prefill.done + 1 + hidden_BTH.shape[1]]
            if count is not None and tokens:
                state.prompt_logprobs += logprobs_of(logits_BTV[row, : len(tokens)], tokens, count)

    def _next_to_prefill(self) -> list[RequestState]:
        """The first that has arrived, and those behind it as long as all fit into one chunk."""
        taken, widest = 0, 0
        for state in self._admitted:
            widest = max(widest, len(state.request.prompt))
            if taken and (taken + 1) * widest > self._chunk:
                break
            taken += 1
        chosen, self._admitted = self._admitted[:taken], self._admitted[taken:]
        return chosen

    @without_cudnn_attention()
    def decode(self) -> None:
        """Compute the next token of each request that has been prefilled."""
        if not self._decoding:
            return
        last_B1 = torch.tensor([[decoding.last] for decoding in self._decoding], device=self._base.device)
        adapters = [decoding.adapter.loaded if decoding.adapter else None for decoding in self._decoding]
        with self._pool.rows(adapters, 1):
            out = self._base.model(input_ids=last_B1, **self.cache.next_token())
        self.cache.advance()
        self._stats.steps += 1
        logits_BV = out.logits[:, -1].float()
        tokens = pick_tokens(logits_BV, [decoding.sampler for decoding in self._decoding])
        for row in reversed(range(len(tokens))):
            token, state = tokens[row], self._decoding[row]
            if token is None:
                self._leave(
                    row, GenerationEvent(finish="failed", error="the model computed no numbers for this prompt")
                )
                continue
            count = state.request.logprobs
            logprob = None if count is None else logprobs_of(logits_BV[row : row + 1], [token], count)[0]
            event = state.take(token, logprob)
            self._stats.new_tokens += 1
            if state.new_tokens == 1:
                self._stats.answered += 1
                self._stats.waited_seconds += time.perf_counter() - state.submitted
            if event.finish is None:
                state.tell(event)
            else:
                self._leave(row, event)

    def _leave(self, row: int, event: GenerationEvent) -> None:
        """End a request that is being continued; the last row takes its place."""
        state = self._decoding[row]
        self.cache.remove(row)
        self._decoding[row] = self._decoding[-1]
        self._decoding.pop()
        self._on_end(state, event)
