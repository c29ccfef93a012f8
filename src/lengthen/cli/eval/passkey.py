"""``lengthen eval passkey``."""

from lengthen.cli._loaded_model import load_model
from lengthen.cli._options import (
    BatchSize,
    Depths,
    EvalOptions,
    Generate,
    Lengths,
    Model,
    Output,
    Seed,
    Trials,
    parse_depths,
    parse_lengths,
)
from lengthen.cli.eval.grid import report_grid

__all__ = ["passkey"]


def passkey(
    model: Model,
    lengths: Lengths,
    depths: Depths = "0,0.25,0.5,0.75,1",
    trials: Trials = 20,
    generate: Generate = True,
    batch_size: BatchSize = 1,
    seed: Seed = 0,
    *,
    options: EvalOptions,
    output: Output,
) -> None:
    """Count how often a number hidden in a long repetitive text is found (Landmark Attention's prompt)."""
    tokens, places = parse_lengths(lengths, "--lengths"), parse_depths(depths)

    from lengthen.evaluation.retrieval.grid import ANSWER_TOKENS
    from lengthen.evaluation.retrieval.passkey import passkey as measure

    loaded = load_model(model, options)
    loaded.check_lengths(tokens, options.beyond)
    cells = measure(
        loaded.model,
        loaded.tokenizer,
        tokens,
        places,
        trials,
        generate=generate,
        batch_size=batch_size,
        seed=seed,
        quiet=output.quiet,
    )
    report_grid(loaded, "passkey", cells, {"seed": seed, "answer_tokens": ANSWER_TOKENS}, output.json_file)
