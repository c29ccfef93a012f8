"""An extension, top to bottom: plan, measure the base, train, measure the run, report. Each phase is done once.

What a phase comes to is in the run folder before the next one begins: `extend.json` says which are done, `recipe.yaml`
is the plan, `measured/` has what base and run answered, `checkpoints/` and `adapter/` are the training's. So whatever
stops the process, the same request goes on where it was.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lengthen.adapters.export import export
from lengthen.errors import LengthenError, ModelError
from lengthen.evaluation.compare import comparison_figure
from lengthen.evaluation.compare.verdict import RETRIEVAL
from lengthen.evaluation.plot import save_figure
from lengthen.extension.draft import draft, with_task
from lengthen.extension.events import PHASES, OnEvent, Phase
from lengthen.extension.look import Look, check_base, look
from lengthen.extension.measuring import Measuring, try_base
from lengthen.extension.pipeline import Pipeline
from lengthen.extension.plan import Planned, make_plan, plan_lines
from lengthen.extension.questions import documents_to_measure
from lengthen.extension.request import ExtendRequest
from lengthen.extension.state import locked, read_state
from lengthen.extension.verdict import make_verdict
from lengthen.files import read_object, write_json
from lengthen.models.load import load_tokenizer
from lengthen.planning import Device, find_device, this_device
from lengthen.recipe import Recipe, apply_overrides
from lengthen.report import write_report
from lengthen.run_folder import RunFolder
from lengthen.training.run import train

__all__ = ["Extension", "extend", "plan_extension"]


# Its name sorts before those of later comparisons, of which the report takes the newest.
_COMPARISON = "compare-0-extend.json"


class Extension:
    """A finished extension.

    Args:
        folder: its run folder.

    Attributes:
        folder: the same.
        verdict: what came out.

    Raises:
        ModelError: no finished extension is there.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        state = read_state(self.folder)
        if state is None or state.verdict is None:
            raise ModelError(f"{folder} holds no finished extension; run `lengthen extend` into it")
        self.verdict = state.verdict

    @property
    def comparison(self) -> dict[str, Any]:
        """Run and base side by side: the results file, a `lengthen.results.Comparison` with what was asked."""
        return read_object(RunFolder(self.folder).evals / _COMPARISON)

    def report(self, out: str | Path | None = None) -> Path:
        """Write the report anew, with everything that was measured since; see `lengthen.report.write_report`."""
        return write_report(self.folder, None if out is None else Path(out))

    def export(self, out: str | Path, **options: Any) -> Path:
        """Merge it into one ordinary model folder; see `lengthen.export` for the options."""
        return export(self.folder, Path(out), **options)


def extend(
    model: str,
    to: int,
    data: str | Sequence[str],
    *,
    out: str | Path | None = None,
    eval_data: str | Sequence[str] = (),
    hours: float = 2.0,
    task: str | None = None,
    overrides: Sequence[str] = (),
    on_event: OnEvent = lambda _event: None,
    stop: Callable[[], bool] = lambda: False,
) -> Extension:
    """Extend a model's context, and say what of it is usable.

    Does all that is not done yet: where the same was begun, and stopped by whatever, it goes on to the same end.

    Args:
        model: the base: hub id, model folder, .gguf file or alias.
        to: the context that is wanted, tokens.
        data: long documents: files, folders, token files, or datasets as "hf:OWNER/NAME:SPLIT".
        out: the run folder, new, empty, or one in which the same was begun; default `runs/MODEL-TO`.
        eval_data: documents to measure on; by default some of `data` are kept from training.
        hours: the most that it may take on this device, about; fewer are taken where they suffice.
        task: what is hidden to be found: "needle", facts in sentences; "lookup", values in statements of Python;
            default needles, or what the base can do better where it finds few of them.
        overrides: of the recipe, `section.key=value` each.
        on_event: called, in this thread, with each `Event`.
        stop: asked every second or so, and after each training step; once it says so, `Interrupted` is raised.

    Returns:
        What came out, in the run folder.

    Raises:
        LengthenError: something can't be used; nothing that was done is lost.
        Interrupted: Ctrl-C or SIGTERM while steps were taken, or `stop`; the same call goes on.
    """
    pipeline = Pipeline(_request(model, to, data, eval_data, hours, task, overrides), out, on_event, stop)
    measuring = Measuring(pipeline)
    phases: dict[Phase, Callable[[], dict[str, Any] | None]] = {
        "plan": lambda: _plan_phase(pipeline),
        "base": measuring.measure_base,
        "train": lambda: _train_phase(pipeline),
        "run": measuring.measure_run,
        "report": lambda: _report_phase(pipeline, measuring),
    }
    with locked(pipeline.folder):
        pipeline.open()
        for phase in PHASES:
            if phase not in pipeline.state.seconds:
                pipeline.do(phase, phases[phase])
    return Extension(pipeline.folder)


def plan_extension(
    model: str,
    to: int,
    data: str | Sequence[str],
    *,
    out: str | Path | None = None,
    eval_data: str | Sequence[str] = (),
    hours: float = 2.0,
    task: str | None = None,
    overrides: Sequence[str] = (),
    device: str | None = None,
    on_event: OnEvent = lambda _event: None,
    stop: Callable[[], bool] = lambda: False,
) -> Planned:
    """Only plan: `extend` with the same arguments goes on from there, by the recipe.yaml that is written.

    Args:
        model, to, data, out, eval_data, hours, task, overrides, on_event, stop: as in `extend`.
        device: plan for this one (see `lengthen.planning.DEVICES`), by the planner alone; nothing is written.

    Raises:
        LengthenError: as `extend`.
        Interrupted: as `extend`.
    """
    pipeline = Pipeline(_request(model, to, data, eval_data, hours, task, overrides), out, on_event, stop)
    if device is not None:
        return _plan(pipeline, find_device(device))[2]
    with locked(pipeline.folder):
        pipeline.open()
        if "plan" not in pipeline.state.seconds:
            pipeline.do("plan", lambda: _plan_phase(pipeline))
        return pipeline.planned


def _request(
    model: str,
    to: int,
    data: str | Sequence[str],
    eval_data: str | Sequence[str],
    hours: float,
    task: str | None,
    overrides: Sequence[str],
) -> ExtendRequest:
    def listed(paths: str | Sequence[str]) -> tuple[str, ...]:
        return (str(paths),) if isinstance(paths, str | Path) else tuple(map(str, paths))

    if not listed(data):
        raise LengthenError("no `data` was named; name files or folders of long documents")
    if hours <= 0:
        raise LengthenError(f"`hours` is {hours:g}; give more than 0")
    if task not in (None, *RETRIEVAL):
        raise LengthenError(f"`task` is {task!r}; choose {' or '.join(RETRIEVAL)}, or leave it out")
    return ExtendRequest(str(model), to, listed(data), listed(eval_data), float(hours), task, tuple(overrides))


def _plan(pipeline: Pipeline, device: Device | None = None) -> tuple[Look, Recipe, Planned]:
    """Look at base and data, and decide; with a device that need not be here, by the planner alone."""
    stated = _stated_context(pipeline.request)
    first = draft(pipeline.request, check_base(pipeline.request, stated)[1])
    looked = look(pipeline.request, first, pipeline.check_stop)
    for text in (*looked.lines, *(f"warning: {warning}" for warning in looked.warnings)):
        pipeline.say(text)
    recipe = draft(pipeline.request, looked.config, {"data.held_out": list(looked.held_out)})
    tokenizer = load_tokenizer(pipeline.request.model)
    documents = documents_to_measure(pipeline.request, recipe, tokenizer, looked.config, pipeline.check_stop)
    recipe, planned = make_plan(
        pipeline.request,
        looked,
        len(documents),
        pipeline.folder,
        device or this_device(),
        device is None,
        pipeline.say,
        pipeline.stop,
    )
    task = pipeline.request.task
    if task is None and device is None:
        task = try_base(recipe, documents, pipeline.check_stop)
        pipeline.say(f"asking about {RETRIEVAL[task]}, which this base answers best within its own context")
    if task is not None:
        recipe = with_task(recipe, task)
        planned = replace(planned, questions=replace(planned.questions, task=task))
    for text in plan_lines(recipe, planned):
        pipeline.say(text)
    return looked, recipe, planned


def _plan_phase(pipeline: Pipeline) -> dict[str, Any]:
    looked, recipe, planned = _plan(pipeline)
    return {"about": looked.lines, "recipe": recipe.model_dump(), "plan": planned}


def _train_phase(pipeline: Pipeline) -> None:
    recipe = pipeline.recipe
    steps = recipe.training.steps
    assert steps is not None  # a mixture has no epochs

    def on_step(record: dict[str, Any]) -> None:
        pipeline.moved(record["step"], steps, "steps", record["seconds"] * (steps - record["step"]), record["loss"])

    train(recipe, resume=True, on_step=on_step, stop=pipeline.stop)


def _report_phase(pipeline: Pipeline, measuring: Measuring) -> dict[str, Any]:
    found, content = measuring.compare()
    results = pipeline.run.evals / _COMPARISON
    write_json(results, content)
    figure = comparison_figure(found, pipeline.folder.name, content["base_context"])
    if figure is not None:
        save_figure(figure, results.with_suffix(".png"))
    write_report(pipeline.folder)
    metrics = pipeline.run.read_metrics()
    seconds = {**pipeline.state.seconds, pipeline.phase: pipeline.elapsed}
    peak = max((record["peak_memory_bytes"] for record in metrics), default=None)
    return {"verdict": make_verdict(found, pipeline.recipe, pipeline.request, pipeline.folder, seconds, peak)}


def _stated_context(request: ExtendRequest) -> int | None:
    """The base's context where the overrides state it; errors in them are reported when the recipe is checked."""
    content: dict[str, Any] = {"context": {}}
    apply_overrides(content, request.overrides)
    stated = content["context"].get("base") if isinstance(content["context"], dict) else None
    return stated if isinstance(stated, int) else None
