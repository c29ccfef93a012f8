"""`lengthen ui`."""

from pathlib import Path
from typing import Annotated

import typer

from lengthen.cli._options import BaseContext, Dtype, Host, Model, Output, Quantize, Template

__all__ = ["ui"]


def ui(
    model: Model,
    adapter: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]PATH", help="PEFT folder to choose on the page; repeatable."),
    ] = None,
    template: Template = None,
    host: Host = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port to listen on; default a free one from 7860 on.")
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder of the runs that the page makes and goes on with.")] = Path("runs"),
    quantize: Quantize = None,
    dtype: Dtype = "auto",
    base_context: BaseContext = None,
    *,
    output: Output,
) -> None:
    """Open a web page to talk to a model about documents, and to extend the context of models."""
    import threading
    from contextlib import suppress

    adapters = _parse_adapters(adapter or [])
    from lengthen.errors import require

    require("the web page", "ui", "gradio")
    from lengthen.adapters.multi import load_several
    from lengthen.chat.shared_model import SharedModel
    from lengthen.ui.page import serve_page

    loaded, tokenizer, names = load_several(model, adapters, dtype, quantize, base_context)
    shared = SharedModel(loaded, tokenizer, template, names)
    with serve_page(shared, model, host, port, runs) as url:
        output.write({"model": model, "url": url, "context": shared.context, "adapters": list(adapters)})
        if not output.quiet:
            print(f"{model} at {url} (Ctrl-C ends)", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


def _parse_adapters(options: list[str]) -> dict[str, Path]:
    """Folders by name, which is that of the folder where none is given."""
    adapters: dict[str, Path] = {}
    for option in options:
        name, equals, folder = option.partition("=")
        path = Path(folder if equals else option)
        name = name if equals else path.name
        if not name or not str(path) or name in adapters:
            raise typer.BadParameter(f"{option!r} has no name of its own; write NAME=PATH", param_hint="--adapter")
        adapters[name] = path
    return adapters
