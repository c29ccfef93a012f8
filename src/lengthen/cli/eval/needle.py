"""``lengthen eval needle``."""

import typer

from lengthen.cli._loaded_model import load_model
from lengthen.cli._options import (
    BatchSize,
    Depths,
    EvalOptions,
    Generate,
    Haystack,
    Lengths,
    Model,
    Output,
    Seed,
    Trials,
    parse_depths,
    parse_lengths,
)
from lengthen.cli.eval.grid import report_grid

__all__ = ["needle"]


def needle(
    model: Model,
    lengths: Lengths,
    depths: Depths = "0,0.25,0.5,0.75,1",
    haystack: Haystack = None,
    trials: Trials = 20,
    generate: Generate = True,
    batch_size: BatchSize = 1,
    seed: Seed = 0,
    *,
    options: EvalOptions,
    output: Output,
) -> None:
    """Measure how well numbers hidden in prose are found; each prompt hides one at every depth and is read once."""
    tokens, places = parse_lengths(lengths, "--lengths"), parse_depths(depths)

    from lengthen.evaluation.haystack import Haystack as Prose
    from lengthen.evaluation.haystack import read_haystack
    from lengthen.evaluation.retrieval.grid import ANSWER_TOKENS
    from lengthen.evaluation.retrieval.needle import needle as measure

    source, text = read_haystack(haystack)
    loaded = load_model(model, options)
    loaded.check_lengths(tokens, options.beyond)
    prose = Prose(loaded.tokenizer, text)
    typer.echo(f"haystack: {source}, {prose.tokens} tokens", err=True)
    if prose.tokens < max(tokens):
        typer.echo(f"warning: the haystack is shorter than {max(tokens)} tokens; it repeats", err=True)
    cells = measure(
        loaded.model,
        loaded.tokenizer,
        prose,
        tokens,
        places,
        trials,
        generate=generate,
        batch_size=batch_size,
        seed=seed,
        quiet=output.quiet,
    )
    content = {
        "seed": seed,
        "answer_tokens": ANSWER_TOKENS,
        "needles": len(places),
        "haystack": {"source": source, "tokens": prose.tokens},
    }
    report_grid(loaded, "needle", cells, content, output.json_file)
