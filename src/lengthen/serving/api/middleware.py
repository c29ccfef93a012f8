"""ASGI middleware: checks the bearer token, and reads whole bodies within limits of time and size."""

import asyncio
import secrets
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse

__all__ = ["ApiMiddleware", "error_body", "error_response"]

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


@dataclass
class ApiMiddleware:
    """ASGI middleware.

    Attributes:
        app: the wrapped application.
        token: the bearer token that every request but /health needs; None for none.
        max_body: bytes.
    """

    app: Any
    token: str | None
    max_body: int

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, with its whole body, or answer it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if not self._is_allowed(scope):
            refusal = error_response(
                401, "the bearer token is missing or wrong", "invalid_api_key", {"WWW-Authenticate": "Bearer"}
            )
            await refusal(scope, receive, send)
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

    def _is_allowed(self, scope: Any) -> bool:
        if self.token is None or scope["path"] == "/health":
            return True
        given = dict(scope["headers"]).get(b"authorization", b"")
        return secrets.compare_digest(given, f"Bearer {self.token}".encode())

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
            # What is too large is read to its end all the same: a client that still sends would not see the answer.
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
