"""``lengthen eval needle``."""

import typer

from lengthen.cli._launcher import join_peers
from lengthen.cli._loaded_model import load_model
from lengthen.cli._options import EvalOptions, GridOptions, Haystack, Model, Output
from lengthen.cli.eval.grid import report_grid

__all__ = ["needle"]


def needle(
    model: Model, haystack: Haystack = None, *, prompts: GridOptions, options: EvalOptions, output: Output
) -> None:
    """Measure how well numbers hidden in prose are found; each prompt hides one at every depth and is read once."""
    lengths, depths = prompts.parsed()

    from lengthen.evaluation.haystack import Haystack as Prose
    from lengthen.evaluation.haystack import read_haystack
    from lengthen.evaluation.retrieval.grid import ANSWER_TOKENS
    from lengthen.evaluation.retrieval.needle import needle as measure

    source, text = read_haystack(haystack)
    peers = join_peers()
    loaded = load_model(model, options)
    loaded.check_lengths(lengths, options.beyond)
    prose = Prose(loaded.tokenizer, text, source)
    typer.echo(f"haystack: {source}, {prose.tokens} tokens", err=True)
    if prose.tokens < max(lengths):
        typer.echo(f"warning: the haystack is shorter than {max(lengths)} tokens; it repeats", err=True)
    cells = measure(loaded.model, loaded.tokenizer, prose, lengths, depths, **prompts.measuring(), peers=peers)
    hidden = {"needles": len(depths), "haystack": prose.to_json()}
    content = {"seed": prompts.seed, "answer_tokens": ANSWER_TOKENS, **hidden}
    report_grid(loaded, "needle", cells, content, output.json_file)
