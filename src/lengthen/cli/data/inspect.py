"""`lengthen data inspect`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lengthen.cli._options import Output
from lengthen.cli._terminal import print_warnings
from lengthen.cli.data._documents import Dtype, PackOptions, print_histogram, print_packing, refuse_without_rows

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["inspect"]


def inspect(
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
    kind: Annotated[
        str,
        typer.Option(metavar="text|instruct", help="Plain documents, or questions with answers (.json(l) .parquet)."),
    ] = "text",
    template: Annotated[
        str,
        typer.Option(metavar="NAME", help="For --kind instruct: tokenizer (its own), llama2, vicuna, alpaca, chatml."),
    ] = "tokenizer",
    dtype: Dtype = None,
    show: Annotated[
        int, typer.Option(min=0, help="For a recipe: print so many sequences of each source, answers in [[brackets]].")
    ] = 0,
    sequences: Annotated[
        int | None, typer.Option(min=1, help="For a recipe: count so many sequences; default those of the run.")
    ] = None,
    *,
    blocks: PackOptions,
    output: Output,
) -> None:
    """Show how many documents and tokens there are, how long they are, and what packing makes of them.

    With --kind instruct also what is cut to --sequence-length, what is trained, and the first example. Of a recipe
    whose data are a mixture, the shares of its sources.
    """
    from lengthen.cli.data.mixtures import inspect_mixture, is_recipe

    if is_recipe(inputs[0]):
        inspect_mixture(inputs[0], inputs[1:], model, sequences, show, output)
        return
    if model is None:
        raise typer.BadParameter("name the model whose tokenizer is to be used", param_hint="--model")
    if show or sequences is not None:
        raise typer.BadParameter(f"--show and --sequences are for a recipe (.yaml); {inputs[0]} is none")
    if blocks.context is not None and blocks.sequence_length is None:
        raise typer.BadParameter("--context needs --sequence-length, as it counts positions in blocks")
    if kind not in ("text", "instruct"):
        raise typer.BadParameter(f"--kind {kind} is not text or instruct")
    if kind == "instruct":
        from lengthen.cli.data.instructions import inspect_instructions

        inspect_instructions(list(map(Path, inputs)), model, template, blocks, output)
    else:
        _inspect_documents(inputs, model, dtype, blocks, output)


def _inspect_documents(inputs: list[str], model: str, dtype: str | None, blocks: PackOptions, output: Output) -> None:
    from rich.console import Console

    from lengthen.data.counts import describe_lengths
    from lengthen.data.packing import choose_documents, pack
    from lengthen.data.tokens import default_cache, load_tokens
    from lengthen.models.load import load_tokenizer
    from lengthen.vocabulary import vocabulary_size

    tokenizer = load_tokenizer(model)
    store, warnings = load_tokens(inputs, tokenizer, vocabulary_size(tokenizer), default_cache(), dtype)
    refuse_without_rows(model, tokenizer, [store.stream()])
    chosen = choose_documents(store, *blocks.limits)
    result: dict[str, Any] = {
        "model": model,
        **describe_lengths(store.lengths),
        "limits": {"min_tokens": blocks.min_tokens, "max_tokens": blocks.max_tokens},
        "chosen": {"documents": len(chosen), "tokens": int(store.lengths[chosen].sum())},
        "packing": None,
        "warnings": warnings,
    }
    if blocks.sequence_length is not None:
        result["packing"] = blocks.describe(pack(store, blocks.sequence_length, blocks.packing, *blocks.limits))
    print_warnings(warnings)
    if not output.quiet:
        _print_inspection(Console(highlight=False, soft_wrap=True), result)
    output.write(result)


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
