"""Answers to requests for completions and chats, whole or as server-sent events, in OpenAI's form."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response, StreamingResponse

from lengthen.serving.api.logprobs import ChatLogprobs, CompletionLogprobs
from lengthen.serving.api.middleware import error_body
from lengthen.serving.api.schemas import ChatRequest, CompletionRequest
from lengthen.serving.api.service import ApiError, RequestHandle, Service, usage_of
from lengthen.serving.engine import GenerationEvent

__all__ = ["ChatAnswer", "CompletionAnswer"]

_LOOK_FOR_CLIENT = 0.5  # seconds between looks whether the client is still there


class CompletionAnswer:
    """The answer to one request for completions.

    Args:
        service: with the engine that generates.
        body: the request, checked.
        prefix: of the answer's id.
        kind: its `object` in OpenAI's form.

    Raises:
        ApiError: the service has no such model.
    """

    body: CompletionRequest | ChatRequest

    def __init__(self, service: Service, body: CompletionRequest | ChatRequest, prefix: str, kind: str):
        self._service, self.body, self._kind = service, body, kind
        self._tokenizer = service.engine.tokenizer_of(service.adapter_of(body.model))
        self._head = {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": body.model}
        self._until = time.monotonic() + service.timeout
        self._logprobs: list[CompletionLogprobs | ChatLogprobs] = []

    async def response(self, request: Request) -> Response:
        """The whole answer, or a stream of its parts."""
        handles = self._service.submit(await run_in_threadpool(self._service.requests, self.body))
        self._prepare(handles)
        if self.body.stream:
            return _Stream(self._stream(handles), handles)
        try:
            return await self._whole(handles, request)
        finally:
            for handle in handles:
                handle.cancel()

    def _prepare(self, handles: Sequence[RequestHandle]) -> None:
        """Make what belongs to each handle."""
        body = self.body
        assert isinstance(body, CompletionRequest)
        texts = body.echoed(self._tokenizer) if body.echo else [None] * (len(handles) // body.answers)
        self._echoed = [text for text in texts for _ in range(body.answers)]
        self._logprobs = [
            CompletionLogprobs(self._tokenizer, handle.prompt, text)
            for handle, text in zip(handles, self._echoed, strict=True)
        ]

    def _before(self, index: int) -> str:
        """The text that stands before the first new token."""
        return self._echoed[index] or ""

    def _choice(self, index: int, text: str, finish: str | None, entries: list[Any]) -> dict[str, Any]:
        """A choice with a whole text."""
        return {"index": index, "text": text, "finish_reason": finish, "logprobs": self._content(index, entries)}

    def _piece(self, index: int, text: str, finish: str | None, entries: list[Any]) -> dict[str, Any]:
        """A choice with a part of a text."""
        return self._choice(index, text, finish, entries)

    def _beginning(self) -> list[dict[str, Any]]:
        """The choices of what a stream begins with, if anything."""
        return []

    def _stream_kind(self) -> str:
        """The object of a stream's parts."""
        return self._kind

    def _content(self, index: int, entries: list[Any]) -> dict[str, Any] | None:
        asked = self.body.wanted_logprobs()[0] is not None
        return self._logprobs[index].content(entries) if asked else None

    def _usage(self, handles: Sequence[RequestHandle]) -> dict[str, Any]:
        return usage_of(handles, self.body.answers)

    async def _whole(self, handles: Sequence[RequestHandle], request: Request) -> Response:
        gathering = asyncio.gather(*(self._gather(index, handle) for index, handle in enumerate(handles)))
        watching = asyncio.ensure_future(_client_leaves(request))
        try:
            tasks: list[asyncio.Future[Any]] = [gathering, watching]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not gathering.done():
                return Response(status_code=499)  # to nobody
            choices = gathering.result()
        finally:
            for task in (gathering, watching):
                task.cancel()
                with suppress(asyncio.CancelledError, ApiError):
                    await task
        return JSONResponse({**self._head, "object": self._kind, "choices": choices, "usage": self._usage(handles)})

    async def _gather(self, index: int, handle: RequestHandle) -> dict[str, Any]:
        events = [event async for event in handle.events(self._until)]
        entries = [entry for event in events for entry in self._logprobs[index].entries(event)]
        text = self._before(index) + "".join(event.text for event in events)
        return self._choice(index, text, events[-1].finish, entries)

    async def _stream(self, handles: Sequence[RequestHandle]) -> AsyncIterator[str]:
        options = self.body.stream_options
        asks_usage = options is not None and options.include_usage
        always = asks_usage and options is not None and bool(options.continuous_usage_stats)
        head = {**self._head, "object": self._stream_kind()}

        def part(choice: dict[str, Any]) -> str:
            usage = {"usage": self._usage(handles) if always else None} if asks_usage else {}
            return _sse({**head, "choices": [choice], **usage})

        texts = [self._before(index) for index in range(len(handles))]
        entries: list[list[Any]] = [[] for _ in handles]
        try:
            for choice in self._beginning():
                yield part(choice)
            async for index, event in _merged(handles, self._until):
                texts[index] += event.text
                entries[index] += self._logprobs[index].entries(event)
                # Tokens without a text yet, such as parts of a character, go with the next that has one.
                if texts[index] or event.finish:
                    yield part(self._piece(index, texts[index], event.finish, entries[index]))
                    texts[index], entries[index] = "", []
            if asks_usage:
                yield _sse({**head, "choices": [], "usage": self._usage(handles)})
            yield "data: [DONE]\n\n"
        except ApiError as error:  # too late for an HTTP status
            yield _sse({"error": error_body(error.status, error.message, error.code)})


class ChatAnswer(CompletionAnswer):
    """The answer to one request for chat."""

    def _prepare(self, handles: Sequence[RequestHandle]) -> None:
        self._logprobs = [ChatLogprobs(self._tokenizer) for _ in handles]

    def _before(self, index: int) -> str:
        return ""

    def _choice(self, index: int, text: str, finish: str | None, entries: list[Any]) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "message": message, "finish_reason": finish, "logprobs": self._content(index, entries)}

    def _piece(self, index: int, text: str, finish: str | None, entries: list[Any]) -> dict[str, Any]:
        delta = {"content": text} if text else {}
        return {"index": index, "delta": delta, "finish_reason": finish, "logprobs": self._content(index, entries)}

    def _beginning(self) -> list[dict[str, Any]]:
        delta = {"role": "assistant", "content": ""}
        return [
            {"index": index, "delta": delta, "finish_reason": None, "logprobs": None}
            for index in range(self.body.answers)
        ]

    def _stream_kind(self) -> str:
        return "chat.completion.chunk"


class _Stream(StreamingResponse):
    """Server-sent events; where the client leaves, even before the first, its handles are cancelled."""

    def __init__(self, content: AsyncIterator[str], handles: Sequence[RequestHandle]):
        super().__init__(content, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._handles = handles

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            for handle in self._handles:
                handle.cancel()


async def _merged(handles: Sequence[RequestHandle], until: float) -> AsyncIterator[tuple[int, GenerationEvent]]:
    """The events of all handles as they come."""
    queue: asyncio.Queue[tuple[int, GenerationEvent | ApiError]] = asyncio.Queue()

    async def forward(index: int, handle: RequestHandle) -> None:
        try:
            async for event in handle.events(until):
                queue.put_nowait((index, event))
        except ApiError as error:
            queue.put_nowait((index, error))

    tasks = [asyncio.ensure_future(forward(index, handle)) for index, handle in enumerate(handles)]
    try:
        left = len(handles)
        while left:
            index, event = await queue.get()
            if isinstance(event, ApiError):
                raise event
            left -= event.finish is not None
            yield index, event
    finally:
        for task in tasks:
            task.cancel()


async def _client_leaves(request: Request) -> None:
    while not await request.is_disconnected():
        await asyncio.sleep(_LOOK_FOR_CLIENT)


def _sse(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"
