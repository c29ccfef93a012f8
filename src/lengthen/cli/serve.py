"""`lengthen serve`."""

from pathlib import Path
from typing import Annotated

import typer

from lengthen.cli._options import AdapterScale, BaseContext, Dtype, Model, Quantize, Template

__all__ = ["serve"]


def serve(
    model: Model,
    adapter: Annotated[
        list[str] | None, typer.Option(help="NAME=PATH of a PEFT or run folder; may be repeated.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8000,
    token: Annotated[
        str | None, typer.Option(envvar="LENGTHEN_TOKEN", help="Bearer token that clients have to send.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File of bearer tokens, one a line; clients have to send one of them.")
    ] = None,
    max_concurrent: Annotated[
        int | None, typer.Option(min=1, help="Requests with one token that are answered at a time; others get 429.")
    ] = None,
    max_per_minute: Annotated[
        int | None, typer.Option(min=1, help="Requests with one token in a minute; others get error 429.")
    ] = None,
    max_connections: Annotated[
        int, typer.Option(min=1, help="Connections at a time; one more closes the one that has been idle for longest.")
    ] = 1000,
    allow: Annotated[
        list[Path] | None, typer.Option(help="Folder from which requests may load adapters; may be repeated.")
    ] = None,
    allow_training: Annotated[
        Path | None, typer.Option(help="Folder in which requests may train adapters, one at a time, and load them.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Requests computed together, at most.")] = 32,
    queue: Annotated[int, typer.Option(min=1, help="Requests that wait, at most; others get error 429.")] = 256,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens one request may ask for.")] = None,
    max_body: Annotated[float, typer.Option(min=0.001, help="MiB of one request's body, at most.")] = 4.0,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds one request may take.")] = 600.0,
    grace: Annotated[float, typer.Option(min=1, help="Seconds to finish requests when told to stop.")] = 30.0,
    cache_memory: Annotated[
        float | None, typer.Option(min=0.001, help="GiB for keys and values; default half of what is free.")
    ] = None,
    adapter_memory: Annotated[
        float | None, typer.Option(min=0.001, help="GiB for adapters; default a quarter of what is free.")
    ] = None,
    quantize: Quantize = None,
    dtype: Dtype = "auto",
    base_context: BaseContext = None,
    adapter_scale: AdapterScale = 1.0,
    template: Template = None,
) -> None:
    """Serve one base with many adapters to clients of OpenAI's API."""
    from lengthen.serving.api import ServerSettings
    from lengthen.serving.api import serve as run_server
    from lengthen.serving.engine import Limits

    def gibibytes(value: float | None) -> int | None:
        return None if value is None else int(value * 2**30)

    def show(url: str, names: list[str]) -> None:
        typer.echo(f"serving {', '.join(names)} at {url}/v1", err=True)

    if token == "":
        raise typer.BadParameter("the token is empty; leave it out for none", param_hint="--token")
    tokens = _tokens(token, token_file)
    if not tokens and host not in ("127.0.0.1", "localhost", "::1"):
        typer.echo(f"warning: anyone who reaches {host} can use this server; give --token", err=True)
    settings = ServerSettings(
        host=host,
        port=port,
        tokens=tokens,
        max_concurrent=max_concurrent,
        max_per_minute=max_per_minute,
        max_connections=max_connections,
        allow=tuple(allow or ()),
        allow_training=allow_training,
        max_tokens=max_tokens,
        max_body=int(max_body * 2**20),
        timeout=timeout,
        grace=grace,
        limits=Limits(
            batch=batch, queue=queue, cache_bytes=gibibytes(cache_memory), adapter_bytes=gibibytes(adapter_memory)
        ),
    )
    run_server(
        model,
        _named(adapter or []),
        settings,
        dtype=dtype,
        quantize=quantize,
        template=template,
        base_context=base_context,
        adapter_scale=adapter_scale,
        on_ready=show,
    )


def _tokens(token: str | None, file: Path | None) -> list[str]:
    from lengthen.errors import LengthenError, one_line

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
