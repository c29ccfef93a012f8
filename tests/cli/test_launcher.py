"""Commands in several processes: what they share, what one process says for all, and what is refused."""

import json
import os
import re
import subprocess
import sys

import pytest

from lengthen.cli._launcher import check_processes
from lengthen.errors import LengthenError
from lengthen.files import write_json

TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]


@pytest.fixture
def run(tmp_path):
    """A function that runs a command in one or in two processes."""

    def start(*command, processes=2):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "LENGTHEN_CACHE": str(tmp_path / "cache")}
        launch = TORCHRUN if processes == 2 else []
        return subprocess.run(
            [sys.executable, *launch, "-m", "lengthen.cli", *map(str, command)],
            env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    return start


@pytest.mark.slow
def test_evaluation_over_shards_equals_one_process(run, make_base, documents, tmp_path):
    base = make_base("wide", max_position_embeddings=512)
    found = {}
    for processes in (1, 2):
        file = tmp_path / f"{processes}.json"
        done = run("eval", "perplexity", base, "--data", documents, "--context", "33,128", "--json", file,
                   processes=processes)  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Perplexity (strided)") == 1
        found[processes] = json.loads(file.read_text())
    assert [found[count]["processes"] for count in (1, 2)] == [1, 2]
    for one, two in zip(found[1]["results"], found[2]["results"], strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-6)
        assert two["tokens"] == one["tokens"]
        assert two["interval"]["low"] == pytest.approx(one["interval"]["low"], rel=1e-6)


@pytest.mark.slow
def test_retrieval_over_shards_equals_one_process(run, tmp_path):
    cells = []
    for processes in (1, 2):
        file = tmp_path / f"{processes}.json"
        done = run("eval", "needle", "tiny", "--lengths", "256", "--depths", "0,0.5,1", "--trials", "2", "--dtype",
                   "float32", "--json", file, processes=processes)  # fmt: skip
        assert done.returncode == 0, done.stderr
        cells.append(json.loads(file.read_text())["results"])
    for one, two in zip(*cells, strict=True):
        assert (two["exact"], two["correct"]) == (one["exact"], one["correct"])
        assert two["nats"] == pytest.approx(one["nats"], rel=1e-4)


CONTENT = {
    "context": {"target": 128, "method": "yarn"}, "training": {"steps": 1}, "attention": {"group_size": 32},
    "parallel": {"sequence": 2},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"parallel": {"sequence": 3}}, "parallel.sequence=3 wants a multiple of 3 processes, and there are 2"),
        (
            {"attention": {"group_size": 96}},
            "sequence of 128 tokens has 1 whole groups of 96; each process needs one",
        ),
        ({"attention": {"kind": "full"}}, "3 query and 3 key/value heads can't be shared out evenly"),
    ],
    ids=["processes", "groups", "heads"],
)
def test_what_can_not_be_shared_is_one_line(run, make_base, tmp_path, changes, what):
    """Before the data is looked at, which is not there."""
    base = make_base("odd", num_attention_heads=3, num_key_value_heads=3, hidden_size=48)
    content = CONTENT | {"model": str(base), "out": str(tmp_path / "run"), "data": {"train": ["nothing.txt"]}}
    write_json(tmp_path / "recipe.yaml", content | changes)
    done = run("train", tmp_path / "recipe.yaml")
    said = [line for line in done.stderr.splitlines() if line.startswith("lengthen:")]
    assert len(said) == 1, done.stderr
    assert what in said[0]
    assert re.search(r"exitcode\s*:\s*2", done.stderr)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["eval", "ruler", "tiny"], "eval ruler"), (["extend", "tiny"], "extend"), (["chat"], "chat")],
)
def test_commands_of_one_process(monkeypatch, arguments, named):
    check_processes(arguments)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(LengthenError, match=f"{named} runs in one process, and WORLD_SIZE says that there are 2"):
        check_processes(arguments)
    for allowed in (["train", "x"], ["eval", "needle", "x"], [*arguments, "--help"], []):
        check_processes(allowed)
