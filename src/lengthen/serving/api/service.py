"""The server without HTTP: names, permitted folders, tokens, and generations as asyncio sees them."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lengthen.data.control_tokens import ControlTokens
from lengthen.errors import LengthenError
from lengthen.serving.api.schemas import ChatRequest, CompletionRequest
from lengthen.serving.engine import Engine, GenerationEvent, GenerationRequest
from lengthen.serving.engine.adapter_weights import adapter_folder

__all__ = ["ApiError", "RequestHandle", "Service", "usage_of"]


class ApiError(Exception):
    """A request that is answered by an error: HTTP status, message, OpenAI's code.

    Args:
        status: of HTTP.
        message: for people.
        code: OpenAI's word for it; None for none.
    """

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class RequestHandle:
    """One generation, as the event loop sees it.

    Args:
        engine: generates.
        request: what to generate.

    Raises:
        LengthenError: the engine refuses it (`Engine.submit`).
    """

    def __init__(self, engine: Engine, request: GenerationRequest):
        self.prompt = list(request.prompt)
        self._events: asyncio.Queue[GenerationEvent] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(event: GenerationEvent) -> None:
            loop.call_soon_threadsafe(self._events.put_nowait, event)

        self._generation = engine.submit(request, tell)

    @property
    def new_tokens(self) -> int:
        """Generated so far."""
        return self._generation.new_tokens

    def cancel(self) -> None:
        """Stop it, if it is not finished."""
        self._generation.cancel()

    async def events(self, until: float) -> AsyncIterator[GenerationEvent]:
        """The events of the generation, the last one with `finish`.

        Args:
            until: `time.monotonic()` at which it must be finished.

        Raises:
            ApiError: it took too long, it failed, or the server is closing.
        """
        while True:
            try:
                event = await asyncio.wait_for(self._events.get(), max(0.0, until - time.monotonic()))
            except (asyncio.TimeoutError, TimeoutError) as error:
                raise ApiError(504, "the answer took too long; ask for fewer tokens, or try again later") from error
            if event.finish == "failed":
                raise ApiError(500, event.error or "the generation failed")
            if event.finish == "cancelled":
                raise ApiError(503, "the server is closing")
            yield event
            if event.finish is not None:
                return


@dataclass
class Service:
    """An engine under names.

    Attributes:
        engine: what generates.
        base_name: by which the base without adapters is asked for; None where it is not offered.
        allowed: folders from which adapters may be loaded by request.
        max_tokens: that one request may ask for; None for what the context leaves.
        timeout: seconds that one request may take.
    """

    engine: Engine
    base_name: str | None
    allowed: Sequence[Path] = ()
    max_tokens: int | None = None
    timeout: float = 600.0

    def __post_init__(self) -> None:
        self.created = int(time.time())
        self._tokenizer_lock = threading.Lock()
        self._control_tokens = lru_cache(maxsize=32)(ControlTokens)

    @property
    def names(self) -> list[str]:
        """Names of the models: the base and the adapters."""
        return [*([self.base_name] if self.base_name is not None else []), *self.engine.registry.names]

    def adapter_of(self, model: str) -> str | None:
        """The adapter that a model's name means, None for the base.

        Raises:
            ApiError: there is no such model.
        """
        if model == self.base_name:
            return None
        if model not in self.engine.registry:
            names = ", ".join(self.names) or "none"
            raise ApiError(404, f"there is no model {model!r}; there are {names}", "model_not_found")
        return model

    def requests(self, body: CompletionRequest | ChatRequest) -> list[GenerationRequest]:
        """A body as what the engine takes: for each prompt as many requests as answers are asked for.

        Slow for long prompts: not for the event loop.

        Raises:
            ApiError: more tokens are asked for than may be, or there is no such model.
            DataError: it does not fit the model.
        """
        adapter, context = self.adapter_of(body.model), self.engine.base.context
        tokenizer = self.engine.tokenizer_of(adapter)
        with self._tokenizer_lock:
            prompts = body.prompts(tokenizer, self._control_tokens(tokenizer))
        found: list[GenerationRequest] = []
        for prompt in prompts:
            room = context - len(prompt)
            if self.max_tokens is not None:
                room = min(room, self.max_tokens)
            wanted = body.new_tokens(room)
            if self.max_tokens is not None and wanted > self.max_tokens:
                raise ApiError(400, f"max_tokens is {wanted}, and this server gives at most {self.max_tokens}")
            found += body.generation(prompt, adapter, wanted)
        return found

    def submit(self, requests: Sequence[GenerationRequest]) -> list[RequestHandle]:
        """Queue requests, all of them or none.

        Raises:
            LengthenError: as `Engine.submit`.
        """
        handles: list[RequestHandle] = []
        try:
            for request in requests:
                handles.append(RequestHandle(self.engine, request))
        except LengthenError:
            for handle in handles:
                handle.cancel()
            raise
        return handles

    def load(self, name: str, path: str) -> None:
        """Load an adapter by request. Slow: not for the event loop.

        Args:
            name: by which requests will call it.
            path: of its folder, below an allowed one.

        Raises:
            ApiError: the name or the path is not allowed.
            ModelError: it can't be served, or the name is taken.
        """
        self.check_new(name)
        self.engine.load_adapter(name, self._allowed(path))

    def check_new(self, name: str) -> None:
        """Refuse the name of the base or of an adapter.

        Raises:
            ApiError: it is the base's.
            ModelError: it is an adapter's.
        """
        if name == self.base_name:
            raise ApiError(400, f"{name!r} is the base; choose another name")
        self.engine.registry.check_new(name)

    def count_tokens(self, texts: Sequence[str], at_most: int) -> int:
        """Tokens of texts, counted no further than to the first text with which they are more than `at_most`.

        Slow: not for the event loop.

        Args:
            texts: to count.
            at_most: tokens that matter.
        """
        total = 0
        for text in texts:
            with self._tokenizer_lock:
                total += len(self.engine.tokenizer(text, verbose=False)["input_ids"])
            if total > at_most:
                break
        return total

    def unload(self, name: str) -> None:
        """Forget an adapter.

        Raises:
            ApiError: there is none of this name.
        """
        if name not in self.engine.registry:
            names = ", ".join(self.engine.registry.names) or "none"
            raise ApiError(404, f"there is no adapter {name!r}; there are {names}", "model_not_found")
        self.engine.unload_adapter(name)

    def _allowed(self, path: str) -> Path:
        if not self.allowed:
            raise ApiError(403, "adapters can't be loaded by request; start the server with `allow`")
        roots = [folder.resolve() for folder in self.allowed]
        try:
            places = [(root / path).resolve() for root in roots]  # an absolute path stays as it is
            inside = [place for place in places if any(place.is_relative_to(root) for root in roots)]
            if not inside:
                raise ApiError(403, f"{path} is outside of the folders from which adapters may be loaded")
            folder = adapter_folder(next((place for place in inside if place.exists()), inside[0])).resolve()
        except (OSError, ValueError) as error:  # too long, a null byte, links in a circle
            raise ApiError(400, "lora_path is no path") from error
        if not any(folder.is_relative_to(root) for root in roots):
            raise ApiError(403, f"{path} leads outside of the folders from which adapters may be loaded")
        return folder


def usage_of(handles: Sequence[RequestHandle], answers: int) -> dict[str, Any]:
    """Tokens of the handles of one HTTP request, with so many answers to each prompt, which counts once.

    Args:
        handles: of one HTTP request.
        answers: to each prompt.
    """
    prompt, new = sum(len(handle.prompt) for handle in handles[::answers]), sum(handle.new_tokens for handle in handles)
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}
