"""The HTTP application: OpenAI's completions, chat and fine-tuning, vLLM's adapter loading, health and metrics."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from lengthen.errors import BusyError, LengthenError
from lengthen.serving.api.fine_tuning_jobs import Training
from lengthen.serving.api.logprobs import ChatLogprobs, CompletionLogprobs
from lengthen.serving.api.metrics import metrics_text
from lengthen.serving.api.middleware import ApiMiddleware, TokenLimits, error_body, error_response
from lengthen.serving.api.schemas import (
    ChatRequest,
    CompletionRequest,
    LoadRequest,
    TrainingRequest,
    UnloadRequest,
    format_validation_errors,
)
from lengthen.serving.api.service import ApiError, RequestHandle, Service, usage_of
from lengthen.serving.engine import Event

__all__ = ["make_app"]

_LOOK_FOR_CLIENT = 0.5  # seconds between looks whether the client is still there

_PageSize = Annotated[int, Query(ge=1, le=1000)]


def make_app(
    service: Service,
    training: Training | None = None,
    tokens: Sequence[str] = (),
    max_body: int = 4 * 2**20,
    token_limits: TokenLimits | None = None,
) -> FastAPI:
    """Build the application; its engine works while the application is up.

    Args:
        service: what is offered.
        training: trains adapters by request; None where that is not allowed.
        tokens: bearer tokens, of which every request but /health needs one; none for no such need.
        max_body: bytes of a request's body, at most.
        token_limits: of the requests with one token; None for none.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        service.engine.start()
        yield
        await run_in_threadpool(service.engine.close)

    app = FastAPI(title="lengthen", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(ApiMiddleware, tokens=tokens, max_body=max_body, limits=token_limits or TokenLimits())
    _add_errors(app)
    _add_generation(app, service)
    _add_adapters(app, service)
    _add_training(app, training)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics")
    async def metrics() -> Response:
        return PlainTextResponse(metrics_text(service.engine), media_type="text/plain; version=0.0.4")

    return app


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def refusal(_request: Request, error: ApiError) -> Response:
        return error_response(error.status, error.message, error.code)

    @app.exception_handler(LengthenError)
    async def input_error(_request: Request, error: LengthenError) -> Response:
        if isinstance(error, BusyError):
            return error_response(429, str(error), headers={"Retry-After": "1"})
        return error_response(400, str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> Response:
        return error_response(400, format_validation_errors(error.errors()))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path}: {error.detail}"
        return error_response(error.status_code, message, headers=dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def our_error(_request: Request, _error: Exception) -> Response:
        return error_response(500, "an error of the server, which its log tells about")


def _add_generation(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(service, name) for name in service.names]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        service.adapter_of(name)
        return _model(service, name)

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        return await _Answer(service, body, "cmpl", "text_completion").response(request)

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        return await _ChatAnswer(service, body, "chatcmpl", "chat.completion").response(request)


def _add_adapters(app: FastAPI, service: Service) -> None:
    @app.post("/v1/load_lora_adapter")
    async def load(body: LoadRequest) -> Response:
        await run_in_threadpool(service.load, body.lora_name, body.lora_path)
        return PlainTextResponse(f"Success: adapter {body.lora_name!r} is loaded")

    @app.post("/v1/unload_lora_adapter")
    async def unload(body: UnloadRequest) -> Response:
        await run_in_threadpool(service.unload, body.lora_name)
        return PlainTextResponse(f"Success: adapter {body.lora_name!r} is unloaded")


def _add_training(app: FastAPI, training: Training | None) -> None:
    def allowed() -> Training:
        if training is None:
            raise ApiError(403, "adapters can't be trained by request; start the server with --allow-training FOLDER")
        return training

    @app.post("/v1/fine_tuning/jobs")
    async def create(body: TrainingRequest) -> dict[str, Any]:
        return (await run_in_threadpool(allowed().create, body)).to_json()

    @app.get("/v1/fine_tuning/jobs")
    async def jobs(after: str | None = None, limit: _PageSize = 20) -> dict[str, Any]:
        return _page([job.to_json() for job in allowed().jobs], after, limit)

    @app.get("/v1/fine_tuning/jobs/{job_id}")
    async def job(job_id: str) -> dict[str, Any]:
        return allowed().job(job_id).to_json()

    @app.get("/v1/fine_tuning/jobs/{job_id}/events")
    async def events(job_id: str, after: str | None = None, limit: _PageSize = 20) -> dict[str, Any]:
        return _page(allowed().job(job_id).events, after, limit)

    @app.post("/v1/fine_tuning/jobs/{job_id}/cancel")
    async def cancel(job_id: str) -> dict[str, Any]:
        return (await run_in_threadpool(allowed().cancel, job_id)).to_json()


def _page(items: Sequence[dict[str, Any]], after: str | None, limit: int) -> dict[str, Any]:
    """The newest items, or those before the one of which a client has the id; `items` are in order of time."""
    newest = list(reversed(items))
    if after is not None:
        ids = [item["id"] for item in newest]
        if after not in ids:
            raise ApiError(404, f"after: there is no {after!r} in this list")
        newest = newest[ids.index(after) + 1 :]
    return {"object": "list", "data": newest[:limit], "has_more": len(newest) > limit}


def _model(service: Service, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": service.created,
        "owned_by": "lengthen",
        "max_model_len": service.engine.base.context,
        "parent": None if name == service.base_name else service.base_name,
    }


class _Answer:
    """The answer to one request for completions."""

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
        self.prepare(handles)
        if self.body.stream:
            return _Stream(self._stream(handles), handles)
        try:
            return await self._whole(handles, request)
        finally:
            for handle in handles:
                handle.cancel()

    def prepare(self, handles: Sequence[RequestHandle]) -> None:
        """Make what belongs to each handle."""
        body = self.body
        assert isinstance(body, CompletionRequest)
        texts = body.echoed(self._tokenizer) if body.echo else [None] * (len(handles) // body.answers)
        self._echoed = [text for text in texts for _ in range(body.answers)]
        self._logprobs = [
            CompletionLogprobs(self._tokenizer, handle.prompt, text)
            for handle, text in zip(handles, self._echoed, strict=True)
        ]

    def before(self, index: int) -> str:
        """The text that stands before the first new token."""
        return self._echoed[index] or ""

    def choice(self, index: int, text: str, finish: str | None, entries: list[Any]) -> dict[str, Any]:
        """A whole text."""
        return {"index": index, "text": text, "finish_reason": finish, "logprobs": self._content(index, entries)}

    def piece(self, index: int, text: str, finish: str | None, entries: list[Any]) -> dict[str, Any]:
        """A part of one."""
        return self.choice(index, text, finish, entries)

    def beginning(self) -> list[dict[str, Any]]:
        """The choices of what a stream begins with, if anything."""
        return []

    def stream_kind(self) -> str:
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
        text = self.before(index) + "".join(event.text for event in events)
        return self.choice(index, text, events[-1].finish, entries)

    async def _stream(self, handles: Sequence[RequestHandle]) -> AsyncIterator[str]:
        options = self.body.stream_options
        asks_usage = options is not None and options.include_usage
        always = asks_usage and options is not None and bool(options.continuous_usage_stats)
        head = {**self._head, "object": self.stream_kind()}

        def part(choice: dict[str, Any]) -> str:
            usage = {"usage": self._usage(handles) if always else None} if asks_usage else {}
            return _sse({**head, "choices": [choice], **usage})

        texts = [self.before(index) for index in range(len(handles))]
        entries: list[list[Any]] = [[] for _ in handles]
        try:
            for choice in self.beginning():
                yield part(choice)
            async for index, event in _merged(handles, self._until):
                texts[index] += event.text
                entries[index] += self._logprobs[index].entries(event)
                # Tokens without a text yet, such as parts of a character, go with the next that has one.
                if texts[index] or event.finish:
                    yield part(self.piece(index, texts[index], event.finish, entries[index]))
                    texts[index], entries[index] = "", []
            if asks_usage:
                yield _sse({**head, "choices": [], "usage": self._usage(handles)})
            yield "data: [DONE]\n\n"
        except ApiError as error:  # too late for an HTTP status
            yield _sse({"error": error_body(error.status, error.message, error.code)})


class _ChatAnswer(_Answer):
    """The same for chat."""

    def prepare(self, handles: Sequence[RequestHandle]) -> None:
        self._logprobs = [ChatLogprobs(self._tokenizer) for _ in handles]

    def before(self, index: int) -> str:
        return ""

    def choice(self, index: int, text: str, finish: str | None, entries: list[Any]) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "message": message, "finish_reason": finish, "logprobs": self._content(index, entries)}

    def piece(self, index: int, text: str, finish: str | None, entries: list[Any]) -> dict[str, Any]:
        delta = {"content": text} if text else {}
        return {"index": index, "delta": delta, "finish_reason": finish, "logprobs": self._content(index, entries)}

    def beginning(self) -> list[dict[str, Any]]:
        delta = {"role": "assistant", "content": ""}
        return [
            {"index": index, "delta": delta, "finish_reason": None, "logprobs": None}
            for index in range(self.body.answers)
        ]

    def stream_kind(self) -> str:
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


async def _merged(handles: Sequence[RequestHandle], until: float) -> AsyncIterator[tuple[int, Event]]:
    """The events of all handles as they come."""
    queue: asyncio.Queue[tuple[int, Event | ApiError]] = asyncio.Queue()

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
