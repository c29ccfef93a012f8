"""Connections end: uvicorn itself waits forever for the head of a request, and for a client to take its answer."""

import asyncio
import resource
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["bounded_protocol"]

_OTHER_FILES = 256  # beside connections: weights, runs, and what Python opens


def bounded_protocol(most: int, idle_seconds: float, answer_seconds: float) -> type[H11Protocol]:
    """A protocol for `uvicorn.Config(http=...)`, of one server.

    Args:
        most: connections at a time. One more takes the place of the one that has been idle for longest, so that who
            holds many of them open locks nobody out.
        idle_seconds: until the whole head of a request has come.
        answer_seconds: from then until the client has taken all of the answer.
    """
    _allow_files(most + _OTHER_FILES)
    idle: dict[H11Protocol, None] = {}  # the one that has been so for longest comes first

    class Bounded(H11Protocol):
        _clock: asyncio.TimerHandle | None = None
        _timed: Any = None  # what the clock is for: the answer to a request, or None for an idle connection

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
            answer = None if self.cycle is None or self.cycle.response_complete else self.cycle
            if self._clock is not None:
                if answer is self._timed:
                    return
                self._clock.cancel()
            self._timed = answer
            seconds = idle_seconds if answer is None else answer_seconds
            self._clock = self.loop.call_later(seconds, self.transport.abort)
            idle.pop(self, None)
            if answer is None:
                idle[self] = None

    return Bounded


def _allow_files(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft not in (-1, resource.RLIM_INFINITY) and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
