"""Connections end: uvicorn itself waits forever for the head of a request, and for a client to take its answer."""

import asyncio
import resource
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["bounded_protocol"]

_OTHER_FILES = 256  # beside connections: weights, runs, and what Python opens
_HEAD, _NEXT = "the rest of a head", "the next request"


def bounded_protocol(most: int, idle_seconds: float, answer_seconds: float, kept_seconds: float) -> type[H11Protocol]:
    """A protocol for `uvicorn.Config(http=...)`, of one server.

    Args:
        most: connections at a time. One more takes the place of the one that has been idle for longest, so that who
            holds many of them open locks nobody out.
        idle_seconds: until the whole head of a request has come, from its first byte or the connection's beginning on.
        answer_seconds: from then until the client has taken all of the answer.
        kept_seconds: from then until the next request begins. uvicorn's own `timeout_keep_alive` should end before: it
            closes a connection where this breaks it.
    """
    _allow_files(most + _OTHER_FILES)
    idle: dict[H11Protocol, None] = {}  # the one that has been so for longest comes first

    class Bounded(H11Protocol):
        _clock: asyncio.TimerHandle | None = None
        _timed: Any = None  # what is waited for: the answer to a request, _HEAD or _NEXT

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._look()
            if len(self.connections) > most:
                longest = next(iter(idle))
                del idle[longest]  # it is told only later that it is lost
                longest.transport.abort()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._look()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._look()

        def connection_lost(self, exc: Exception | None) -> None:
            idle.pop(self, None)
            if self._clock is not None:
                self._clock.cancel()
            super().connection_lost(exc)

        def _look(self) -> None:
            """Start the clock anew where the connection became idle or busy; what dribbles in does not."""
            # An answer that is complete for us can still wait for the client to take it.
            is_taken = not self.transport.is_closing() and self.transport.get_write_buffer_size() == 0
            is_answering = self.cycle is not None and not (self.cycle.response_complete and is_taken)
            is_next = self.cycle is not None and not self.conn.trailing_data[0]
            timed = self.cycle if is_answering else _NEXT if is_next else _HEAD
            if timed is self._timed:
                return
            self._timed = timed
            if self._clock is not None:
                self._clock.cancel()
            seconds = answer_seconds if is_answering else kept_seconds if timed is _NEXT else idle_seconds
            self._clock = self.loop.call_later(seconds, self.transport.abort)
            idle.pop(self, None)
            if not is_answering:
                idle[self] = None

    return Bounded


def _allow_files(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft not in (-1, resource.RLIM_INFINITY) and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
