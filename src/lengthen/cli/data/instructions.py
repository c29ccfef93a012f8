"""`lengthen data inspect --kind instruct`: lengths, what is cut, what is trained, and one example."""

from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from lengthen.cli._options import Output
    from lengthen.cli.data._documents import PackOptions
    from lengthen.data.instruct.dataset import Instructions
    from lengthen.data.instruct.encoding import Encoded

__all__ = ["inspect_instructions"]

_SHOWN = 60  # tokens at either end of what is not trained


def inspect_instructions(
    inputs: list[Path],
    model: str,
    template: str,
    blocks: "PackOptions",
    output: "Output",
) -> None:
    """Print, and write as JSON, what a run with `data.kind: instruct` would train on.

    Args:
        inputs: files of records.
        model: whose tokenizer is used.
        template: chat template's name.
        blocks: how they are made.
        output: where the counts go.

    Raises:
        DataError: nothing is left to train on.
    """
    import typer
    from rich.console import Console

    from lengthen.cli._terminal import print_warnings
    from lengthen.cli.data._documents import print_histogram, print_packing, refuse_without_rows
    from lengthen.data.instruct.dataset import load_instructions, pack_instructions
    from lengthen.data.instruct.templates import use_template
    from lengthen.models.load import load_tokenizer

    tokenizer = load_tokenizer(model)
    if blocks.packing not in ("documents", "none"):
        raise typer.BadParameter(f"--packing {blocks.packing} is not for --kind instruct; take documents or none")
    use_template(tokenizer, template)
    loaded = load_instructions(inputs, tokenizer, blocks.sequence_length, template, *blocks.limits)
    examples = [example for source in loaded for example in source.examples]
    refuse_without_rows(model, tokenizer, (example.input_ids for example in examples))
    result = {"model": model, "template": template, **_counts(loaded), "packing": None}
    result["warnings"] = [warning for source in loaded for warning in source.warnings]
    if blocks.sequence_length is not None:
        result["packing"] = blocks.describe(pack_instructions(examples, blocks.sequence_length, blocks.packing))
    print_warnings(result["warnings"])
    if not output.quiet:
        console = Console(highlight=False, soft_wrap=True)
        _print_counts(console, result)
        print_histogram(console, result["histogram"])
        if result["packing"] is not None:
            print_packing(console, result["packing"])
        _print_example(console, loaded[0].names[0], examples[0], tokenizer)
    output.write(result)


def _counts(loaded: "list[Instructions]") -> dict[str, Any]:
    import numpy as np

    from lengthen.data.counts import describe_lengths

    examples = [example for source in loaded for example in source.examples]
    described = describe_lengths(np.array([example.whole for example in examples]))
    return {
        "sources": [
            {"source": source.source, "examples": len(source.examples), "left_out": dict(source.left_out)}
            for source in loaded
        ],
        "examples": described.pop("documents"),
        **described,
        "truncated": {
            "examples": sum(source.truncated for source in loaded),
            "tokens": sum(example.cut for example in examples),
        },
        "trained": sum(int(example.trained.sum()) for example in examples),
    }


def _print_counts(console: "Console", result: dict[str, Any]) -> None:
    truncated, tokens = result["truncated"], result["tokens"]
    console.print(f"examples   {result['examples']:,}")
    console.print(f"tokens     {tokens:,} before anything is cut")
    share = f"{truncated['tokens'] / tokens:.1%}"
    console.print(f"cut        {truncated['tokens']:,} tokens ({share}) out of {truncated['examples']:,} documents")
    console.print(f"trained    {result['trained']:,} tokens ({result['trained'] / (tokens - truncated['tokens']):.1%})")
    for source in result["sources"]:
        for reason, count in source["left_out"].items():
            console.print(f"left out   {count:,} {reason} of {source['source']}", markup=False)
    lengths = (f"{name} {length:,.0f}" for name, length in result["lengths"].items())
    console.print(f"lengths    {', '.join(lengths)} (tokens per example)")


def _print_example(console: "Console", name: str, example: "Encoded", tokenizer: Any) -> None:
    """Print an example in runs of tokens that are trained (green) or not (dim), the middle of long ones left out."""
    from rich.text import Text

    console.print()
    console.print(f"example    {name}", markup=False)
    start = 0
    for trained, run in groupby(example.trained.tolist()):
        ids = example.input_ids[start : start + len(list(run))].tolist()
        start += len(ids)
        console.print()
        console.print(f"-- {'trained' if trained else 'not trained'}, {len(ids):,} tokens")
        shown = tokenizer.decode(ids)
        if not trained and len(ids) > 2 * _SHOWN:
            gap = f"\n[... {len(ids) - 2 * _SHOWN:,} tokens ...]\n"
            shown = tokenizer.decode(ids[:_SHOWN]) + gap + tokenizer.decode(ids[-_SHOWN:])
        console.print(Text(shown, style="bold green" if trained else "dim"))
