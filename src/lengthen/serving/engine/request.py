"""A request, and its state on the way: its tokens, its text and its end."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lengthen.decoding.detokenize import IncrementalDetokenizer
from lengthen.decoding.sampling import Logprob, Sampler, SamplingParams
from lengthen.decoding.stop import StopText
from lengthen.errors import DataError, ModelError
from lengthen.serving.engine.registry import Adapter

__all__ = ["Completion", "GenerationEvent", "GenerationRequest", "RequestState"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class GenerationRequest(SamplingParams):
    """A prompt, and how it is to be continued.

    Attributes:
        prompt: tokens, at least one.
        adapter: its name; None for the base alone.
        max_new_tokens: at most this many.
        stop: the answer ends before the first of these texts.
        ignore_end: go on after the model's end token, as benchmarks need.
        stop_tokens: the answer ends before these tokens.
        logprobs: give the log probability of each new token, and of this many of the likeliest; None for none.
        prompt_logprobs: the same for the tokens of the prompt, each after those before it.
    """

    prompt: Sequence[int]
    adapter: str | None = None
    max_new_tokens: int = 128
    stop: tuple[str, ...] = ()
    ignore_end: bool = False
    stop_tokens: tuple[int, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    def check_against(self, context: int, vocabulary: int) -> None:
        """Refuse a request that this model can't do.

        Args:
            context: tokens of prompt and answer together, at most.
            vocabulary: tokens that there are.

        Raises:
            DataError, LengthenError: with the value and what to change.
        """
        if not self.prompt:
            raise DataError("the prompt is empty; give some text to continue")
        wrong = next((token for token in self.prompt if not 0 <= token < vocabulary), None)
        if wrong is not None:
            raise DataError(f"the prompt has the token {wrong}, and there are tokens 0 to {vocabulary - 1}")
        if self.max_new_tokens < (0 if self.prompt_logprobs is not None else 1):
            raise DataError(f"max_tokens is {self.max_new_tokens}; it must be at least 1")
        if self.min_new_tokens > self.max_new_tokens:
            raise DataError(
                f"min_tokens is {self.min_new_tokens}, which is more than max_tokens, {self.max_new_tokens}"
            )
        if len(self.prompt) + self.max_new_tokens > context:
            raise DataError(
                f"the prompt has {len(self.prompt)} tokens and {self.max_new_tokens} more are asked for, but the "
                f"context is {context}; shorten the prompt or lower max_tokens"
            )
        if "" in self.stop:
            raise DataError("a stop text is empty; leave it out")
        self.check()


@dataclass(frozen=True)
class GenerationEvent:
    """One step of a generation.

    Attributes:
        token: the new token; None where there is none.
        text: what can be shown now, which may be nothing.
        logprob: of the token, where it was asked for.
        prompt_logprobs: of the prompt's tokens but the first, where they were asked for; in the first event.
        finish: None while it goes on; then "stop" (the end token or a stop text), "length", "cancelled" or "failed".
        error: what failed.
    """

    token: int | None = None
    text: str = ""
    logprob: Logprob | None = None
    prompt_logprobs: tuple[Logprob, ...] | None = None
    finish: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class Completion:
    """A whole generation: its tokens, its text and why it ended (see `GenerationEvent`)."""

    tokens: tuple[int, ...]
    text: str
    finish: str

    @classmethod
    def of(cls, events: Sequence[GenerationEvent]) -> "Completion":
        """All events of a generation as one.

        Raises:
            ModelError: it failed.
        """
        last = events[-1]
        if last.error is not None:
            raise ModelError(last.error)
        tokens = tuple(event.token for event in events if event.token is not None)
        return cls(tokens, "".join(event.text for event in events), str(last.finish))


class RequestState:
    """A request on its way.

    Args:
        request: what is asked for.
        adapter: that it names; None for the base.
        tokenizer: of the adapter, or of the base.
        on_event: called with each event, in the engine's thread.
        ends: ids that end a text.

    Attributes:
        request: what was asked for.
        new_tokens: generated so far.
        prompt_logprobs: of the prompt's tokens that were read, where they were asked for.
    """

    def __init__(
        self,
        request: GenerationRequest,
        adapter: Adapter | None,
        tokenizer: Any,
        on_event: Callable[[GenerationEvent], None],
        ends: set[int],
    ):
        self.request, self.adapter, self._on_event = request, adapter, on_event
        self._ends = set() if request.ignore_end else ends
        self.sampler = Sampler(request, request.prompt, {*ends, *request.stop_tokens})
        self.prompt_logprobs: list[Logprob] = []
        self.new_tokens, self.last = 0, int(request.prompt[-1])
        self.submitted = time.perf_counter()
        self.is_cancelled, self.is_running = False, False
        self._stream = IncrementalDetokenizer(tokenizer, list(request.prompt))
        self._stop = StopText(request.stop)

    @property
    def max_total_tokens(self) -> int:
        """Tokens that it will have at most."""
        return len(self.request.prompt) + self.request.max_new_tokens

    def cancel(self) -> None:
        """Stop at the next token; nothing happens where it is finished."""
        self.is_cancelled = True

    def take(self, token: int, logprob: Logprob | None = None) -> GenerationEvent:
        """Continue by a token.

        Args:
            token: the next id.
            logprob: of it; None where it was not asked for.

        Returns:
            What there is to say about it.
        """
        self.new_tokens += 1
        self.last = token
        self.sampler.took(token)
        is_stop = token in self.request.stop_tokens
        text = "" if is_stop else self._stop.push(self._stream.push(token))
        finish = None
        if is_stop or token in self._ends:
            finish = "stop"
        elif self.new_tokens == self.request.max_new_tokens:
            finish = "length"
        if finish is not None:
            text += self._stop.push(self._stream.end()) + self._stop.end()
        finish = "stop" if self._stop.is_over else finish
        return GenerationEvent(token, text, logprob, self.prompt_event() if self.new_tokens == 1 else None, finish)

    def prompt_event(self) -> tuple[Logprob, ...] | None:
        """Log probabilities of the prompt for the first event; None where they were not asked for."""
        return tuple(self.prompt_logprobs) if self.request.prompt_logprobs is not None else None

    def tell(self, event: GenerationEvent) -> None:
        """Hand an event to the caller, whose errors must not stop the other requests."""
        try:
            self._on_event(event)
        except Exception:
            _LOG.exception("a generation is cancelled, as nobody takes its events")
            self.cancel()
