"""``lengthen eval passkey``."""

from lengthen.cli.eval import grid
from lengthen.cli.eval import subject as common
from lengthen.cli.eval.grid import parse_depths, report_grid
from lengthen.cli.eval.subject import load_subject, parse_lengths

__all__ = ["passkey"]


def passkey(
    model: common.Model,
    lengths: grid.Lengths,
    depths: grid.Depths = "0,0.25,0.5,0.75,1",
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
    """Count how often a number hidden in a long repetitive text is found (Landmark Attention's prompt)."""
    tokens, places = parse_lengths(lengths, "--lengths"), parse_depths(depths)

    from lengthen.evaluation.retrieval.grid import ANSWER_TOKENS
    from lengthen.evaluation.retrieval.passkey import passkey as measure

    subject = load_subject(model, adapter, quantize, dtype, method, target, base_context, adapter_scale)
    subject.check_lengths(tokens, beyond)
    cells = measure(
        subject.model,
        subject.tokenizer,
        tokens,
        places,
        trials,
        generate=generate,
        batch_size=batch_size,
        seed=seed,
        quiet=quiet,
    )
    report_grid(subject, "passkey", cells, {"seed": seed, "answer_tokens": ANSWER_TOKENS}, json_file)
