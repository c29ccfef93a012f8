"""Middleware of the web page: the routes that it needs and no other of Gradio's, and bounded uploads."""

import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.responses import PlainTextResponse

from lengthen.files import parse_json

__all__ = ["MOST_FILES", "MOST_FILE_BYTES", "PageGuard"]

MOST_FILES = 20  # of one upload
MOST_FILE_BYTES = 64 * 2**20
_MOST_HELD = 512 * 2**20  # bytes of all uploads that are not read yet
_KEPT = 600  # seconds that they may wait
_MOST_BODY = 2**20  # bytes of other requests: questions and settings

_PAGE = ("/assets/", "/static/", "/svelte/", "/pwa_icon")
_FILES = {"/", "/config", "/config/", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt"}
_API = "/gradio_api"
_ASKED = (f"{_API}/queue/data", f"{_API}/heartbeat/", f"{_API}/upload_progress", f"{_API}/startup-events",
          f"{_API}/theme.css", f"{_API}/info", f"{_API}/app_id")  # fmt: skip
_UPLOAD = f"{_API}/upload"
_EVENTS = {f"{_API}/queue/join", f"{_API}/run/predict"}  # the latter for examples
_SENT = {_UPLOAD, *_EVENTS, f"{_API}/cancel", f"{_API}/reset", f"{_API}/reset/"}


@dataclass
class PageGuard:
    """ASGI middleware. Gradio would also serve files of its folders, fetch URLs, and run events by name.

    Attributes:
        app: Gradio's.
        uploads: the folder in which uploads wait to be read.
    """

    app: Any
    uploads: Path

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        refusal = self._refusal(scope)
        if refusal is None and scope["path"] in _EVENTS:
            body = await _read(receive)
            refusal = (400, "files are uploaded, not fetched") if _names_url(body) else None
            receive = _replay(body, receive)
        if refusal is None:
            await self.app(scope, receive, send)
        else:
            status, text = refusal
            await PlainTextResponse(text, status, {"Connection": "close"})(scope, receive, send)

    def _refusal(self, scope: Any) -> tuple[int, str] | None:
        path, method = scope["path"], scope["method"]
        if method in ("GET", "HEAD"):
            is_part = path in _FILES or _begins(path, _PAGE) or _begins(path, _ASKED)
            return None if is_part else (404, "there is no such page")
        if method != "POST" or path not in _SENT:
            return 404, "there is no such page"
        length = dict(scope["headers"]).get(b"content-length", b"")
        if not length.isdigit():
            return 411, "say how long the request is"
        most = _MOST_BODY if path != _UPLOAD else min(MOST_FILES * MOST_FILE_BYTES, _MOST_HELD - self._held())
        return (413, "too large; load less at once, or wait a minute") if int(length) > most else None

    def _held(self) -> int:
        """Bytes of the uploads that wait to be read; what nobody read in time goes."""
        held, now = 0, time.time()
        for path in self.uploads.rglob("*"):
            with suppress(OSError):  # it is read and gone meanwhile
                about = path.stat()
                if path.is_file() and now - about.st_mtime > _KEPT:
                    path.unlink()
                elif path.is_file():
                    held += about.st_size
        return held


async def _read(receive: Any) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


def _replay(body: bytes, receive: Any) -> Any:
    """A `receive` that gives the body first."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Any:
        return messages.pop() if messages else await receive()

    return again


def _names_url(body: bytes) -> bool:
    """Whether a file of a request is one that Gradio would fetch from elsewhere."""
    try:
        values = [parse_json(body)]
    except ValueError:
        return True
    while values:
        value = values.pop()
        if isinstance(value, dict):
            if re.match(r"\s*\w+://", str(value.get("path"))):
                return True
            values += value.values()
        elif isinstance(value, list):
            values += value
    return False


def _begins(path: str, prefixes: Sequence[str]) -> bool:
    return path.startswith(tuple(prefixes)) and ".." not in path
