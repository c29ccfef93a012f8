"""`lengthen extend` on the command line: what it prints and writes, and its exit codes."""

import json
from functools import partial

import pytest

import command_line
from lengthen.errors import LengthenError

run = partial(command_line.invoke, "extend")


def test_a_plan_for_another_device_is_printed_and_written(base, documents, tmp_path):
    done = command_line.succeed(
        "extend", base, "--to", 512, "--data", documents, "--out", tmp_path / "run", "--plan-only",
        "--device", "h100-80gb", "--json", tmp_path / "plan.json", "training.steps=7",
    )  # fmt: skip
    planned = json.loads((tmp_path / "plan.json").read_text())
    assert (planned["device"], planned["steps"], planned["is_measured"]) == ("h100-80gb", 7, False)
    said = done.stderr
    for line in (
        "base: ",
        "positions: ",
        "data: 5 documents",
        "method: yarn to 512 tokens",
        "training: 7 steps of 1,024",
    ):
        assert line in said
    assert "by the planner" in said
    assert not (tmp_path / "run").exists()


def test_a_device_without_plan_only_is_refused(base, documents):
    done = run(base, "--to", 512, "--data", documents, "--device", "cpu")
    assert done.exit_code == 2
    assert "--plan-only" in done.stderr


@pytest.mark.parametrize("option", ["--to", "--data"])
def test_what_can_not_be_guessed_has_to_be_given(base, documents, option):
    given = {"--to": 512, "--data": documents}
    del given[option]
    done = run(base, *(part for pair in given.items() for part in pair))
    assert done.exit_code == 2
    assert option in done.stderr


def test_errors_name_flags(base, documents, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "recipe.yaml").write_text("model: tiny\n")
    done = run(base, "--to", 512, "--data", documents, "--out", tmp_path / "mine")
    assert isinstance(done.exception, LengthenError)  # which `main` prints, with exit code 2
    assert "choose another --out" in str(done.exception)
