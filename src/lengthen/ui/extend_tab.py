"""The tab to extend a model's context: the request, the plan, the progress, the verdict."""

import hashlib
import html
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from lengthen.data.documents import SUPPORTED
from lengthen.errors import LengthenError
from lengthen.extension import ExtendRequest, read_state
from lengthen.extension.pipeline import default_folder
from lengthen.run_folder import RunFolder
from lengthen.ui.extend_view import render
from lengthen.ui.job import ExtensionJob, unfinished_first

__all__ = ["ExtendTab"]

_NEW = "a new one"
_LOOK = 1.0  # seconds between looks at the job


class ExtendTab:
    """The components of the tab and their events. Must be made inside Blocks.

    Args:
        job: of everyone.
        runs: folder of the run folders.
        base: offered first.
    """

    def __init__(self, job: ExtensionJob, runs: Path, base: str):
        self._job, self._runs = job, runs
        own = [] if RunFolder(Path(base)).is_run else [base]  # a run is no base
        bases = list(dict.fromkeys([*own, "tiny", "smollm2-135m-instruct"]))
        self.seen = gr.State("")
        self.timer = gr.Timer(_LOOK)
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                self.run = gr.Dropdown(
                    self._choices(), value=_NEW, label="Run", elem_id="run",
                    allow_custom_value=True,  # what another page chose and this one has not heard of yet
                )  # fmt: skip
                self.base = gr.Dropdown(
                    bases, value=bases[0], label="Base", allow_custom_value=True, elem_id="base",
                    info="Hub id, model folder, .gguf file or alias",
                )  # fmt: skip
                self.target = gr.Number(None, label="Context that is wanted, tokens", precision=0, elem_id="target")
                self.data = gr.Textbox(
                    label="Documents", lines=2, max_lines=8, elem_id="data",
                    info="Files and folders of this machine, or hf:OWNER/NAME:SPLIT; one per line",
                )  # fmt: skip
                self.files = gr.File(
                    label="Add files", file_count="multiple", file_types=list(SUPPORTED), height=120, elem_id="files"
                )
                self.hours = gr.Number(2, label="Hours at most", minimum=0.01, elem_id="hours")
                with gr.Row():
                    self.plan = gr.Button("Plan", elem_id="plan", min_width=90)
                    self.start = gr.Button("Start", variant="primary", elem_id="start", min_width=90)
                    self.cancel = gr.Button("Cancel", variant="stop", visible=False, elem_id="cancel", min_width=90)
            with gr.Column(scale=2, min_width=320):
                self.view = gr.HTML(elem_id="extension")

    def connect(self, blocks: gr.Blocks) -> None:
        """Connect events with functions."""
        quietly: dict[str, Any] = {"show_progress": "hidden"}
        wishes = [self.base, self.target, self.data, self.hours]
        blocks.load(self._newest, None, [self.run], **quietly)
        self.timer.tick(
            self._look, [self.run, self.seen], [self.view, self.run, self.plan, self.start, self.cancel, self.seen],
            **quietly,
        )  # fmt: skip
        self.run.change(self._pick, [self.run], wishes, **quietly)
        self.files.upload(self._add_files, [self.files, self.data], [self.files, self.data], **quietly)
        self.plan.click(self._make_plan, [self.run, *wishes], [self.run], **quietly)
        self.start.click(self._begin, [self.run, *wishes], [self.run], **quietly)
        self.cancel.click(self._job.cancel, None, None, **quietly)

    def _newest(self) -> gr.Dropdown:
        """The extension to show on opening the page: the one in progress, or the last one of this process."""
        folder = self._job.progress.folder
        return gr.Dropdown(self._choices(), value=_NEW if folder is None else str(folder))

    def _choices(self) -> list[tuple[str, str]]:
        """Labels and values: a new run, and those in the folder with how far they are."""
        labels = {
            str(folder): f"{folder.name} ({'finished' if state.phase is None else 'not finished'})"
            for folder, state in unfinished_first(self._runs).items()
        }
        newest = self._job.progress.folder
        if newest is not None:  # of which there may be nothing in the folder yet
            labels.setdefault(str(newest), newest.name)
        return [(_NEW, _NEW), *((label, folder) for folder, label in labels.items())]

    def _look(self, run: str, seen: str) -> Any:
        """Updates of the parts that changed since the last look."""
        progress = self._job.progress
        now = f"{progress.version} {run}"
        if now == seen:
            return gr.skip()
        folder = progress.folder if progress.is_busy else None if run == _NEW else Path(run)
        try:
            state = None if folder is None else read_state(folder)
            content = render(progress, folder, state)
        except LengthenError as error:
            state, content = None, f'<p role="alert">{html.escape(str(error))}</p>'
        can_begin = not progress.is_busy and (state is None or state.phase is not None)
        is_begun, choices = state is not None and len(state.seconds) > 1, self._choices()
        return {
            self.view: content,
            self.run: gr.Dropdown(choices, value=str(folder)) if progress.is_busy else gr.Dropdown(choices),
            self.plan: gr.Button(visible=can_begin and (state is None or not state.seconds)),
            self.start: gr.Button("Go on" if is_begun else "Start", visible=can_begin),
            self.cancel: gr.Button(visible=progress.is_busy, interactive=progress.state == "running"),
            self.seen: now,
        }

    def _pick(self, run: str) -> dict[Any, Any]:
        """The request with which a run was begun."""
        state = None if run == _NEW else read_state(Path(run))
        if state is None:
            return {}
        asked = state.request
        return {
            self.base: asked.model,
            self.target: asked.to,
            self.data: "\n".join(asked.data),
            self.hours: asked.hours,
        }

    def _add_files(self, paths: list[str], data: str) -> dict[Any, Any]:
        """Keep uploads where a later process finds them under the same name."""
        kept = []
        for path in map(Path, paths or []):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
            place = self._runs / "documents" / digest / path.name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, place)
            kept.append(str(place))
        lines = [*data.splitlines(), *kept]
        return {self.files: None, self.data: "\n".join(dict.fromkeys(filter(str.strip, lines)))}

    def _make_plan(self, run: str, base: str, target: float | None, data: str, hours: float | None) -> Any:
        return self._begin(run, base, target, data, hours, only_plan=True)

    def _begin(
        self, run: str, base: str, target: float | None, data: str, hours: float | None, only_plan: bool = False
    ) -> Any:
        paths = tuple(line.strip() for line in data.splitlines() if line.strip())
        if not target or not paths or not base.strip() or not hours:
            gr.Warning("Say which base to extend, to how many tokens, with which documents, and in how many hours.")
            return gr.skip()
        request = ExtendRequest(base.strip(), int(target), paths, hours=float(hours))
        try:
            begun = None if run == _NEW else read_state(Path(run))
            if begun is not None:  # it may have wishes that the page does not ask for
                request = replace(begun.request, model=request.model, to=request.to, data=paths, hours=request.hours)
            folder = self._runs / default_folder(request).name if begun is None else Path(run)
            self._job.begin(request, folder, only_plan)
        except LengthenError as error:
            gr.Warning(html.escape(str(error)), duration=20)
            return gr.skip()
        return gr.Dropdown(self._choices(), value=str(folder))
