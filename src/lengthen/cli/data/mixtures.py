"""`lengthen data inspect RECIPE`: the shares of a mixture, and whole training sequences to look at."""

from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from lengthen.cli._options import Output
    from lengthen.data.blocks import Block
    from lengthen.data.mixture import Mixture

__all__ = ["inspect_mixture", "is_recipe"]

_SHOWN = 100  # tokens at either end of a run of one weight
_STYLES = {"answer": "bold green", "trained": "", "not trained": "dim"}


def is_recipe(name: str) -> bool:
    """Whether an input of `data inspect` is a recipe, which says by itself what its documents are."""
    from lengthen.recipe import shipped_recipes

    return Path(name).suffix.lower() in (".yaml", ".yml") or name in shipped_recipes()


def inspect_mixture(
    name: str,
    overrides: list[str],
    model: str | None,
    sequences: int | None,
    show: int,
    output: "Output",
) -> None:
    """Print, and write as JSON, what a run of this recipe would train on in one process.

    Args:
        name: of a recipe whose data are a mixture.
        overrides: of the recipe.
        model: whose tokenizer; None for the recipe's.
        sequences: how many to count; None for those of the whole run.
        show: sequences to print, of each source as many.
        output: where the counts go.

    Raises:
        RecipeError: the recipe has no mixture, or no documents.
    """
    from rich.console import Console

    from lengthen.cli._terminal import collected_warnings
    from lengthen.cli.data._documents import refuse_without_rows
    from lengthen.data.instruct.templates import use_template
    from lengthen.data.sources import open_mixture
    from lengthen.errors import RecipeError
    from lengthen.models.load import load_tokenizer
    from lengthen.recipe import check_documents, load_recipe
    from lengthen.vocabulary import vocabulary_size

    recipe = load_recipe(name, overrides)
    if not recipe.data.is_mixture:
        raise RecipeError(
            f"the data of {name} are no mixture; name its documents themselves: lengthen data inspect "
            f"{' '.join(recipe.data.paths) or 'DOCUMENTS'} --model {recipe.model}"
        )
    check_documents(recipe)
    tokenizer = load_tokenizer(model or recipe.model)
    if any(source.kind == "instruct" for source in recipe.data.sources):
        use_template(tokenizer, recipe.data.template)
    training = recipe.training
    assert training.steps is not None
    count = sequences or training.steps * training.accumulation * training.batch_size
    with collected_warnings() as warnings:
        mixture = open_mixture(recipe, tokenizer, vocabulary_size(tokenizer), count)
    blocks = (mixture[index].input_ids for index in range(len(mixture)))
    refuse_without_rows(model or recipe.model, tokenizer, blocks)
    result = {
        "recipe": name,
        "model": model or recipe.model,
        "sequence_length": recipe.sequence_length,
        "sequences": len(mixture),
        "tokens": mixture.tokens,
        "sources": mixture.describe(),
        "warnings": warnings,
    }
    if not output.quiet:
        console = Console(highlight=False, soft_wrap=True)
        _print_shares(console, result)
        _print_sequences(console, mixture, show, tokenizer)
    output.write(result)


def _print_shares(console: "Console", result: dict[str, Any]) -> None:
    console.print(f"{result['tokens']:,} tokens in {result['sequences']:,} sequences of {result['sequence_length']:,}")
    for each in result["sources"]:
        passes = "" if each["passes"] is None else f", {each['passes']:.2g} passes"
        line = f"{each['share']:>6.1%}  {each['kind']:<10} {each['sequences']:,} sequences, {each['about']}{passes}"
        console.print(line, markup=False)


def _print_sequences(console: "Console", mixture: "Mixture", most: int, tokenizer: Any) -> None:
    """Print the first sequences of each source."""
    printed: Counter[int] = Counter()
    for index in range(len(mixture)):
        which = mixture.source_of(index)
        if printed[which] < most:
            printed[which] += 1
            console.print()
            console.print(f"-- sequence {index}: {mixture.sources[which].name}", markup=False, style="bold")
            _print_block(console, mixture[index], tokenizer)


def _print_block(console: "Console", block: "Block", tokenizer: Any) -> None:
    """Print a sequence in runs of one weight, the middle of long ones left out; answers are in brackets and green."""
    import numpy as np
    from rich.text import Text

    console.print(_about(block), style="dim")
    weights = np.ones(len(block), dtype=np.float32) if block.loss_weights is None else block.loss_weights.copy()
    if block.trained is not None:
        weights[~block.trained] = 0
    answer = weights.max() if block.trained is not None else None
    kinds = ["not trained" if w == 0 else "answer" if w == answer else "trained" for w in weights.tolist()]
    text, start = Text(), 0
    for kind, run in groupby(kinds):
        ids = block.input_ids[start : start + len(list(run))].tolist()
        start += len(ids)
        shown = tokenizer.decode(ids)
        if len(ids) > 2 * _SHOWN:
            gap = f" [... {len(ids) - 2 * _SHOWN:,} tokens ...] "
            shown = tokenizer.decode(ids[:_SHOWN]) + gap + tokenizer.decode(ids[-_SHOWN:])
        text.append(f"[[{shown}]]" if kind == "answer" else shown, style=_STYLES[kind])
    console.print(text)


def _about(block: "Block") -> str:
    lengths = ", ".join(f"{length:,}" for length in block.segments[:8])
    said = f"{len(block):,} tokens, segments of {lengths}{', ...' if len(block.segments) > 8 else ''}"
    if block.loss_weights is not None:
        weights = sorted(set(block.loss_weights.tolist()))
        said += f"; loss weights {', '.join(f'{weight:g}' for weight in weights)}"
    if block.positions is not None:
        said += f"; positions {block.positions[0]:,} to {block.positions[-1]:,}"
    return said
