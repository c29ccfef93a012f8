"""``lengthen eval needle``."""

import typer

from lengthen.cli.eval import grid
from lengthen.cli.eval import subject as common
from lengthen.cli.eval.grid import parse_depths, report_grid
from lengthen.cli.eval.subject import load_subject, parse_lengths

__all__ = ["needle"]


def needle(
    model: common.Model,
    lengths: grid.Lengths,
    depths: grid.Depths = "0,0.25,0.5,0.75,1",
    haystack: grid.Haystack = None,
    trials: grid.Trials = 20,
    generate: grid.Generate = True,
    batch_size: grid.BatchSize = 1,
    seed: grid.Seed = 0,
    beyond: common.Beyond = False,
    adapter: common.Adapter = None,
    adapter_scale: common.AdapterScale = 1.0,
    quantize: common.Quantize = None,
    dtype: common.Dtype = "auto",
    method: common.Method = None,
    target: common.Target = None,
    base_context: common.BaseContext = None,
    json_file: common.JsonFile = None,
    quiet: common.Quiet = False,
) -> None:
    """Measure how well numbers hidden in prose are found; each prompt hides one at every depth and is read once."""
    tokens, places = parse_lengths(lengths, "--lengths"), parse_depths(depths)

    from lengthen.evaluation.haystack import Haystack, read_haystack
    from lengthen.evaluation.retrieval.grid import ANSWER_TOKENS
    from lengthen.evaluation.retrieval.needle import needle as measure

    source, text = read_haystack(haystack)
    subject = load_subject(model, adapter, quantize, dtype, method, target, base_context, adapter_scale)
    subject.check_lengths(tokens, beyond)
    prose = Haystack(subject.tokenizer, text)
    typer.echo(f"haystack: {source}, {prose.tokens} tokens", err=True)
    if prose.tokens < max(tokens):
        typer.echo(f"warning: the haystack is shorter than {max(tokens)} tokens; it repeats", err=True)
    cells = measure(
        subject.model,
        subject.tokenizer,
        prose,
        tokens,
        places,
        trials,
        generate=generate,
        batch_size=batch_size,
        seed=seed,
        quiet=quiet,
    )
    content = {
        "seed": seed,
        "answer_tokens": ANSWER_TOKENS,
        "needles": len(places),
        "haystack": {"source": source, "tokens": prose.tokens},
    }
    report_grid(subject, "needle", cells, content, json_file)
