"""Adapters that are trained by request: one at a time, by `lengthen train` in a process of its own, then served.

Jobs are kept in files, so that a server that was stopped or killed knows them again, serves what they trained, and goes
on with the one that was not finished.
"""

import logging
import math
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

from lengthen.errors import LengthenError, one_line
from lengthen.files import parse_json, write_json, write_json_lines, write_text
from lengthen.locks import is_locked
from lengthen.models.devices import Dtype
from lengthen.models.resolve import resolved_name
from lengthen.recipe import Recipe, parse_recipe
from lengthen.run_folder import RunFolder
from lengthen.serving.api.adapter_requests import TrainingRequest
from lengthen.serving.api.job import Job
from lengthen.serving.api.service import ApiError, Service

__all__ = ["Training"]

_LOG = logging.getLogger(__name__)

_MOST_BYTES, _MOST_TOKENS = 2 * 2**20, 2**18  # of the documents of one job
_MOST_JOBS = 100  # that are remembered
_LONGEST_SEQUENCE = 2048  # tokens; longer documents are cut
_LEARNING_RATE = 2e-4
_LESS_URGENT = 5  # niceness beside the server's own: requests come first

_JOBS = ".jobs"  # below the folder of the runs
_CHECKPOINTS = 10  # of a run
_LOOK = 0.25  # seconds between looks at the process
_PATIENCE = 10.0  # seconds that it has to end its step when told to stop


class _CancelledError(Exception):
    """The job is not wanted any more."""


class _ClosingError(Exception):
    """The server is told to stop; the next one goes on with the job."""


class Training:
    """Trains adapters over the served base.

    A finished run is `folder`/NAME, its documents are `folder`/NAME.jsonl; a job that failed or was cancelled leaves
    neither. Jobs are `folder`/.jobs/ID.json.

    Args:
        service: serves the base, and then the adapters.
        folder: of the runs.
        model: what the base was loaded from.
        quantize: "nf4" where it is held in 4 bits.
        dtype: as in a recipe's training.dtype.
    """

    def __init__(self, service: Service, folder: Path, model: str, quantize: str | None, dtype: Dtype | None):
        self._service, self._folder = service, folder.resolve()
        self._model, self._quantize, self._dtype = resolved_name(model), quantize, dtype
        self._jobs = {job.id: job for job in self._known()}
        self._creating = threading.Lock()
        self._closing = threading.Event()

    @property
    def jobs(self) -> list[Job]:
        """The latest ones, in order of time."""
        return list(self._jobs.values())

    def job(self, job_id: str) -> Job:
        """The job of this id.

        Raises:
            ApiError: there is none.
        """
        if job_id not in self._jobs:
            raise ApiError(404, f"there is no fine-tuning job {job_id!r}")
        return self._jobs[job_id]

    def create(self, request: TrainingRequest) -> Job:
        """Begin to train an adapter. Slow for long documents: not for the event loop.

        Raises:
            ApiError: another one is trained, the model is not the base, the name is taken, the documents are too long.
            ModelError: the name is an adapter's.
        """
        with self._creating:
            self._check_idle()
            self._check_model(request.model)
            self._check_name(request.suffix)
            self._check_size(request.documents)
            job = Job(request)
            self._keep(job)  # once this is written, the job is done whatever happens
            self._jobs[job.id] = job
            if len(self._jobs) > _MOST_JOBS:
                self._forget(next(iter(self._jobs)))
            self._begin(job)
        return job

    def go_on(self) -> None:
        """Serve what was trained before the server was started, and go on with a job that was not finished."""
        for job in self.jobs:
            if not job.is_finished:
                self._begin(job)
            elif job.status == "succeeded" and job.request.suffix not in self._service.names:
                try:
                    self._service.engine.load_adapter(job.request.suffix, self._run(job.request.suffix))
                except LengthenError as error:  # it was removed, or belongs to another base
                    _LOG.warning("%s is not served again: %s", job.request.suffix, one_line(error))

    def cancel(self, job_id: str) -> Job:
        """Stop a job, and return when it has stopped: not for the event loop.

        Raises:
            ApiError: there is none of this id, or it is finished.
        """
        job = self.job(job_id)
        if job.is_finished:
            raise ApiError(400, f"{job_id} can't be cancelled: it is finished, with status {job.status}")
        self._stop(job)
        return job

    def close(self) -> None:
        """Stop what is trained, after a checkpoint."""
        self._closing.set()
        for job in self.jobs:
            if job.thread is not None:
                job.thread.join(2 * _PATIENCE)

    def _begin(self, job: Job) -> None:
        job.thread = threading.Thread(target=self._work, args=(job,), name="lengthen-training", daemon=True)
        job.thread.start()

    def _stop(self, job: Job) -> None:
        job.cancelled.set()
        assert job.thread is not None
        job.thread.join(2 * _PATIENCE)

    def _known(self) -> list[Job]:
        """The jobs in files, in order of time."""
        jobs = []
        for path in (self._folder / _JOBS).glob("*.json"):
            try:
                jobs.append(Job.from_file(parse_json(path.read_text(encoding="utf-8"))))
            except (OSError, ValueError, LookupError, TypeError) as error:
                _LOG.warning("%s is no job: %s", path, one_line(error))
        return sorted(jobs, key=lambda job: (job.created, job.finished or math.inf))

    def _keep(self, job: Job) -> None:
        write_json(self._folder / _JOBS / f"{job.id}.json", job.to_file())

    def _forget(self, job_id: str) -> None:
        del self._jobs[job_id]
        (self._folder / _JOBS / f"{job_id}.json").unlink(missing_ok=True)

    def _check_idle(self) -> None:
        for job in self._jobs.values():
            if not job.is_finished:
                raise ApiError(
                    409, f"{job.id} is {job.status}, and adapters are trained one at a time; wait for it, or cancel it"
                )

    def _check_model(self, model: str) -> None:
        base = self._service.base_name
        if self._service.adapter_of(model) is not None:
            raise ApiError(400, f"{model!r} is an adapter, and training starts from the base; set model to {base!r}")

    def _check_name(self, name: str) -> None:
        self._service.check_new(name)
        if self._run(name).exists() or self._documents(name).exists():
            raise ApiError(400, f"there is a run {name!r} already; load it as an adapter, or choose another suffix")

    def _check_size(self, documents: list[str]) -> None:
        size = sum(len(text.encode()) for text in documents)
        if size > _MOST_BYTES:
            raise ApiError(400, f"the documents have {size} bytes, and {_MOST_BYTES} is the most; shorten them")
        if self._service.count_tokens(documents, _MOST_TOKENS) > _MOST_TOKENS:
            raise ApiError(400, f"the documents have more than {_MOST_TOKENS} tokens, which is the most; shorten them")

    def _run(self, name: str) -> Path:
        return self._folder / name

    def _documents(self, name: str) -> Path:
        return self._folder / f"{name}.jsonl"

    def _work(self, job: Job) -> None:
        name = job.request.suffix
        try:
            self._train(job)
            self._service.engine.load_adapter(name, self._run(name))
        except _ClosingError:
            return
        except _CancelledError:
            self._remove(name)
            job.end("cancelled", "the job was cancelled")
        except Exception as error:  # whatever it is, the next job can be trained
            if not isinstance(error, LengthenError):
                _LOG.exception("training an adapter failed")
            self._remove(name)
            job.end("failed", one_line(error))
        else:
            job.end("succeeded", f"the adapter is served as {name!r}")
        try:
            self._keep(job)
        except LengthenError:
            _LOG.exception("the end of %s is known until the server stops", job.id)

    def _train(self, job: Job) -> None:
        name = job.request.suffix
        write_json_lines(self._documents(name), ({"text": text} for text in job.request.documents))
        self._await_earlier(job)
        with tempfile.TemporaryDirectory() as scratch, Path(scratch, "said").open("w+", errors="replace") as said:
            recipe = Path(scratch, f"{name}.yaml")
            write_text(recipe, self._recipe(job.request).to_yaml())
            # No shell; and of what came with the request, only the name, which is letters, digits, dots and dashes.
            process = subprocess.Popen(  # nosec B603
                [sys.executable, "-m", "lengthen.cli", "train", str(recipe), "--resume", "--quiet"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
                env=os.environ | {"LENGTHEN_CACHE": scratch},  # the tokens are not needed again
                start_new_session=True,  # Ctrl-C is the server's
            )
            try:
                os.setpriority(os.PRIO_PROCESS, process.pid, os.getpriority(os.PRIO_PROCESS, 0) + _LESS_URGENT)
                self._follow(job, process)
            finally:
                _end(process)
            if process.returncode != 0:
                said.seek(0)
                raise LengthenError(_reason(said.read()) or f"the training ended with code {process.returncode}")

    def _await_earlier(self, job: Job) -> None:
        """The process that a killed server had begun goes on without it: what it comes to is taken over."""
        run = self._run(job.request.suffix)
        while run.is_dir() and is_locked(run):
            self._check_wanted(job)

    def _check_wanted(self, job: Job) -> None:
        if job.cancelled.wait(_LOOK):
            raise _CancelledError
        if self._closing.is_set():
            raise _ClosingError

    def _recipe(self, request: TrainingRequest) -> Recipe:
        wanted, context = request.hyperparameters, self._service.engine.base.context
        content = {
            "model": self._model,
            "out": str(self._run(request.suffix)),
            "seed": request.seed,
            "quantize": self._quantize,
            "context": {"target": context, "method": "none", "base": context},
            "attention": {"kind": "full"},
            "adapter": {"rank": wanted.rank, "alpha": 2 * wanted.rank, "embeddings": False, "norms": False},
            "data": {
                "train": [str(self._documents(request.suffix))],
                "sequence_length": min(context, _LONGEST_SEQUENCE),
            },
            "training": {
                "steps": wanted.n_steps,
                "learning_rate": _LEARNING_RATE * wanted.learning_rate_multiplier,
                "schedule": "constant",
                "warmup_steps": wanted.n_steps // 10,
                "dtype": self._dtype or "auto",
                "save_every": max(1, wanted.n_steps // _CHECKPOINTS),
            },
        }
        return parse_recipe(content, request.suffix)

    def _follow(self, job: Job, process: subprocess.Popen[bytes]) -> None:
        job.tell("the training begins")
        job.status = "running"
        while process.poll() is None:
            self._check_wanted(job)
            self._tell_steps(job)
        self._tell_steps(job)
        if job.cancelled.is_set():
            raise _CancelledError

    def _tell_steps(self, job: Job) -> None:
        """An event for each step that the run has logged since."""
        records = RunFolder(self._run(job.request.suffix)).read_metrics(start=job.steps)
        total = job.request.hyperparameters.n_steps
        for record in records:
            step, loss = record["step"], record["loss"]
            seen = {"step": step, "total_steps": total, "train_loss": loss if math.isfinite(loss) else None}
            job.tell(f"step {step}/{total}, loss {loss:.4f}", metrics=seen)
        job.steps += len(records)

    def _remove(self, name: str) -> None:
        """Remove the files of a job that did not succeed."""
        shutil.rmtree(self._run(name), ignore_errors=True)
        with suppress(OSError):
            self._documents(name).unlink()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop a process, if it is still there."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _reason(said: str) -> str:
    """Why a command failed, from what it wrote: its one line on bad input, else the last line."""
    lines = said.strip().splitlines()
    errors = [line.removeprefix("lengthen: ") for line in lines if line.startswith("lengthen: ")]
    return (errors or lines or [""])[-1]
