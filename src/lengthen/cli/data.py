"""`lengthen data`: documents into token files, and what is in documents and token files."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["app"]

app = typer.Typer(help="Turn documents into token files, and look at what is in them.", no_args_is_help=True)

Inputs = Annotated[
    list[Path],
    typer.Argument(metavar="INPUT...", help="Documents (.txt .md .py .jsonl .json), folders of these, token files."),
]
Model = Annotated[str, typer.Option("--model", help="Whose tokenizer: a hub id, folder, GGUF file, run or alias.")]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the results here as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but warnings.")]
Dtype = Annotated[
    str | None,
    typer.Option(metavar="uint16|uint32", help="How token files are read, where the vocabulary does not tell."),
]

_BAR_WIDTH = 40


def _check_out(out: Path) -> Path:
    if out.suffix.lower() != ".bin":
        raise typer.BadParameter(f"{out} must end in .bin, by which token files are known")
    return out


@app.command("tokenize")
def tokenize_command(
    inputs: Inputs,
    model: Model,
    out: Annotated[Path, typer.Option(metavar="FILE.bin", help="The token file to write.", callback=_check_out)],
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    dtype: Dtype = None,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Write documents, one after another, as one token file (flat uint16 or uint32 ids)."""
    from lengthen.data.tokens import default_cache, load_tokens, vocabulary_size, write_token_file
    from lengthen.errors import OutputError
    from lengthen.files import write_json
    from lengthen.models import load_tokenizer

    if out.exists() and not force:
        raise OutputError(f"{out} exists; choose another name, or overwrite it with --force")
    tokenizer = load_tokenizer(model)
    vocabulary = vocabulary_size(tokenizer)
    store, warnings = load_tokens(inputs, tokenizer, vocabulary, default_cache(), quiet, dtype)
    write_token_file(out, store, vocabulary)
    result = {
        "model": model,
        "out": str(out),
        "documents": len(store),
        "tokens": len(store.tokens),
        "bytes": out.stat().st_size,
        "warnings": warnings,
    }
    _print_warnings(warnings)
    if not quiet:
        print(f"{out}: {result['documents']:,} documents, {result['tokens']:,} tokens, {result['bytes']:,} bytes")
    if json_file is not None:
        write_json(json_file, result)


@app.command("inspect")
def inspect_command(
    inputs: Inputs,
    model: Model,
    sequence_length: Annotated[
        int | None, typer.Option(min=2, help="Pack into blocks of this many tokens and describe them.")
    ] = None,
    min_tokens: Annotated[int, typer.Option(min=1, help="Leave out documents with fewer tokens.")] = 1,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Leave out documents with more tokens.")] = None,
    packing: Annotated[str, typer.Option(metavar="documents|concatenate", help="How blocks are made.")] = "documents",
    context: Annotated[
        int | None,
        typer.Option(min=1, help="The base's context in tokens: say what share of the tokens lies beyond it."),
    ] = None,
    dtype: Dtype = None,
    json_file: JsonFile = None,
    quiet: Quiet = False,
) -> None:
    """Show how many documents and tokens there are, how long they are, and what packing makes of them."""
    from rich.console import Console

    from lengthen.data.packing import choose_documents, describe_blocks, describe_lengths, pack
    from lengthen.data.tokens import default_cache, load_tokens, vocabulary_size
    from lengthen.files import write_json
    from lengthen.models import load_tokenizer

    if context is not None and sequence_length is None:
        raise typer.BadParameter("--context needs --sequence-length, as it counts positions in blocks")
    tokenizer = load_tokenizer(model)
    store, warnings = load_tokens(inputs, tokenizer, vocabulary_size(tokenizer), default_cache(), quiet, dtype)
    chosen = choose_documents(store, min_tokens, max_tokens)
    result: dict[str, Any] = {
        "model": model,
        **describe_lengths(store),
        "limits": {"min_tokens": min_tokens, "max_tokens": max_tokens},
        "chosen": {"documents": len(chosen), "tokens": int(store.lengths[chosen].sum())},
        "packing": None,
        "warnings": warnings,
    }
    if sequence_length is not None:
        blocks = pack(store, sequence_length, packing, min_tokens, max_tokens)
        result["packing"] = {"kind": packing, **describe_blocks(blocks, sequence_length, context)}
    _print_warnings(warnings)
    if not quiet:
        _print_inspection(Console(highlight=False, soft_wrap=True), result)
    if json_file is not None:
        write_json(json_file, result)


def _print_warnings(warnings: list[str]) -> None:
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)


def _print_inspection(console: "Console", result: dict[str, Any]) -> None:
    chosen, packed = result["chosen"], result["packing"]
    console.print(f"documents  {result['documents']:,}")
    console.print(f"tokens     {result['tokens']:,}")
    if chosen["documents"] < result["documents"]:
        console.print(f"in limits  {chosen['documents']:,} documents, {chosen['tokens']:,} tokens")
    lengths = (f"{name} {length:,.0f}" for name, length in result["lengths"].items())
    console.print(f"lengths    {', '.join(lengths)} (tokens per document)")
    console.print()
    most = max(bucket["documents"] for bucket in result["histogram"])
    for bucket in result["histogram"]:
        # A bucket with a single document still shows.
        bar = "#" * -(-bucket["documents"] * _BAR_WIDTH // most)
        console.print(f"{bucket['from']:>12,} - {bucket['to'] - 1:<12,} {bucket['documents']:>9,}  {bar}")
    if packed is None:
        return
    console.print()
    console.print(f"packing    {packed['kind']}, sequence length {packed['sequence_length']:,}")
    console.print(f"blocks     {packed['blocks']:,} with {packed['segments']:,} segments, {packed['tokens']:,} tokens")
    console.print(f"fill       {packed['fill']:.1%}")
    if "context" in packed:
        console.print(
            f"beyond     {packed['positions_beyond']:.1%} of tokens at positions from {packed['context']:,} on"
        )
