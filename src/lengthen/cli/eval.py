"""``lengthen eval``: measure a model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from lengthen.evaluation import PerplexityResult

__all__ = ["app"]

app = typer.Typer(help="Measure a model: perplexity by context length.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    # With a callback, typer keeps the command's name also while there is only one.
    pass


@app.command()
def perplexity(
    model: Annotated[str, typer.Argument(help="Hub id, model folder, .gguf file, run folder or alias.")],
    data: Annotated[list[Path], typer.Option(help="Token file, document or folder of documents; repeatable.")],
    context: Annotated[str, typer.Option(help="Window lengths in tokens, such as 2048,4096.")],
    stride: Annotated[int | None, typer.Option(help="Tokens between windows; default: half the context.")] = None,
    protocol: Annotated[str, typer.Option(help="strided, longlora or longqlora.")] = "strided",
    max_tokens: Annotated[int | None, typer.Option(min=2, help="Use the first N tokens of each document.")] = None,
    min_tokens: Annotated[int, typer.Option(min=0, help="Skip documents of fewer tokens.")] = 0,
    score_from: Annotated[int, typer.Option(min=0, help="Score only from this position of a document on.")] = 0,
    bucket: Annotated[int | None, typer.Option(min=1, help="Width of the position buckets in tokens.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows that are run together.")] = 1,
    adapter: Annotated[Path | None, typer.Option(help="PEFT adapter folder to put on the base.")] = None,
    quantize: Annotated[str | None, typer.Option(help="nf4 or none; default as trained.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    method: Annotated[str | None, typer.Option(help="Scale positions, untrained, before measuring.")] = None,
    target: Annotated[int | None, typer.Option(min=1, help="Context in tokens that --method scales to.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the results to this file.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar, and only the summary.")] = False,
) -> None:
    """Measure perplexity on long documents, once for each context length."""
    contexts = _contexts(context, stride)
    if (method is None) != (target is None):
        raise typer.BadParameter("--method and --target go together: how to scale positions, and to how many tokens")

    import lengthen
    from lengthen.data.tokens import default_cache, load_tokens
    from lengthen.errors import DataError
    from lengthen.evaluation import perplexity as measure
    from lengthen.files import write_json
    from lengthen.models import find
    from lengthen.provenance import versions
    from lengthen.quantization import is_quantized

    source = find(model)
    loaded, tokenizer = lengthen.load(
        model, dtype=dtype, adapter=adapter, quantize=quantize, method=method, target=target
    )
    vocabulary = loaded.get_input_embeddings().weight.shape[0]
    store, warnings = load_tokens(data, tokenizer, vocabulary, default_cache(), quiet=quiet)
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)
    chosen = [i for i in range(len(store)) if len(store[i]) >= min_tokens]
    if not chosen:
        raise DataError(f"none of the {len(store)} documents has {min_tokens} tokens; lower --min-tokens")
    documents = [store[i][:max_tokens] for i in chosen]

    # The longest context first: what is too long for the data or the memory fails before any time is spent.
    results = {
        size: measure(
            loaded,
            documents,
            size,
            stride,
            protocol,
            score_from=score_from,
            batch_size=batch_size,
            bucket=bucket,
            quiet=quiet,
        )
        for size in sorted(contexts, reverse=True)
    }
    _print([results[size] for size in contexts], quiet)
    content: dict[str, Any] = {
        "model": source.id,  # which of an alias's origins it was, and no machine's path
        "data": [str(path) for path in data],
        "protocol": protocol,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "adapter": None if adapter is None else str(adapter),
        "quantize": "nf4" if is_quantized(loaded) else None,
        "method": method,
        "target": target,
        "documents": [store.names[i] for i in chosen],
        "results": [results[size].to_json() for size in contexts],
        "versions": versions(),
    }
    for entry in content["results"]:
        del entry["protocol"]
    destination = json_file or _evals_file(model, protocol)
    if destination is not None:
        write_json(destination, content)
        typer.echo(f"wrote {destination}", err=True)


def _contexts(text: str, stride: int | None) -> list[int]:
    """Parse window lengths such as "2048,4096", in their order and without repetitions."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) >= 2 for part in parts):
        raise typer.BadParameter(
            f"{text!r} is not a list of window lengths of at least 2 tokens; write it as 2048,4096",
            param_hint="--context",
        )
    contexts = list(dict.fromkeys(int(part) for part in parts))
    if stride is not None and not 1 <= stride <= min(contexts):
        raise typer.BadParameter(
            f"{stride} is not from 1 to the shortest context, {min(contexts)}", param_hint="--stride"
        )
    return contexts


def _evals_file(model: str, protocol: str) -> Path | None:
    """Name a new file in the run folder, by the time in UTC so that no result is lost; None for other models."""
    if not (Path(model) / "recipe.yaml").is_file():
        return None
    from datetime import datetime, timezone

    return Path(model) / "evals" / f"perplexity-{protocol}-{datetime.now(timezone.utc):%Y%m%d-%H%M%S}.json"


def _print(results: "list[PerplexityResult]", quiet: bool) -> None:
    """Print one line per context, then one table per context by position."""
    from rich.console import Console
    from rich.table import Table

    def table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
        console.print(title)  # rich would wrap a table's own title to the width of the table
        built = Table()
        for column in columns:
            built.add_column(column, justify="right", no_wrap=True)
        for row in rows:
            built.add_row(*(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row))
        console.print(built)

    console = Console()
    table(
        f"Perplexity ({results[0].protocol})",
        ["context", "stride", "perplexity", "loss", "tokens", "windows", "seconds"],
        [[r.context, r.stride, r.perplexity, r.loss, r.tokens, r.windows, f"{r.seconds:.1f}"] for r in results],
    )
    if quiet:
        return
    place = "document" if results[0].protocol == "strided" else "window"
    for r in results:
        table(
            f"Context {r.context}, by position in the {place}",
            ["from", "to", "perplexity", "tokens"],
            [[b["from"], b["to"], b["perplexity"], b["tokens"]] for b in r.by_position],
        )
