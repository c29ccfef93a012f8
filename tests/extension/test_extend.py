"""The whole line on a tiny random model: its phases, stopped in each of them and gone on with, and its bad input."""

import json
import re
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from safetensors.torch import load_file
from transformers import LlamaConfig

import lengthen
from lengthen.data.token_store import TokenStore
from lengthen.data.tokens import load_tokens
from lengthen.errors import ContextError, DataError, Interrupted, LengthenError, ModelError, OutputError
from lengthen.evaluation.answers import ScoredAnswer
from lengthen.evaluation.compare import Probe, compare, find_pair
from lengthen.extension import PHASES, Extension, extend, plan_extension, questions, read_state
from lengthen.extension.draft import draft, learning_rate, wanted_steps, with_task
from lengthen.extension.look import choose_held_out
from lengthen.extension.questions import choose_questions, choose_task, documents_to_measure, haystack_of, make_asked
from lengthen.extension.request import ExtendRequest
from lengthen.files import write_text
from lengthen.models.load import load_tokenizer
from lengthen.recipe import load_recipe
from lengthen.run_folder import RunFolder
from lengthen.training.run import train

TARGET = 1024
STEPS = ("training.steps=3", "training.save_every=1", "training.dtype=float32")


class Killed(BaseException):
    """Stands for whatever stops a process: nothing catches it."""


def results(folder):
    """All that a run came to, without times and commands."""
    content = json.loads((folder / "evals" / "compare-0-extend.json").read_text())
    for key in ("command", "seconds", "model"):
        del content[key]
    return load_file(folder / "adapter" / "adapter_model.safetensors"), content


@pytest.fixture(scope="module")
def line(small, books, tmp_path_factory):
    """A finished extension, and the events of it."""
    events = []
    folder = tmp_path_factory.mktemp("line") / "run"
    run = extend(small, TARGET, books, out=folder, overrides=STEPS, on_event=events.append)
    return run, events


def test_each_phase_is_done_in_order_and_noted(line):
    run, events = line
    state = read_state(run.folder)
    assert tuple(state.seconds) == PHASES
    assert state.phase is None
    assert len(state.about) == 3
    told = [event.phase for event in events]
    assert told == sorted(told, key=PHASES.index)
    assert all(0 < event.done <= event.total and event.seconds_left >= 0 for event in events if not event.text)
    assert [event.done for event in events if event.unit == "steps"] == [1, 2, 3]
    assert all(event.loss > 0 for event in events if event.unit == "steps")
    assert not (run.folder / ".probe").exists()


def test_the_verdict_has_five_lines_and_says_what_comes_next(line):
    run, _ = line
    assert len(run.verdict.lines) == 5
    assert str(run.folder) in run.verdict.next[0]
    # A random model finds nothing, and is told so.
    assert not run.verdict.is_good
    assert "the base itself finds too little" in run.verdict.advice[0]
    assert Extension(run.folder).verdict == run.verdict


def test_the_report_and_the_export_are_written(line, tmp_path):
    run, _ = line
    assert run.report(tmp_path / "report.html").read_text().startswith("<!doctype html>")
    lengthen.load(str(run.export(tmp_path / "merged")))


def test_the_recipe_is_an_ordinary_one_that_train_reproduces(line, tmp_path):
    run, _ = line
    recipe = load_recipe(run.folder / "recipe.yaml", [f"out={tmp_path / 'again'}"])
    again = train(recipe)
    assert [each["loss"] for each in RunFolder(again).read_metrics()] == [
        each["loss"] for each in RunFolder(run.folder).read_metrics()
    ]


def test_numbers_are_those_of_a_comparison_of_the_finished_run(line):
    run, _ = line
    state, recipe = read_state(run.folder), load_recipe(run.folder / "recipe.yaml")
    pair = find_pair(str(run.folder), dtype="float32")
    store = documents_to_measure(state.request, recipe, pair.tokenizer, pair.config)
    haystack = haystack_of(store, pair.tokenizer)
    questions = state.plan.questions
    asked = make_asked(questions, store, haystack, pair.tokenizer, pair.base_context, TARGET)
    whole = compare(pair, asked.probes, asked.documents, scaled=questions.scaled, stride=asked.stride)
    kept = run.comparison
    for key in ("scores", "perplexity"):
        assert json.loads(json.dumps(whole[key])) == kept[key]
    assert kept["tasks"] == list(dict.fromkeys(row["task"] for row in kept["scores"]))
    assert kept["haystack"] == haystack.to_json()
    assert (kept["quantize"], kept["dtype"]) == (recipe.quantize, recipe.training.dtype)


def test_documents_that_are_measured_are_not_trained_on(line, books):
    run, _ = line
    recipe = load_recipe(run.folder / "recipe.yaml")
    assert recipe.data.held_out
    assert all(name.startswith(books) for name in recipe.data.held_out)
    sources = json.loads((run.folder / "run.json").read_text())["data"]["sources"]
    left = 8 - len(recipe.data.held_out)
    assert f"{left} documents" in next(each["about"] for each in sources if each["kind"] == "long")
    assert set(run.comparison["documents"]) <= set(recipe.data.held_out)


@pytest.mark.parametrize("phase", PHASES)
def test_stopped_in_any_phase_the_same_call_goes_on_to_the_same_end(phase, line, small, books, tmp_path):
    def stop(event):
        if event.phase == phase and (phase in ("plan", "report") or not event.text):
            raise Killed

    folder = tmp_path / "run"
    with pytest.raises(Killed):
        extend(small, TARGET, books, out=folder, overrides=STEPS, on_event=stop)
    assert read_state(folder) is None if phase == "plan" else read_state(folder).phase == phase
    again = extend(small, TARGET, books, out=folder, overrides=STEPS)
    (weights, content), (expected, expected_content) = results(again.folder), results(line[0].folder)
    assert weights.keys() == expected.keys()
    assert all(weights[name].equal(expected[name]) for name in weights)
    assert content == expected_content


def test_what_is_cancelled_goes_on(small, books, tmp_path, line):
    asked = []
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        extend(
            small, TARGET, books, out=folder, overrides=STEPS,
            on_event=lambda event: asked.append(event.unit == "steps"), stop=lambda: any(asked),
        )  # fmt: skip
    assert read_state(folder).phase == "train"
    assert len(RunFolder(folder).read_metrics()) == 2  # it is asked at the end of the next step
    assert results(extend(small, TARGET, books, out=folder, overrides=STEPS).folder)[1] == results(line[0].folder)[1]


@pytest.mark.parametrize(
    ("after", "asked", "said"),
    [
        ("looking", 1, "looking at base and data"),
        ("looking", 5, "looking at base and data"),  # of eight files
        ("taking two steps", 2, "taking two steps"),
        ("taking two steps", 3, "taking two steps"),
        ("taking two steps", 5, "looking at base and data"),  # the base, what it can do
    ],
)
def test_what_is_stopped_while_it_plans_goes_on(after, asked, said, small, books, tmp_path, monkeypatch):
    monkeypatch.setenv("LENGTHEN_CACHE", str(tmp_path / "cache"))
    lines, answers = [], []

    def stop():
        if any(line.startswith(after) for line in lines):
            answers.append(len(answers) + 1 >= asked)
        return bool(answers) and answers[-1]

    folder = tmp_path / "run"
    with pytest.raises(Interrupted, match=f"^stopped while {said}$"):
        plan_extension(
            small,
            TARGET,
            books,
            out=folder,
            overrides=STEPS,
            on_event=lambda event: lines.append(event.text),
            stop=stop,
        )
    assert len(answers) == asked, "it ends where it is asked"
    assert not any(line.startswith("asking about") for line in lines)
    assert not folder.exists()
    assert plan_extension(small, TARGET, books, out=folder, overrides=STEPS).steps == 3


def test_a_finished_one_is_not_begun_again(line, small, books):
    run, _ = line
    events = []
    assert extend(small, TARGET, books, out=run.folder, overrides=STEPS, on_event=events.append).verdict == run.verdict
    assert events == []


def test_a_plan_stops_before_anything_is_measured_and_goes_on(small, books, tmp_path):
    folder = tmp_path / "run"
    planned = plan_extension(small, TARGET, books, out=folder, overrides=STEPS)
    assert planned.is_measured
    assert planned.steps == 3
    assert read_state(folder).phase == "base"
    assert {path.name for path in folder.iterdir()} == {".lock", "extend.json", "recipe.yaml"}


def test_a_plan_for_another_device_writes_nothing(small, books, tmp_path):
    planned = plan_extension(small, TARGET, books, out=tmp_path / "run", device="h100-80gb")
    assert planned.device == "h100-80gb"
    assert not planned.is_measured
    assert not (tmp_path / "run").exists()


def refusal(*arguments, kind=LengthenError, **options):
    with pytest.raises(kind) as raised:
        extend(*arguments, **options)
    return str(raised.value)


def test_bad_input_is_refused_before_anything_is_written(small, books, tmp_path):
    out = tmp_path / "run"
    said = refusal(small, 512, books, out=out, kind=ContextError)
    assert "has a context of 512 tokens already" in said
    assert "no `data` was named" in refusal(small, TARGET, [], out=out)
    assert "does not exist" in refusal(small, TARGET, "/no/such/books", out=out, kind=DataError)
    assert "choose needle or lookup" in refusal(small, TARGET, books, out=out, task="passkey")
    assert "give more than 0" in refusal(small, TARGET, books, out=out, hours=0)
    assert "did you mean 'training.steps'" in refusal(small, TARGET, books, out=out, overrides=["training.step=3"])
    assert "does not exist" in refusal("./no/such/model", TARGET, books, out=out, kind=ModelError)
    assert not out.exists()


def test_data_without_a_long_document_are_refused(small, tmp_path):
    write_text(tmp_path / "short" / "a.txt", "Too short. " * 20)
    said = refusal(small, TARGET, str(tmp_path / "short"), out=tmp_path / "run", kind=DataError)
    assert "no document is longer than the base's context of 512 tokens: the longest has 221" in said
    assert "allow no target beyond 221" in said


def test_too_few_hours_say_how_many_are_needed(small, books, tmp_path):
    said = refusal(small, TARGET, books, out=tmp_path / "run", hours=1e-6)
    needed = re.search(
        r"too few for one step: .*; give at least (0\.\d\d) hours for 20 steps, (0\.\d\d) for the 90 that suffice", said
    )
    assert 0.01 <= float(needed[1]) <= float(needed[2]), said


def test_folders_of_others_are_refused(line, small, books, documents, tmp_path):
    run, _ = line
    said = refusal(small, 2 * TARGET, books, out=run.folder, overrides=STEPS, kind=OutputError)
    assert "to 1024, now 2048" in said
    write_text(tmp_path / "notes" / "a.txt", "mine")
    assert "has other content" in refusal(small, TARGET, books, out=tmp_path / "notes", kind=OutputError)
    write_text(tmp_path / "trained" / "recipe.yaml", "model: tiny")
    assert "the run of another command" in refusal(small, TARGET, books, out=tmp_path / "trained", kind=OutputError)
    with pytest.raises(ModelError, match="no finished extension"):
        Extension(tmp_path / "notes")


def test_a_damaged_state_is_named(small, books, tmp_path):
    write_text(tmp_path / "run" / "extend.json", "{")
    assert "extend.json is damaged" in refusal(small, TARGET, books, out=tmp_path / "run", kind=OutputError)


def test_held_out_documents_are_long_few_and_spread():
    store = TokenStore.of_stream(np.zeros(4000, dtype=np.uint32), np.arange(0, 4001, 100), [str(i) for i in range(40)])
    chosen = choose_held_out(store, 50)
    assert [int(name) for name in chosen] == [3, 10, 16, 23, 30, 36]
    assert choose_held_out(store.take([0]), 50) == ()


def test_more_hours_buy_more_questions():
    few, many = (choose_questions(256, 2048, hours, 16, lambda lengths: sum(lengths) / 1000) for hours in (0.05, 1))
    assert few.lengths == many.lengths == (256, 512, 1024, 2048)
    assert all(1 <= less < more for less, more in zip(few.trials, many.trials, strict=True))
    assert 1 <= few.documents < many.documents
    assert many.scaled
    assert few.sides * few.seconds <= 0.3 * 180
    assert many.sides * many.seconds <= 0.3 * 3600


@pytest.mark.parametrize(
    ("needle", "lookup", "chosen"),
    [
        (1.0, 1.0, "needle"),
        (0.65, 0.75, "needle"),  # SmolLM2-135M-Instruct at 1,024 tokens
        (0.65, 0.95, "lookup"),
        (0.3, 0.4, "lookup"),
        (0.0, 0.0, "needle"),
        (None, 0.2, "lookup"),
    ],
)
def test_a_base_is_asked_what_it_answers(monkeypatch, needle, lookup, chosen):
    shares = {"needle": needle, "lookup": lookup}

    def probe(*arguments):
        task = arguments[-1]
        if shares[task] is None:
            raise DataError("no room")
        answers = [ScoredAnswer((0.1,), (index < 20 * shares[task],), (1,)) for index in range(20)]
        return Probe(task, 256, answers)

    monkeypatch.setattr(questions, "needle_probe", probe)
    monkeypatch.setattr(questions, "ask", lambda _model, _tokenizer, prompts: [prompts])
    assert choose_task(None, None, None, 256) == chosen


def test_a_base_that_can_be_asked_nothing_is_refused(small, books):
    tokenizer = load_tokenizer(small)
    store, _ = load_tokens([books], tokenizer, len(tokenizer), None)
    with pytest.raises(DataError, match="context of 16 tokens has no room for a question"):
        choose_task(None, tokenizer, haystack_of(store, tokenizer), 16)


def test_questions_that_are_trained_on_go_with_those_that_are_asked(small, books):
    request = ExtendRequest(small, TARGET, (books,))
    recipe = draft(request, LlamaConfig())
    tasks = {task: with_task(recipe, task).data.beside[0].tasks for task in ("needle", "lookup")}
    assert tasks == {"needle": {}, "lookup": {"python": 1}}
    own = "data.beside=[{kind: retrieval, weight: 0.5, tasks: {lookup: 1}}]"
    recipe = draft(replace(request, overrides=(own,)), LlamaConfig())
    assert with_task(recipe, "lookup").data.beside[0].tasks == {"lookup": 1}
    inside = f"data.train=[{{path: {books}}}, {{kind: retrieval}}]"
    recipe = draft(replace(request, overrides=(inside, "data.beside=[]")), LlamaConfig())
    assert [source.tasks for source in with_task(recipe, "lookup").data.train] == [{}, {"python": 1}]


def test_wider_models_get_smaller_rates_and_more_steps():
    rates = [learning_rate(LlamaConfig(hidden_size=width)) for width in (128, 576, 2048, 4096, 8192, 1 << 15)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == rates[1] == 2e-3
    assert wanted_steps(rates[1]) == 90
    assert 600 < wanted_steps(rates[3]) < 700


STOP = """
import os, sys
from lengthen import cli
from lengthen.cli import extend as command

phase, number, *arguments = sys.argv[1:]
teller = command.teller

def stop(output):
    tell, sent = teller(output), []

    def told(event):
        tell(event)
        if event.phase == phase and (phase in ("plan", "report") or not event.text) and not sent:
            sent.append(number)
            os.kill(os.getpid(), int(number))

    return told

command.teller = stop
sys.argv = ["lengthen", *arguments]
cli.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("phase", PHASES)
def test_killed_or_interrupted_in_any_phase_the_same_command_goes_on(phase, number, line, small, books, tmp_path):
    folder = tmp_path / "run"
    command = ["extend", small, "--to", str(TARGET), "--data", books, "--out", str(folder), *STEPS]
    options = {"capture_output": True, "text": True, "timeout": 300}
    stopped = subprocess.run([sys.executable, "-c", STOP, phase, str(int(number)), *command], **options)
    if number == signal.SIGKILL:
        assert stopped.returncode == -number
    else:
        assert stopped.returncode == 128 + number, stopped.stderr
        assert re.fullmatch(r"lengthen: stopped.*; the same command goes on", stopped.stderr.splitlines()[-1])
        assert "Traceback" not in stopped.stderr
    done = subprocess.run([sys.executable, "-m", "lengthen.cli", *command], **options)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split("\n\n")[0].splitlines()) == 5
    (weights, content), (expected, expected_content) = results(folder), results(line[0].folder)
    assert all(weights[name].equal(expected[name]) for name in expected)
    assert content == expected_content
