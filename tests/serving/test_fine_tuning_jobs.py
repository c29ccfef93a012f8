"""Adapters trained by request, through OpenAI's client, over the shipped base in a server process."""

import json
import time

import openai
import psutil
import pytest
from adapter_files import CPU
from starlette.testclient import TestClient

from lengthen.adapters.load import load_apart
from lengthen.errors import LengthenError
from lengthen.locks import locked
from lengthen.recipe import load_recipe
from lengthen.run_folder import RunFolder
from lengthen.serving.api import ServerSettings, serve
from lengthen.serving.api.app import make_app
from lengthen.serving.api.service import Service
from lengthen.serving.engine import Engine, Limits, LoadedBase
from server_process import serving

BEGINNING = "The lighthouse keeper"
SENTENCE = f"{BEGINNING} of Orrin counted nine gray ships before breakfast."
JSON = {"Content-Type": "application/json"}
LONG = {"n_steps": 1000, "learning_rate_multiplier": 1.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("trained")


@pytest.fixture(scope="module")
def server(folder):
    with serving("--allow-training", folder) as running:
        yield running


def without_jobs(folder):
    """What is in the folder of the runs beside the files of the jobs."""
    return sorted(path for path in folder.iterdir() if path.name != ".jobs")


def create(server, name, documents=(SENTENCE,), hyperparameters=LONG, **more):
    return server.client.fine_tuning.jobs.create(
        **{"model": "tiny", "training_file": "inline", "suffix": name, "hyperparameters": hyperparameters, **more},
        extra_body={"documents": list(documents)},
    )


def wait_until(condition):
    deadline = time.monotonic() + 200
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def status_of(server, job):
    return server.client.fine_tuning.jobs.retrieve(job.id).status


def wait_until_running(server, job):
    """Seconds pass before a new process can be anything else."""
    wait_until(lambda: status_of(server, job) == "running")


def wait_for_end(server, job):
    """The job when it is finished."""
    wait_until(lambda: status_of(server, job) not in ("queued", "running"))
    job = server.client.fine_tuning.jobs.retrieve(job.id)
    assert job.finished_at >= job.created_at
    return job


def steps_of(server, job):
    """The events of a job's steps, in order."""
    events = list(server.client.fine_tuning.jobs.list_events(job.id, limit=3))  # over several pages
    assert len({event.id for event in events}) == len(events)
    return [event.data for event in reversed(events) if event.type == "metrics"]


def test_an_adapter_is_trained_and_served_while_others_are_answered(server, folder):
    before = server.complete("tiny", BEGINNING).choices[0].text
    assert not SENTENCE.startswith(BEGINNING + before[:3])
    job = create(server, "keeper", hyperparameters={"n_steps": 30, "learning_rate_multiplier": 50}, seed=3)
    wait_until_running(server, job)
    assert (job.fine_tuned_model, job.finished_at, job.error) == (None, None, None)
    with pytest.raises(openai.ConflictError, match="adapters are trained one at a time; wait for it, or cancel it"):
        create(server, "second")
    with pytest.raises(openai.NotFoundError, match="there is no model 'keeper'"):
        server.complete("keeper", BEGINNING)
    assert server.complete("tiny", BEGINNING).choices[0].text == before
    assert status_of(server, job) == "running", "answered meanwhile"
    job = wait_for_end(server, job)
    assert (job.status, job.error) == ("succeeded", None)
    assert (job.fine_tuned_model, job.hyperparameters.n_steps) == ("keeper", 30)

    steps = steps_of(server, job)
    assert [step["step"] for step in steps] == list(range(1, 31))
    assert steps[-1]["train_loss"] < 0.1 < 2 < steps[0]["train_loss"]

    def says_the_sentence():
        return (BEGINNING + server.complete("keeper", BEGINNING).choices[0].text).startswith(SENTENCE)

    assert says_the_sentence()
    assert server.complete("tiny", BEGINNING).choices[0].text == before
    assert [model.id for model in server.client.models.list()] == ["tiny", "keeper"]

    # It is an ordinary run, which is found again after a restart.
    assert load_recipe(folder / "keeper" / "recipe.yaml").adapter.rank == 8
    server.http.post("/v1/unload_lora_adapter", json={"lora_name": "keeper"}).raise_for_status()
    server.http.post("/v1/load_lora_adapter", json={"lora_name": "again", "lora_path": "keeper"}).raise_for_status()
    assert server.complete("again", BEGINNING).choices[0].text.startswith(SENTENCE[len(BEGINNING) :])
    with pytest.raises(openai.BadRequestError, match="there is a run 'keeper' already"):
        create(server, "keeper")
    with pytest.raises(openai.BadRequestError, match="'again' is an adapter, and training starts from the base"):
        create(server, "other", model="again")


def test_cancel_leaves_nothing(server, folder):
    before = without_jobs(folder)
    job = create(server, "unwanted")
    wait_until(lambda: steps_of(server, job))
    assert status_of(server, job) == "running"
    cancelled = server.client.fine_tuning.jobs.cancel(job.id)
    assert (cancelled.status, cancelled.fine_tuned_model) == ("cancelled", None)
    assert 0 < len(steps_of(server, job)) < 1000
    assert psutil.Process(server.process.pid).children() == []
    assert without_jobs(folder) == before
    with pytest.raises(openai.NotFoundError):
        server.complete("unwanted", BEGINNING)
    with pytest.raises(openai.BadRequestError, match="it is finished, with status cancelled"):
        server.client.fine_tuning.jobs.cancel(job.id)


def test_a_failure_is_told_and_the_next_job_is_taken(server, folder):
    before = without_jobs(folder)
    job = create(server, "killed")
    wait_until_running(server, job)
    psutil.Process(server.process.pid).children()[0].kill()  # as the system does where memory runs out
    job = wait_for_end(server, job)
    assert (job.status, job.fine_tuned_model) == ("failed", None)
    assert job.error.message == "the training ended with code -9"
    assert without_jobs(folder) == before
    newest = next(iter(server.client.fine_tuning.jobs.list_events(job.id)))
    assert (newest.level, newest.message) == ("error", job.error.message)
    again = create(server, "killed")
    assert [each.id for each in server.client.fine_tuning.jobs.list(limit=1)][:2] == [again.id, job.id]
    assert server.client.fine_tuning.jobs.cancel(again.id).status == "cancelled"


@pytest.mark.slow  # one more process has to begin
def test_what_the_training_says_of_its_failure_is_told(server, folder):
    job = create(server, "lost")
    wait_until_running(server, job)
    (folder / "lost.jsonl").unlink()  # before the process has come to read it
    job = wait_for_end(server, job)
    assert job.error.message == f"{folder / 'lost.jsonl'} does not exist; check the name"


REFUSED = {
    "name of the base": ({"suffix": "tiny"}, 400, "'tiny' is the base; choose another name"),
    "name that leads elsewhere": ({"suffix": "../x"}, 400, "suffix: String should match pattern"),
    "hidden name": ({"suffix": ".x"}, 400, "suffix: String should match pattern"),
    "no name": ({"suffix": None}, 400, "suffix: Input should be a valid string"),
    "unknown model": ({"model": "huge"}, 404, "there is no model 'huge'; there are tiny"),
    "no documents": ({"documents": []}, 400, "documents: List should have at least 1 item"),
    "an empty document": ({"documents": [SENTENCE, " \n"]}, 400, "documents.1: String should match pattern"),
    "half a surrogate pair": ({"documents": ["a \ud800"]}, 400, "documents.0: Input should be a valid string"),
    "too many tokens": ({"documents": ["\N{SNOWMAN}" * 100_000]}, 400, "the documents have more than 262144 tokens"),
    "too many bytes": ({"documents": ["x" * 2**20, "x" * (2**20 + 1)]}, 400, "have 2097153 bytes, and 2097152 is"),
    "too many steps": ({"hyperparameters": {"n_steps": 1001}}, 400, "hyperparameters.n_steps: Input should be less"),
    "too large a rank": ({"hyperparameters": {"rank": 65}}, 400, "hyperparameters.rank: Input should be less"),
    "epochs": ({"hyperparameters": {"n_epochs": 3}}, 400, "hyperparameters.n_epochs: is not known here"),
    "a file": ({"training_file": "file-abc"}, 400, "training_file: Input should be 'inline'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(server, folder, name):
    change, status, message = REFUSED[name]
    before = without_jobs(folder)
    body = {"model": "tiny", "suffix": "refused", "documents": [SENTENCE], **change}
    answer = server.http.post("/v1/fine_tuning/jobs", content=json.dumps(body), headers=JSON)
    assert (answer.status_code, message in answer.json()["error"]["message"]) == (status, True), answer.text
    assert without_jobs(folder) == before


def test_unknown_jobs_and_pages(server):
    jobs = server.client.fine_tuning.jobs
    for ask in (jobs.retrieve, jobs.cancel, jobs.list_events):
        with pytest.raises(openai.NotFoundError, match="there is no fine-tuning job 'ftjob-0'"):
            ask("ftjob-0")
    with pytest.raises(openai.NotFoundError, match="after: there is no 'ftjob-0' in this list"):
        jobs.list(after="ftjob-0")
    with pytest.raises(openai.BadRequestError, match="limit: Input should be greater than or equal to 1"):
        jobs.list(limit=0)


def test_the_next_server_knows_all_jobs_and_goes_on_with_what_was_trained(server, folder):
    job = create(server, "late")
    wait_until(lambda: steps_of(server, job))
    (child,) = psutil.Process(server.process.pid).children()
    server.process.terminate()
    assert server.process.wait(60) == 0
    assert not child.is_running()
    done = len(RunFolder(folder / "late").read_metrics())
    assert (folder / "late" / "checkpoints" / f"checkpoint-{done}").is_dir()
    with serving("--allow-training", folder) as again:
        assert (status_of(again, job) in ("queued", "running")) == (done < 1000)
        succeeded = [each.fine_tuned_model for each in again.client.fine_tuning.jobs.list(limit=100)]
        assert {model.id for model in again.client.models.list()} == {"tiny", *filter(None, succeeded)}
        wait_until(lambda: len(steps_of(again, job)) > done)
        assert [step["step"] for step in steps_of(again, job)][: done + 1] == list(range(1, done + 2))
        assert again.client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
        assert not (folder / "late").exists()
        assert not (folder / "late.jsonl").exists()


def test_a_folder_in_which_another_server_trains_is_refused(tmp_path):
    with (
        locked(tmp_path, ""),
        pytest.raises(LengthenError, match=r"adapters are trained in .* by another process; wait until it ends"),
    ):
        serve("tiny", {}, ServerSettings(port=0, allow_training=tmp_path))


def test_without_permission(run, tmp_path):
    apart = load_apart("tiny", "float32", None, CPU)
    engine = Engine(LoadedBase.of(apart), apart.tokenizer, Limits(cache_bytes=2**26, adapter_bytes=2**20))
    with TestClient(make_app(Service(engine, "tiny"))) as client:
        for answer in (
            client.post("/v1/fine_tuning/jobs", json={"model": "tiny", "suffix": "x", "documents": [SENTENCE]}),
            client.get("/v1/fine_tuning/jobs"),
        ):
            assert answer.status_code == 403
            assert "start the server with `allow_training`" in answer.json()["error"]["message"]
    cases = (
        ("tiny", tmp_path / "missing", "is no folder"),
        (str(run), tmp_path, "run folder with an adapter; .* export it"),
    )
    for model, folder, message in cases:
        with pytest.raises(LengthenError, match=message):
            serve(model, {}, ServerSettings(port=0, allow_training=folder))
