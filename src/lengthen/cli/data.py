"""`lengthen data`: documents into token files, and what is in documents and token files."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lengthen.cli._options import Output, with_options

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from rich.console import Console

__all__ = ["app", "print_histogram", "print_packing", "print_warnings", "refuse_without_rows"]

app = typer.Typer(help="Turn documents into token files, and look at what is in them.", no_args_is_help=True)

Inputs = Annotated[
    list[Path],
    typer.Argument(
        metavar="INPUT...",
        help="Documents (.txt .md .py .json(l) .parquet .pdf .epub .html .docx), folders of these, token files.",
    ),
]
Model = Annotated[str, typer.Option("--model", help="Whose tokenizer: a hub id, folder, GGUF file, run or alias.")]
Dtype = Annotated[
    str | None,
    typer.Option(metavar="uint16|uint32", help="How token files are read, where the vocabulary does not tell."),
]

_BAR_WIDTH = 40


def _check_out(out: Path) -> Path:
    if out.suffix.lower() != ".bin":
        raise typer.BadParameter(f"{out} must end in .bin, by which token files are known")
    return out


def refuse_without_rows(model: str, tokenizer: Any, ids: "Iterable[np.ndarray]") -> None:
    """Refuse token ids that MODEL has no embedding row for, as a run over them would be.

    Args:
        model: MODEL.
        tokenizer: that made the ids.
        ids: of each document.

    Raises:
        ModelError: there is one.
    """
    from lengthen.adapters.base import stated_rows
    from lengthen.errors import ModelError
    from lengthen.vocabulary import check_ids, vocabulary_size

    try:
        rows = stated_rows(model)
    except ModelError:  # a tokenizer is all that is needed here, and may be all that there is
        return
    if vocabulary_size(tokenizer) > rows:
        check_ids(max((int(each.max()) for each in ids if each.size), default=0), rows, tokenizer)


@app.command("tokenize")
@with_options
def tokenize_command(
    inputs: Inputs,
    model: Model,
    out: Annotated[Path, typer.Option(metavar="FILE.bin", help="The token file to write.", callback=_check_out)],
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    dtype: Dtype = None,
    *,
    output: Output,
) -> None:
    """Write documents, one after another, as one token file (flat uint16 or uint32 ids)."""
    from lengthen.data.token_file import write_token_file
    from lengthen.data.tokens import default_cache, load_tokens
    from lengthen.errors import OutputError
    from lengthen.models.load import load_tokenizer
    from lengthen.vocabulary import vocabulary_size

    if out.exists() and not force:
        raise OutputError(f"{out} exists; choose another name, or overwrite it with --force")
    tokenizer = load_tokenizer(model)
    vocabulary = vocabulary_size(tokenizer)
    store, warnings = load_tokens(inputs, tokenizer, vocabulary, default_cache(), dtype)
    refuse_without_rows(model, tokenizer, [store.tokens])
    write_token_file(out, store, vocabulary)
    result = {
        "model": model,
        "out": str(out),
        "documents": len(store),
        "tokens": len(store.tokens),
        "bytes": out.stat().st_size,
        "warnings": warnings,
    }
    print_warnings(warnings)
    if not output.quiet:
        print(f"{out}: {result['documents']:,} documents, {result['tokens']:,} tokens, {result['bytes']:,} bytes")
    output.write(result)


@app.command("inspect")
@with_options
def inspect_command(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Documents, folders of these, token files; or a recipe with a mixture, and overrides of it.",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option("--model", help="Whose tokenizer: a hub id, folder, GGUF file, run or alias; default a recipe's."),
    ] = None,
    sequence_length: Annotated[
        int | None, typer.Option(min=2, help="Pack into blocks of this many tokens and describe them.")
    ] = None,
    min_tokens: Annotated[int, typer.Option(min=1, help="Leave out documents with fewer tokens.")] = 1,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Leave out documents with more tokens.")] = None,
    packing: Annotated[
        str, typer.Option(metavar="documents|concatenate|none", help="How blocks are made; none: for --kind instruct.")
    ] = "documents",
    kind: Annotated[
        str,
        typer.Option(metavar="text|instruct", help="Plain documents, or questions with answers (.json(l) .parquet)."),
    ] = "text",
    template: Annotated[
        str,
        typer.Option(metavar="NAME", help="For --kind instruct: tokenizer (its own), llama2, vicuna, alpaca, chatml."),
    ] = "tokenizer",
    context: Annotated[
        int | None,
        typer.Option(min=1, help="The base's context in tokens: say what share of the tokens lies beyond it."),
    ] = None,
    dtype: Dtype = None,
    show: Annotated[
        int, typer.Option(min=0, help="For a recipe: print so many sequences of each source, answers in [[brackets]].")
    ] = 0,
    sequences: Annotated[
        int | None, typer.Option(min=1, help="For a recipe: count so many sequences; default those of the run.")
    ] = None,
    *,
    output: Output,
) -> None:
    """Show how many documents and tokens there are, how long they are, and what packing makes of them.

    With --kind instruct also what is cut to --sequence-length, what is trained, and the first example. Of a recipe
    whose data are a mixture, the shares of its sources.
    """
    from lengthen.cli.mixtures import inspect_mixture, is_recipe

    if is_recipe(inputs[0]):
        inspect_mixture(inputs[0], inputs[1:], model, sequences, show, output)
        return
    if model is None:
        raise typer.BadParameter("name the model whose tokenizer is to be used", param_hint="--model")
    if show or sequences is not None:
        raise typer.BadParameter(f"--show and --sequences are for a recipe (.yaml); {inputs[0]} is none")
    from rich.console import Console

    from lengthen.data.counts import describe_blocks, describe_lengths
    from lengthen.data.packing import choose_documents, pack
    from lengthen.data.tokens import default_cache, load_tokens
    from lengthen.models.load import load_tokenizer
    from lengthen.vocabulary import vocabulary_size

    if context is not None and sequence_length is None:
        raise typer.BadParameter("--context needs --sequence-length, as it counts positions in blocks")
    if kind not in ("text", "instruct"):
        raise typer.BadParameter(f"--kind {kind} is not text or instruct")
    tokenizer = load_tokenizer(model)
    if kind == "instruct":
        from lengthen.cli.instructions import inspect_instructions

        limits = (min_tokens, max_tokens)
        inspect_instructions(
            list(map(Path, inputs)),
            model,
            tokenizer,
            template,
            sequence_length,
            limits,
            packing,
            context,
            output,
        )
        return
    store, warnings = load_tokens(inputs, tokenizer, vocabulary_size(tokenizer), default_cache(), dtype)
    refuse_without_rows(model, tokenizer, [store.tokens])
    chosen = choose_documents(store, min_tokens, max_tokens)
    result: dict[str, Any] = {
        "model": model,
        **describe_lengths(store.lengths),
        "limits": {"min_tokens": min_tokens, "max_tokens": max_tokens},
        "chosen": {"documents": len(chosen), "tokens": int(store.lengths[chosen].sum())},
        "packing": None,
        "warnings": warnings,
    }
    if sequence_length is not None:
        blocks = pack(store, sequence_length, packing, min_tokens, max_tokens)
        result["packing"] = {"kind": packing, **describe_blocks(blocks, sequence_length, context)}
    print_warnings(warnings)
    if not output.quiet:
        _print_inspection(Console(highlight=False, soft_wrap=True), result)
    output.write(result)


@app.command("qa")
@with_options
def qa_command(
    inputs: Inputs,
    endpoint: Annotated[
        str, typer.Option(metavar="URL", help="An OpenAI-compatible server: http://localhost:8000/v1.")
    ],
    model: Annotated[str, typer.Option(help="The model's name at the endpoint.")],
    out: Annotated[Path, typer.Option(metavar="FILE.jsonl", help="The pairs; those in it already are not made again.")],
    kinds: Annotated[str, typer.Option(help="What is asked for.")] = "summary,detail,comparison,style,short",
    passage_chars: Annotated[int, typer.Option(min=200, help="Characters of a passage, at most.")] = 16_000,
    max_passages: Annotated[int | None, typer.Option(min=1, help="Of each document, spread evenly.")] = None,
    parallel: Annotated[int, typer.Option(min=1, help="Passages that are asked about at a time.")] = 4,
    key_variable: Annotated[
        str | None, typer.Option(metavar="NAME", help="Environment variable that holds the endpoint's key.")
    ] = None,
    *,
    output: Output,
) -> None:
    """Have a model write questions with answers about documents, as data for instruction tuning.

    Stopped or failed, it goes on where it was when it is called again.
    """
    import os

    from lengthen.data.documents import read_documents
    from lengthen.data.endpoint import Endpoint
    from lengthen.data.qa import make_pairs
    from lengthen.errors import LengthenError

    if out.suffix.lower() != ".jsonl":
        raise typer.BadParameter(f"{out} must end in .jsonl, by which instruction data are known", param_hint="--out")
    key = os.environ.get(key_variable) if key_variable else None
    if key_variable and not key:
        raise LengthenError(f"the environment variable {key_variable} is not set; put the endpoint's key into it")
    server = Endpoint(endpoint, model, key)
    documents, warnings = read_documents(inputs)
    print_warnings(warnings)
    names = [name.strip() for name in kinds.split(",")]
    made = make_pairs(documents, server, out, names, passage_chars, max_passages, parallel)
    missing = [f"{count} pairs missing, as the reply {reason}" for reason, count in made["missing"].items()]
    print_warnings(missing)
    if not output.quiet:
        print(f"{out}: {made['pairs']:,} pairs about {made['passages']:,} passages, {made['before']:,} from before")
    output.write({"model": model, "endpoint": server.url, "out": str(out), **made, "warnings": warnings})


def print_warnings(warnings: list[str]) -> None:
    """Print each warning as a line on standard error."""
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
    print_histogram(console, result["histogram"])
    if packed is not None:
        print_packing(console, packed)


def print_histogram(console: "Console", histogram: list[dict[str, Any]]) -> None:
    """Print how many documents there are of which lengths, from `describe_lengths`.

    Args:
        console: to print on.
        histogram: of `describe_lengths`.
    """
    console.print()
    most = max(bucket["documents"] for bucket in histogram)
    for bucket in histogram:
        # A bucket with a single document still shows.
        bar = "#" * -(-bucket["documents"] * _BAR_WIDTH // most)
        console.print(f"{bucket['from']:>12,} - {bucket['to'] - 1:<12,} {bucket['documents']:>9,}  {bar}")


def print_packing(console: "Console", packed: dict[str, Any]) -> None:
    """Print the blocks of `describe_blocks`, with the packing as "kind".

    Args:
        console: to print on.
        packed: of `describe_blocks`, with "kind".
    """
    console.print()
    console.print(f"packing    {packed['kind']}, sequence length {packed['sequence_length']:,}")
    console.print(f"blocks     {packed['blocks']:,} with {packed['segments']:,} segments, {packed['tokens']:,} tokens")
    console.print(f"fill       {packed['fill']:.1%}")
    if "context" in packed:
        console.print(
            f"beyond     {packed['positions_beyond']:.1%} of tokens at positions from {packed['context']:,} on"
        )
