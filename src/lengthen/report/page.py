"""The page: its sections in order, and what is around them."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from lengthen.files import write_text
from lengthen.report import about, scores
from lengthen.report.html import Html, element, joined
from lengthen.report.perplexity import perplexity
from lengthen.report.results import Run, read_run
from lengthen.report.summary import summary
from lengthen.report.usable import usable

__all__ = ["write_report"]


def write_report(folder: Path, out: Path | None = None, compare: Sequence[Path] = ()) -> Path:
    """Write what a run is, cost and reached as one HTML file that needs no other and asks no server.

    Args:
        folder: a run folder.
        out: the file; default report.html in the run folder.
        compare: results files of the run's base, as `lengthen eval` writes them.

    Returns:
        The file.

    Raises:
        LengthenError: not a run folder, a broken file, results of another model, or `out` can't be written.
    """
    run = read_run(folder, compare)
    out = out or folder / "report.html"
    write_text(out, _page(run))
    return out


def _page(run: Run) -> str:
    name = run.folder.resolve().name
    parts = {
        "Usable context": usable(run),
        "What was run": about.setup(run),
        "Training": about.training(run),
        "Perplexity": perplexity(run),
        "Passkey": scores.retrieval(run, "passkey"),
        "Needle in a haystack": scores.retrieval(run, "needle"),
        "RULER": scores.ruler(run),
        "Benchmark tasks": scores.tasks(run),
        "Commands and versions": about.commands(run),
    }
    body = element(
        "main",
        element("header", element("p", "lengthen report", class_="kind"), element("h1", name), summary(run)),
        *(element("section", element("h2", title), content) for title, content in parts.items()),
    )
    style = (resources.files("lengthen.report") / "page.css").read_text(encoding="utf-8")
    head = joined(
        Html('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html('<meta name="color-scheme" content="light dark">'),
        element("title", f"{name} - lengthen report"),
        element("style", Html(style)),
    )
    return f"<!doctype html>\n{element('html', element('head', head), element('body', body), lang='en')}\n"
