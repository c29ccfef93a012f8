"""A client of servers that speak OpenAI's chat protocol: vLLM, llama.cpp, `lengthen serve`, hosted ones."""

import json
import re
import time
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from lengthen.errors import LengthenError
from lengthen.files import parse_json

__all__ = ["Endpoint", "EndpointReply"]

_TIMEOUT = 600  # seconds; a long passage may wait in the server's queue
_WAITS = (1, 4, 16)  # seconds before each new try
_BUSY = {408, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class EndpointReply:
    """The model's text, and whether it is whole (False where it ran into `max_tokens`)."""

    text: str
    whole: bool


class Endpoint:
    """A model behind an OpenAI-compatible server.

    Args:
        url: the server's base, such as http://localhost:8000/v1; a URL without a path gets /v1.
        model: its name there.
        key: sent as the bearer token; None for none.

    Raises:
        LengthenError: `url` is no http(s) URL.
    """

    def __init__(self, url: str, model: str, key: str | None = None):
        if not re.match(r"https?://[^/\s]+(/\S*)?$", url):
            raise LengthenError(f"endpoint {url!r} is no URL; write it as http://localhost:8000/v1")
        base = url.rstrip("/").removesuffix("/chat/completions")
        self.url = base if base.count("/") > 2 else f"{base}/v1"
        self.model = model
        self._headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}

    def ask(self, prompt: str, max_tokens: int, temperature: float) -> EndpointReply:
        """Send one user message; a server that is busy is asked again after 1, 4 and 16 seconds.

        Args:
            prompt: the message.
            max_tokens: of the answer, at most.
            temperature: 0 takes the likeliest token.

        Raises:
            LengthenError: nothing answers there, the server refuses, or answers something else than the protocol.
        """
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
            "temperature": temperature,
        }
        answered = self._post(json.dumps(body).encode("utf-8"))
        try:
            choice = parse_json(answered)["choices"][0]
            text = choice["message"]["content"]
            # A model that called a tool or was stopped by a filter has no text.
            return EndpointReply("" if text is None else str(text), choice.get("finish_reason") != "length")
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise LengthenError(
                f"{self.url} does not answer in OpenAI's chat protocol but with {_shown(answered)}; check the URL"
            ) from error

    def _post(self, body: bytes) -> bytes:
        for wait in (*_WAITS, None):
            try:
                request = Request(f"{self.url}/chat/completions", body, self._headers)
                # Nothing but http(s), as `__init__` sees to.
                with urlopen(request, timeout=_TIMEOUT) as response:  # nosec B310
                    content: bytes = response.read()
                    return content
            except HTTPError as error:
                if error.code not in _BUSY or wait is None:
                    raise LengthenError(f"{self.url} refuses ({error.code}): {_refusal(error)}") from error
                time.sleep(wait)
            except (URLError, HTTPException, OSError) as error:
                reason: Any = getattr(error, "reason", None) or error
                raise LengthenError(f"{self.url} does not answer ({reason}); is the server running?") from error
        raise AssertionError("the last try returns or raises")


def _refusal(error: HTTPError) -> str:
    """The server's own words, where it has some."""
    content = error.read()
    try:
        said = parse_json(content)
        return _shown(str((said.get("error") or said)["message"]).encode())
    except (ValueError, LookupError, TypeError, AttributeError):
        return _shown(content) if content else error.reason


def _shown(content: bytes) -> str:
    return " ".join(content.decode("utf-8", "replace").split())[:200] or "nothing"
