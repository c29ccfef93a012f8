"""The tab "Extend" as HTML, from the job and the run folder."""

from dataclasses import dataclass
from pathlib import Path

from lengthen.evaluation.plot import training_figure
from lengthen.extension import PHASES, Event, State
from lengthen.extension.plan import as_time, plan_lines
from lengthen.recipe import parse_recipe
from lengthen.report.comparison import usable
from lengthen.report.figures import inline_svg
from lengthen.report.results import read_run
from lengthen.results import check_metrics
from lengthen.run_folder import RunFolder
from lengthen.templates import template
from lengthen.ui.job import ExtensionProgress

__all__ = ["render"]

_NAMES = {
    "plan": "Plan",
    "base": "Measure the base",
    "train": "Train",
    "run": "Measure the run",
    "report": "Report",
}


@dataclass(frozen=True)
class _Phase:
    name: str
    state: str
    took: str


def render(progress: ExtensionProgress, folder: Path | None, state: State | None) -> str:
    """The extension in a folder, as far as it has come.

    Args:
        progress: of the job, which counts where it is about this folder.
        folder: the run folder; None before there is one.
        state: from it.
    """
    if folder is None:
        return _html("Nothing is extended yet.", "Say what to extend, and plan it.", None, ExtensionProgress(), None)
    if progress.folder != folder:
        progress = ExtensionProgress(folder=folder)
    return _html(*_headline(progress, state), state, progress, folder)


def _headline(progress: ExtensionProgress, state: State | None) -> tuple[str, str]:
    """How far it is in a few words, and what there is to say about that."""
    phase = "plan" if state is None else state.phase
    if phase is None:
        return "Finished.", ""
    name, event = _NAMES[phase], progress.event
    if progress.state == "stopping":
        return f"{name}: stopping ...", "A step that has begun is finished first."
    if progress.state == "running":
        return f"{name} ...", _how_far(event) if event is not None and event.phase == phase else ""
    if progress.state == "failed":
        return f"{name}: failed.", ""
    if state is None or not state.seconds:
        return "Not planned yet.", ""
    if phase == "base":
        return "Planned.", "Start it when the plan suits you."
    return f"Stopped; next: {name}.", "Nothing that was done is lost; go on when you like."


def _how_far(event: Event) -> str:
    parts = [f"{event.done:,.0f} of {event.total:,.0f} {event.unit}"] if event.total else []
    if event.loss is not None:
        parts.append(f"loss {event.loss:.3f}")
    if event.seconds_left is not None:
        parts.append(f"about {as_time(event.seconds_left)} left")
    return ", ".join(parts)


def _html(headline: str, detail: str, state: State | None, progress: ExtensionProgress, folder: Path | None) -> str:
    verdict = None if state is None else state.verdict
    return template("lengthen.ui", "extension.html.j2").render(
        headline=headline,
        detail=detail,
        error=progress.error,
        phases=_phases(state, progress),
        share=_share_done(state, progress),
        plan=_plan(state, progress),
        loss=_loss(folder),
        verdict=verdict,
        found=None if verdict is None or folder is None else _found(folder),
        report=None if folder is None else folder / "report.html",
    )


def _next_phase(state: State | None) -> str | None:
    return "plan" if state is None else state.phase


def _phases(state: State | None, progress: ExtensionProgress) -> list[_Phase]:
    assert list(_NAMES) == list(PHASES)
    done = {} if state is None else state.seconds
    now = _next_phase(state) if progress.is_busy else None
    return [
        _Phase(name, "done", as_time(done[key])) if key in done else _Phase(name, "now" if key == now else "later", "")
        for key, name in _NAMES.items()
    ]


def _share_done(state: State | None, progress: ExtensionProgress) -> float | None:
    """The share of the phase in progress that is done."""
    event = progress.event
    # That of a phase before says nothing about this one.
    if event is None or not progress.is_busy or event.phase != _next_phase(state) or not event.total:
        return None
    return event.done / event.total


def _plan(state: State | None, progress: ExtensionProgress) -> list[str]:
    """The plan, or while it is made what was said about it."""
    if state is None or state.plan is None or state.recipe is None:
        return list(progress.lines)
    recipe = parse_recipe(state.recipe, "of the extension")
    return [*state.about, *plan_lines(recipe, state.plan)]


def _loss(folder: Path | None) -> str | None:
    """The loss so far, also that of training before a restart."""
    run = None if folder is None else RunFolder(folder)
    if run is None or not run.metrics.is_file():
        return None
    metrics = check_metrics(run.read_metrics(), run.metrics)
    if not metrics:
        return None
    label = f"Loss by optimizer step; {metrics[-1]['loss']:.3f} at step {metrics[-1]['step']:,}."
    return inline_svg(training_figure(metrics), "loss", label)


def _found(folder: Path) -> str | None:
    judged = usable(read_run(folder))
    return judged.picture.svg if judged is not None and judged.picture is not None else None
