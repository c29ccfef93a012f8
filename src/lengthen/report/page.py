"""The page: what it shows, in report.html.j2's order, rendered into one file."""

from collections.abc import Sequence
from pathlib import Path

from lengthen.files import write_text
from lengthen.report.comparison import perplexity_by_position, usable
from lengthen.report.evaluations import evaluations, perplexity_by_protocol, unmeasured
from lengthen.report.results import Run, read_run
from lengthen.report.setup import commands, cost, introduction, setup, trainable, training
from lengthen.run_folder import RunFolder
from lengthen.templates import template

__all__ = ["write_report"]


def write_report(folder: Path, out: Path | None = None, compare: Sequence[Path] = ()) -> Path:
    """Write what of a run's context is usable, what was run and what it cost as one HTML file.

    The file needs no other one and asks no server.

    Args:
        folder: a run folder.
        out: the file; default report.html in the run folder.
        compare: results files of the run's base, as `lengthen eval` writes them.

    Returns:
        The file.

    Raises:
        LengthenError: not a run folder, an adapter that is not finite, a broken file, results of another model, or
            `out` can't be written.
    """
    run = read_run(folder, compare)
    adapter = RunFolder(folder).adapter
    if (adapter / "adapter_config.json").is_file():
        from lengthen.adapters.finite import check_adapter  # seconds, which a page without an adapter need not wait

        check_adapter(adapter)
    out = out or folder / "report.html"
    write_text(out, _render(run))
    return out


def _render(run: Run) -> str:
    positions = perplexity_by_position(run)
    return template("lengthen.report", "report.html.j2").render(
        name=run.folder.resolve().name,
        is_finished=run.is_finished,
        introduction=introduction(run),
        usable=usable(run),
        cost=cost(run),
        perplexity=([positions] if positions else []) + perplexity_by_protocol(run),
        setup=setup(run),
        trainable=trainable(run),
        training=training(run),
        evaluations=evaluations(run),
        unmeasured=unmeasured(run),
        commands=commands(run),
        versions=run.metadata["commands"][-1]["versions"] if run.metadata.get("commands") else {},
        recipe=run.recipe.to_yaml(),
    )
