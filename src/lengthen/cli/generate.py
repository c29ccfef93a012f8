"""`lengthen generate`."""

from pathlib import Path
from typing import Annotated

import typer

from lengthen.cli.reading import ReadingBar, Recent, Sinks, StreamingFlag, pick_streaming

__all__ = ["generate"]


def generate(
    model: Annotated[str, typer.Argument(help="hub id, folder, .gguf file, run folder or alias")],
    prompt: Annotated[str | None, typer.Option(help="the text to continue")] = None,
    file: Annotated[Path | None, typer.Option(help="a text file to continue")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="at most this many")] = 128,
    temperature: Annotated[float, typer.Option(help="0: the likeliest token; above: sample")] = 0.0,
    seed: Annotated[int, typer.Option(help="of the sampling")] = 0,
    streaming: StreamingFlag = False,
    sinks: Sinks = None,
    recent: Recent = None,
    adapter: Annotated[str | None, typer.Option(help="a PEFT folder to put over the base")] = None,
    quantize: Annotated[str | None, typer.Option(help="nf4 or none; default as trained")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16")] = "auto",
    adapter_scale: Annotated[
        float,
        typer.Option(min=0, max=1, help="share of the adapter that is applied: 1 all of it, 0 the base's weights"),
    ] = 1.0,
    base_context: Annotated[
        int | None, typer.Option(min=2, help="the base's context in tokens, where its files leave that open")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="also write the result there")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="print only the text, when it is whole")] = False,
) -> None:
    """Continue a prompt or a file, streamed."""
    import sys

    import lengthen
    from lengthen.context import base_context as context_of
    from lengthen.data.documents import read_documents
    from lengthen.decoding.generate import generate as run_generation
    from lengthen.errors import LengthenError
    from lengthen.files import write_json

    if (prompt is None) == (file is None):
        raise LengthenError("give one of --prompt and --file")
    if file is not None:
        documents, _ = read_documents([file])
        if len(documents) > 1:
            raise LengthenError(f"{file} holds {len(documents)} documents; give a file with the one text to continue")
        prompt = documents[0].text
    assert prompt is not None
    loaded, tokenizer = lengthen.load(
        model, dtype=dtype, adapter=adapter, quantize=quantize, base_context=base_context, adapter_scale=adapter_scale
    )
    kept = pick_streaming(streaming, sinks, recent, context_of(loaded.config))
    bar = ReadingBar(quiet)

    def show(text: str) -> None:
        if not quiet:
            print(text, end="", flush=True)

    try:
        result = run_generation(
            loaded, tokenizer, prompt, max_new_tokens, temperature, seed, show, streaming=kept, on_read=bar
        )
    finally:
        bar.close()
    if quiet:
        print(result.text)
    else:
        print(f"\n[{result.prompt_tokens} + {result.new_tokens} tokens, {result.seconds:.1f} s]", file=sys.stderr)
    if json_file is not None:
        write_json(json_file, {"model": model, **result.to_json()})
