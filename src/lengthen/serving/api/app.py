"""The HTTP application: OpenAI's completions, chat and fine-tuning, vLLM's adapter loading, health and metrics."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response

from lengthen.errors import BusyError, LengthenError
from lengthen.serving.api.adapter_requests import LoadRequest, TrainingRequest, UnloadRequest
from lengthen.serving.api.answers import ChatAnswer, CompletionAnswer
from lengthen.serving.api.fine_tuning_jobs import Training
from lengthen.serving.api.metrics import metrics_text
from lengthen.serving.api.middleware import ApiMiddleware, TokenLimits, error_response
from lengthen.serving.api.schemas import ChatRequest, CompletionRequest, format_validation_errors
from lengthen.serving.api.service import ApiError, Service

__all__ = ["make_app"]

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
        return await CompletionAnswer(service, body, "cmpl", "text_completion").response(request)

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        return await ChatAnswer(service, body, "chatcmpl", "chat.completion").response(request)


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
            raise ApiError(403, "adapters can't be trained by request; start the server with `allow_training`")
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
