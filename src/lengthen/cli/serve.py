"""`lengthen serve`."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lengthen.cli._options import AdapterScale, BaseContext, Dtype, Host, Model, Quantize, Template

if TYPE_CHECKING:
    from lengthen.serving.api import ServerSettings
    from lengthen.serving.engine import Limits

__all__ = ["serve"]


@dataclass(frozen=True)
class ServerOptions:
    """Where to listen, and what clients may do."""

    host: Host = "127.0.0.1"
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for any free one.")] = 8000
    token: Annotated[
        str | None, typer.Option(envvar="LENGTHEN_TOKEN", help="Bearer token that clients have to send.")
    ] = None
    token_file: Annotated[
        Path | None, typer.Option(help="File of bearer tokens, one a line; clients have to send one of them.")
    ] = None
    max_concurrent: Annotated[
        int | None,
        typer.Option(min=1, help="Requests with one token that are answered at a time; others get error 429."),
    ] = None
    max_per_minute: Annotated[
        int | None, typer.Option(min=1, help="Requests with one token in a minute; others get error 429.")
    ] = None
    max_connections: Annotated[
        int, typer.Option(min=1, help="Connections at a time; one more closes the one that has been idle for longest.")
    ] = 1000
    allow: Annotated[
        list[Path] | None, typer.Option(help="Folder from which requests may load adapters; repeatable.")
    ] = None
    allow_training: Annotated[
        Path | None, typer.Option(help="Folder in which requests may train adapters, one at a time, and load them.")
    ] = None
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens one request may ask for.")] = None
    max_body: Annotated[float, typer.Option(min=0.001, help="MiB of one request's body, at most.")] = 4.0
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds one request may take.")] = 600.0
    grace: Annotated[float, typer.Option(min=1, help="Seconds to finish requests when told to stop.")] = 30.0

    def settings(self, limits: "Limits") -> "ServerSettings":
        """The server's, in its units.

        Args:
            limits: of the engine.
        """
        from lengthen.serving.api import ServerSettings

        given = asdict(self)
        tokens = _tokens(given.pop("token"), given.pop("token_file"))
        given |= {"allow": tuple(self.allow or ()), "max_body": int(self.max_body * 2**20)}
        return ServerSettings(**given, tokens=tokens, limits=limits)


@dataclass(frozen=True)
class EngineOptions:
    """How much the engine takes on."""

    batch_size: Annotated[int, typer.Option(min=1, help="Requests that are run together, at most.")] = 32
    queue: Annotated[int, typer.Option(min=1, help="Requests that wait, at most; others get error 429.")] = 256
    cache_memory: Annotated[
        float | None, typer.Option(min=0.001, help="GiB for keys and values; default half of what is free.")
    ] = None
    adapter_memory: Annotated[
        float | None, typer.Option(min=0.001, help="GiB for adapters; default a quarter of what is free.")
    ] = None

    def limits(self) -> "Limits":
        """The engine's, in its units."""
        from lengthen.serving.engine import Limits

        cache, adapters = (
            None if size is None else int(size * 2**30) for size in (self.cache_memory, self.adapter_memory)
        )
        return Limits(batch_size=self.batch_size, queue=self.queue, cache_bytes=cache, adapter_bytes=adapters)


@dataclass(frozen=True)
class BaseOptions:
    """How the base is loaded that all adapters share, and their scale and template."""

    quantize: Quantize = None
    dtype: Dtype = "auto"
    base_context: BaseContext = None
    adapter_scale: AdapterScale = 1.0
    template: Template = None


def serve(
    model: Model,
    adapter: Annotated[list[str] | None, typer.Option(help="NAME=PATH of a PEFT or run folder; repeatable.")] = None,
    *,
    base: BaseOptions,
    server: ServerOptions,
    engine: EngineOptions,
) -> None:
    """Serve one base with many adapters to clients of OpenAI's API."""
    from lengthen.serving.api import serve as run_server

    def show(url: str, names: list[str]) -> None:
        typer.echo(f"serving {', '.join(names)} at {url}/v1", err=True)

    settings = server.settings(engine.limits())
    if not settings.tokens and settings.host not in ("127.0.0.1", "localhost", "::1"):
        typer.echo(f"warning: anyone who reaches {settings.host} can use this server; give --token", err=True)
    run_server(model, _named(adapter or []), settings, **asdict(base), on_ready=show)


def _tokens(token: str | None, file: Path | None) -> list[str]:
    from lengthen.errors import LengthenError, one_line

    if token == "":
        raise typer.BadParameter("the token is empty; leave it out for none", param_hint="--token")
    tokens = [] if token is None else [token]
    if file is not None:
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeError) as error:
            raise LengthenError(f"can't read --token-file {file}: {one_line(error)}") from error
        tokens += [line for line in lines if line]
        if not tokens:
            raise LengthenError(f"--token-file {file} holds no token; write one into each line")
    return tokens


def _named(adapters: list[str]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for each in adapters:
        name, is_pair, path = each.partition("=")
        if not (name and is_pair and path):
            raise typer.BadParameter(f"{each!r} is no NAME=PATH", param_hint="--adapter")
        if name in named:
            raise typer.BadParameter(f"{name!r} is given twice", param_hint="--adapter")
        named[name] = Path(path)
    return named
