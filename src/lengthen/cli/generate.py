"""`lengthen generate`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from lengthen.cli._options import LoadOptions, MaxNewTokens, Model, Output, Seed, StreamingOptions, Temperature
from lengthen.cli._reading_bar import ReadingBar, pick_streaming

__all__ = ["generate"]


def generate(
    model: Model,
    prompt: Annotated[str | None, typer.Option(help="The text to continue.")] = None,
    file: Annotated[Path | None, typer.Option(help="A text file to continue.")] = None,
    max_new_tokens: MaxNewTokens = 128,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
    *,
    streaming: StreamingOptions,
    options: LoadOptions,
    output: Output,
) -> None:
    """Continue a prompt or a file, streamed."""
    import sys

    import lengthen
    from lengthen.context import base_context
    from lengthen.data.documents import read_documents
    from lengthen.decoding.generate import generate as run_generation
    from lengthen.errors import LengthenError

    if (prompt is None) == (file is None):
        raise LengthenError("give one of --prompt and --file")
    if file is not None:
        documents, _ = read_documents([file])
        if len(documents) > 1:
            raise LengthenError(f"{file} holds {len(documents)} documents; give a file with the one text to continue")
        prompt = documents[0].text
    assert prompt is not None
    loaded, tokenizer = lengthen.load(model, **asdict(options))
    kept = pick_streaming(streaming, base_context(loaded.config))
    bar = ReadingBar()

    def show(text: str) -> None:
        if not output.quiet:
            print(text, end="", flush=True)

    try:
        result = run_generation(
            loaded, tokenizer, prompt, max_new_tokens, temperature, seed, show, streaming=kept, on_read=bar
        )
    finally:
        bar.close()
    if output.quiet:
        print(result.text)
    else:
        print(f"\n[{result.prompt_tokens} + {result.new_tokens} tokens, {result.seconds:.1f} s]", file=sys.stderr)
    output.write({"model": model, **result.to_json()})
