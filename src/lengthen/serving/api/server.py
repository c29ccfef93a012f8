"""Load a base and its adapters, and serve them until a signal."""

import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lengthen.adapters.load import load_apart
from lengthen.adapters.scale import check_scale
from lengthen.errors import LengthenError, require
from lengthen.locks import locked
from lengthen.models.devices import Dtype, default_device
from lengthen.models.resolve import resolve_base
from lengthen.serving.engine import Engine, Limits, LoadedBase

if TYPE_CHECKING:
    import uvicorn

    from lengthen.serving.api.fine_tuning_jobs import Training
    from lengthen.serving.api.service import Service

__all__ = ["ServerSettings", "serve"]

_IDLE_SECONDS = 10.0  # without the whole head of a request
# Longer than clients keep idle connections (httpx and so openai 5 s, aiohttp 15, Go 90): where the server is the first
# to close one, a request may be on its way and is lost.
_KEPT_SECONDS = 120
_TAKING_SECONDS = 60.0  # beyond the time of a request, for a client that takes its answer slowly


@dataclass(frozen=True)
class ServerSettings:
    """Where and how to serve.

    Attributes:
        host: address to listen at.
        port: 0 for any free one.
        tokens: bearer tokens, of which clients have to send one; none for no such need.
        max_concurrent: requests with one token that are answered at a time; None for any number.
        max_per_minute: requests with one token in a minute; None for any number.
        max_connections: at a time; one more takes the place of the one that has been idle for longest.
        allow: folders from which adapters may be loaded by request.
        allow_training: folder in which adapters may be trained by request, and from which they may be loaded; None
            for no training.
        max_tokens: that one request may ask for; None for what the context leaves.
        max_body: bytes of one request.
        timeout: seconds that one request may take.
        grace: seconds that running requests have to finish when the server is told to stop.
        limits: of the engine.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    tokens: Sequence[str] = ()
    max_concurrent: int | None = None
    max_per_minute: int | None = None
    max_connections: int = 1000
    allow: Sequence[Path] = ()
    allow_training: Path | None = None
    max_tokens: int | None = None
    max_body: int = 4 * 2**20
    timeout: float = 600.0
    grace: float = 30.0
    limits: Limits = field(default_factory=Limits)


def serve(
    model: str,
    adapters: dict[str, Path],
    settings: ServerSettings,
    *,
    dtype: Dtype | None = None,
    quantize: str | None = None,
    template: str | None = None,
    base_context: int | None = None,
    adapter_scale: float = 1.0,
    on_ready: Callable[[str, list[str]], None] = lambda _url, _names: None,
) -> None:
    """Serve until SIGINT or SIGTERM; a second one stops at once.

    Args:
        model: base or run folder. A run folder's adapter is served under the folder's name, and its base only under
            adapters, as its positions are the run's.
        adapters: PEFT or run folders by name.
        settings: where and how.
        dtype: of the base, see `lengthen.load`.
        quantize: "nf4" or "none"; default as a run was trained.
        template: chat template by name, in place of the tokenizer's own and of those beside adapters.
        base_context: of the base, tokens, where its files leave that open.
        adapter_scale: the share of every adapter that is applied, 0 to 1.
        on_ready: called with the URL and the names, just before requests are taken.

    Raises:
        LengthenError: fastapi or uvicorn is missing, the address can't be used, or something can't be loaded.
    """
    require("serving", "serve", "fastapi", "uvicorn")
    import uvicorn

    from lengthen.serving.api.fine_tuning_jobs import Training
    from lengthen.serving.api.service import Service

    check_scale(adapter_scale)
    for folder in settings.allow:
        if not folder.is_dir():
            raise LengthenError(f"`allow={folder}` is no folder; give one that holds adapters")
    if settings.allow_training is not None:
        _check_training(settings.allow_training, model)
    with _listen(settings.host, settings.port) as listener, _holding(settings.allow_training):
        engine, base_name = _load(
            model, adapters, settings.limits, dtype, quantize, template, base_context, adapter_scale
        )
        folders = [folder for folder in (*settings.allow, settings.allow_training) if folder is not None]
        service = Service(engine, base_name, folders, settings.max_tokens, settings.timeout)
        training = None
        if settings.allow_training is not None:
            nf4 = "nf4" if quantize == "nf4" else None
            training = Training(service, settings.allow_training, model, nf4, dtype)
        server = uvicorn.Server(_config(settings, service, training))
        if training is not None:
            training.go_on()
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        on_ready(f"http://{host}:{listener.getsockname()[1]}", service.names)
        # uvicorn raises the signal that stopped it again, when all is closed: that is the end, and no error.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            server.run(sockets=[listener])
        except KeyboardInterrupt:
            return
        finally:
            if training is not None:
                training.close()


def _config(settings: ServerSettings, service: "Service", training: "Training | None") -> "uvicorn.Config":
    """How uvicorn runs the application."""
    import uvicorn

    from lengthen.serving.api.app import make_app
    from lengthen.serving.api.connections import bounded_protocol
    from lengthen.serving.api.middleware import TokenLimits

    limits = TokenLimits(settings.max_concurrent, settings.max_per_minute)
    return uvicorn.Config(
        make_app(service, training, settings.tokens, settings.max_body, limits),
        http=bounded_protocol(
            most=settings.max_connections,
            idle_seconds=_IDLE_SECONDS,
            answer_seconds=settings.timeout + _TAKING_SECONDS,
            kept_seconds=_KEPT_SECONDS + _IDLE_SECONDS,
        ),
        timeout_keep_alive=_KEPT_SECONDS,
        ws="none",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=max(1, round(settings.grace)),
    )


def _check_training(folder: Path, model: str) -> None:
    if not folder.is_dir():
        raise LengthenError(f"`allow_training={folder}` is no folder; make one for the runs")
    resolve_base(model, "`allow_training` trains over a base, so export it first and serve what comes out")


def _holding(training: Path | None) -> AbstractContextManager[None]:
    return nullcontext() if training is None else locked(training, f"adapters are trained in {training}")


def _load(
    model: str,
    adapters: dict[str, Path],
    limits: Limits,
    dtype: Dtype | None,
    quantize: str | None,
    template: str | None,
    stated: int | None,
    scale: float,
) -> tuple[Engine, str | None]:
    """The engine with all adapters, and the name of the base where it is offered."""
    apart = load_apart(model, dtype, quantize, default_device(), stated)
    engine = Engine(LoadedBase.of(apart), apart.tokenizer, limits, scale, template)
    named = dict(adapters)
    name = Path(model).resolve().name if Path(model).exists() else model
    if name in named:
        raise LengthenError(f"`adapter={name}=...` has the name of the model; choose another one")
    if apart.adapter is not None:
        named = {name: apart.adapter, **named}
    for each, path in named.items():
        engine.load_adapter(each, path)
    return engine, None if apart.adapter is not None else name


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise LengthenError(f"can't listen at {host}:{port} ({error}); choose another `host` or `port`") from error
