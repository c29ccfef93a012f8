"""A request on its way: its tokens, its text and its end."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lengthen.decoding.generate import TextStream
from lengthen.errors import ModelError
from lengthen.serving.engine.registry import Adapter
from lengthen.serving.engine.sampling import GenerationRequest, Logprob, Sampler, StopText

__all__ = ["Completion", "Event", "Generation"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Event:
    """A step of a generation.

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
    """A whole generation: its tokens, its text and why it ended (see `Event`)."""

    tokens: tuple[int, ...]
    text: str
    finish: str

    @classmethod
    def of(cls, events: Sequence[Event]) -> "Completion":
        """All events of a generation as one.

        Raises:
            ModelError: it failed.
        """
        last = events[-1]
        if last.error is not None:
            raise ModelError(last.error)
        tokens = tuple(event.token for event in events if event.token is not None)
        return cls(tokens, "".join(event.text for event in events), str(last.finish))


class Generation:
    """A request on its way.

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
        on_event: Callable[[Event], None],
        ends: set[int],
    ):
        self.request, self.adapter, self._on_event = request, adapter, on_event
        self._ends = set() if request.ignore_end else ends
        self.sampler = Sampler(request, ends)
        self.prompt_logprobs: list[Logprob] = []
        self.new_tokens, self.last = 0, int(request.prompt[-1])
        self.submitted = time.perf_counter()
        self.is_cancelled, self.is_running = False, False
        self._stream = TextStream(tokenizer, list(request.prompt))
        self._stop = StopText(request.stop)

    @property
    def reserve(self) -> int:
        """Tokens that it will have at most."""
        return len(self.request.prompt) + self.request.max_new_tokens

    def cancel(self) -> None:
        """Stop at the next token; nothing happens where it is finished."""
        self.is_cancelled = True

    def take(self, token: int, logprob: Logprob | None = None) -> Event:
        """Continue by a token."""
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
        return Event(token, text, logprob, self.prompt_event() if self.new_tokens == 1 else None, finish)

    def prompt_event(self) -> tuple[Logprob, ...] | None:
        """What the first event says about the prompt."""
        return tuple(self.prompt_logprobs) if self.request.prompt_logprobs is not None else None

    def tell(self, event: Event) -> None:
        """Hand an event to whoever asked; one who does not listen any more is no reason to stop for the others."""
        try:
            self._on_event(event)
        except Exception:
            _LOG.exception("a generation is cancelled, as nobody takes its events")
            self.cancel()
