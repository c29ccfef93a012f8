"""``lengthen eval passkey``."""

from lengthen.cli._launcher import join_peers
from lengthen.cli._loaded_model import load_model
from lengthen.cli._options import EvalOptions, GridOptions, Model, Output
from lengthen.cli.eval.grid import report_grid

__all__ = ["passkey"]


def passkey(model: Model, *, prompts: GridOptions, options: EvalOptions, output: Output) -> None:
    """Count how often a number hidden in a long repetitive text is found (Landmark Attention's prompt)."""
    lengths, depths = prompts.parsed()

    from lengthen.evaluation.retrieval.grid import ANSWER_TOKENS
    from lengthen.evaluation.retrieval.passkey import passkey as measure

    peers = join_peers()
    loaded = load_model(model, options)
    loaded.check_lengths(lengths, options.beyond)
    cells = measure(loaded.model, loaded.tokenizer, lengths, depths, **prompts.measuring(), peers=peers)
    content = {"seed": prompts.seed, "answer_tokens": ANSWER_TOKENS}
    report_grid(loaded, "passkey", cells, content, output.json_file)
