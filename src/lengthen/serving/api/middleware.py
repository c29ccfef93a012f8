"""ASGI middleware: checks bearer tokens and their limits, and reads whole bodies within limits of time and size."""

import asyncio
import math
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import JSONResponse

__all__ = ["ApiMiddleware", "TokenLimits", "error_body", "error_response"]

_BODY_SECONDS = 30.0


def error_response(
    status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    """An error as OpenAI's clients expect it.

    Args:
        status: of HTTP.
        message: what was wrong, and what to do.
        code: OpenAI's, such as "model_not_found".
        headers: beside those of JSON.
    """
    return JSONResponse({"error": error_body(status, message, code)}, status, headers)


def error_body(status: int, message: str, code: str | None = None) -> dict[str, Any]:
    """The body of an OpenAI-style error response.

    Args:
        status: of HTTP.
        message: what was wrong, and what to do.
        code: OpenAI's, such as "model_not_found".
    """
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"message": message, "type": kind, "param": None, "code": code}


@dataclass(frozen=True)
class TokenLimits:
    """Limits of all clients of one token together; without tokens, of all clients.

    Attributes:
        concurrent: requests that are answered at a time; None for any number.
        per_minute: requests in a minute, some more or less close to each other; None for any number.
    """

    concurrent: int | None = None
    per_minute: int | None = None


@dataclass
class _Use:
    """Of one token: requests that are answered now, and how many more may come at a time."""

    limits: TokenLimits
    running: int = 0
    _left: float = field(init=False)
    _seen: float = field(init=False)

    def __post_init__(self) -> None:
        self._left, self._seen = float(self.limits.per_minute or 0), time.monotonic()

    def refuse(self) -> tuple[str, int] | None:
        """Why one more request is too much, and the seconds after which it may be asked again; else count it."""
        limits = self.limits
        if limits.concurrent is not None and self.running >= limits.concurrent:
            return f"{limits.concurrent} requests with this token are answered already, which is the most", 1
        if limits.per_minute is not None:
            now, rate = time.monotonic(), limits.per_minute / 60
            self._left = min(float(limits.per_minute), self._left + (now - self._seen) * rate)
            self._seen = now
            if self._left < 1:
                wait = math.ceil((1 - self._left) / rate)
                return f"more than {limits.per_minute} requests in a minute with this token; wait", wait
            self._left -= 1
        return None


@dataclass
class ApiMiddleware:
    """ASGI middleware.

    Attributes:
        app: the wrapped application.
        tokens: bearer tokens, of which every request but /health needs one; none for no such need.
        max_body: bytes.
        limits: of each token.
    """

    app: Any
    tokens: Sequence[str]
    max_body: int
    limits: TokenLimits = field(default_factory=TokenLimits)

    def __post_init__(self) -> None:
        self._uses = [_Use(self.limits) for _ in self.tokens or [""]]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, with its whole body, or answer it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["path"] == "/health":
            await self._answer(scope, receive, send)
            return
        use = self._use_of(scope)
        if use is None:
            refusal = error_response(
                401, "the bearer token is missing or wrong", "invalid_api_key", {"WWW-Authenticate": "Bearer"}
            )
            await refusal(scope, receive, send)
            return
        refused = use.refuse()
        if refused is not None:
            reason, seconds = refused
            headers = {"Retry-After": str(seconds)}
            await error_response(429, reason, "rate_limit_exceeded", headers)(scope, receive, send)
            return
        use.running += 1
        try:
            await self._answer(scope, receive, send)
        finally:
            use.running -= 1

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        names = {name for name, _ in scope["headers"]}
        if {b"content-length", b"transfer-encoding"} <= names:  # a proxy before us may have read it in the other way
            headers = {"Connection": "close"}
            await error_response(400, "Content-Length and Transfer-Encoding; send one of them", None, headers)(
                scope, receive, send
            )
            return
        try:
            body = await asyncio.wait_for(self._read(receive), _BODY_SECONDS)
        except (asyncio.TimeoutError, TimeoutError):
            await error_response(408, "the body did not arrive in time")(scope, receive, send)
            return
        if isinstance(body, JSONResponse):
            await body(scope, receive, send)
        elif body is not None:
            await self.app(scope, _Replay(body, receive), send)

    def _use_of(self, scope: Any) -> _Use | None:
        """Of the token that came with a request; None where there is none, or a wrong one."""
        if not self.tokens:
            return self._uses[0]
        given = dict(scope["headers"]).get(b"authorization", b"")
        right = [secrets.compare_digest(given, f"Bearer {token}".encode()) for token in self.tokens]  # all of them
        return self._uses[right.index(True)] if any(right) else None

    async def _read(self, receive: Any) -> bytes | JSONResponse | None:
        """The body; a refusal where it is too large; None where the client left."""
        body, size = bytearray(), 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            size += len(part)
            if size <= self.max_body:
                body += part
            # A body that is too large is read to its end, too: a client that still sends would not see the answer.
            if not message.get("more_body", False):
                break
        if size > self.max_body:
            return error_response(413, f"the body is larger than {self.max_body} bytes; shorten it")
        return bytes(body)


class _Replay:
    """Gives a body that was read already, and then what else comes."""

    def __init__(self, body: bytes, receive: Any):
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Any:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        return await self._receive()
