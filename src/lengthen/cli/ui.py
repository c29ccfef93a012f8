"""`lengthen ui`."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["ui"]


def ui(
    model: Annotated[str, typer.Argument(help="Hub id, folder, .gguf file, run folder or alias.")],
    adapter: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]PATH", help="A PEFT folder to choose on the page; repeatable."),
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="llama2, vicuna, alpaca or chatml; default the tokenizer's own.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets others reach it.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Default: a free one from 7860 on.")] = None,
    quantize: Annotated[str | None, typer.Option(help="nf4 or none; default as trained.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    base_context: Annotated[
        int | None, typer.Option(min=2, help="The base's context in tokens, where its files leave that open.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write where the page is to this file.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing.")] = False,
) -> None:
    """Open a web page to talk to a model about documents."""
    import threading
    from contextlib import suppress

    adapters = _parse_adapters(adapter or [])
    from lengthen.errors import require

    require("the web page", "ui", "gradio")
    from lengthen.adapters.multi import load_several
    from lengthen.chat.shared_model import Desk
    from lengthen.chat.web import serve_page
    from lengthen.files import write_json

    loaded, tokenizer, names = load_several(model, adapters, dtype, quantize, base_context)
    desk = Desk(loaded, tokenizer, template, names)
    with serve_page(desk, model, host, port) as url:
        if json_file is not None:
            write_json(json_file, {"model": model, "url": url, "context": desk.context, "adapters": list(adapters)})
        if not quiet:
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
