import json
from functools import partial

import numpy as np
import pytest

import command_line
from lengthen.errors import DataError, OutputError, RecipeError


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LENGTHEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "a.txt").write_text("The first document is short.\n")
    (folder / "b.py").write_text("def double(x):\n    return 2 * x\n" * 20)
    (folder / "c.jsonl").write_text('{"text": "a record"}\n{"no": "text"}\n')
    return folder


call = partial(command_line.invoke, "data")
done = partial(command_line.succeed, "data")


def test_help_lists_the_commands():
    result = done("--help")
    assert "tokenize" in result.output
    assert "inspect" in result.output


def test_tokenize_then_inspect(folder, tmp_path):
    out, report = tmp_path / "out.bin", tmp_path / "out.json"
    result = done("tokenize", folder, "--model", "tiny", "--out", out, "--json", report)
    written = json.loads(report.read_text())
    assert written["documents"] == 3
    assert written["tokens"] == out.stat().st_size // 2 == len(np.fromfile(out, dtype="<u2"))
    assert "3 documents" in result.stdout
    assert len(written["warnings"]) == 1
    assert "c.jsonl:2" in result.stderr
    assert "warning" not in result.stdout

    done("inspect", out, "--model", "tiny", "--quiet", "--json", report)
    inspected = json.loads(report.read_text())
    assert inspected["documents"] == 1
    assert inspected["tokens"] == written["tokens"]


def test_tokenize_overwrites_only_with_force(folder, tmp_path):
    out = tmp_path / "out.bin"
    out.write_bytes(b"old")
    result = call("tokenize", folder, "--model", "tiny", "--out", out)
    assert isinstance(result.exception, OutputError)
    assert "--force" in str(result.exception)
    assert out.read_bytes() == b"old"
    result = done("tokenize", folder, "--model", "tiny", "--out", out, "--force", "--quiet")
    assert result.stdout == ""
    assert out.read_bytes() != b"old"


def test_tokenize_wants_bin(folder, tmp_path):
    result = call("tokenize", folder, "--model", "tiny", "--out", tmp_path / "out.txt")
    assert result.exit_code == 2
    assert ".bin" in result.stderr


def test_inspect_with_packing(folder, tmp_path):
    report = tmp_path / "report.json"
    result = done("inspect", folder, "--model", "tiny", "--sequence-length", 64, "--context", 16, "--json", report)
    inspected = json.loads(report.read_text())
    assert inspected["chosen"] == {"documents": 3, "tokens": inspected["tokens"]}
    packing = inspected["packing"]
    assert packing["blocks"] * 64 >= packing["tokens"] > 0
    assert 0 < packing["positions_beyond"] < 1
    assert f"{packing['positions_beyond']:.1%}" in result.stdout
    assert sum(bucket["documents"] for bucket in inspected["histogram"]) == 3
    assert "#" in result.stdout

    arguments = ("--min-tokens", 50, "--sequence-length", 16, "--packing", "concatenate")
    result = done("inspect", folder, "--model", "tiny", *arguments, "--json", report)
    inspected = json.loads(report.read_text())
    assert inspected["chosen"]["documents"] == 1
    assert inspected["packing"]["kind"] == "concatenate"
    assert inspected["packing"]["fill"] == 1.0
    assert "in limits" in result.stdout


def test_inspect_refuses(folder):
    result = call("inspect", folder, "--model", "tiny", "--context", 16)
    assert result.exit_code == 2
    assert "--sequence-length" in result.stderr
    result = call("inspect", folder, "--model", "tiny", "--sequence-length", 16, "--packing", "both")
    assert isinstance(result.exception, DataError)
    result = call("inspect", folder / "none.txt", "--model", "tiny")
    assert isinstance(result.exception, DataError)


def test_inspect_of_a_recipe_with_a_mixture(tmp_path):
    """Shares, and sequences with their answers in brackets."""
    recipe, long, report = tmp_path / "mix.yaml", tmp_path / "long.txt", tmp_path / "out.json"
    recipe.write_text(
        "model: tiny\ncontext: {target: 1024, method: yarn}\nattention: {kind: full}\ntraining: {steps: 10}\n"
        f"data:\n  train:\n  - {{path: {long}, weight: 1}}\n  - {{kind: retrieval, weight: 3}}\n"
    )
    long.write_text("It goes on and on, and it never ends.\n" * 2000)
    shown = done("inspect", recipe, "training.steps=40", "--show", 1, "--json", report).stdout
    assert "25.0%  long       10 sequences, 1 document" in shown
    assert "75.0%  retrieval  30 sequences" in shown
    assert shown.count("-- sequence ") == 2
    assert "[[" in shown
    assert [each["sequences"] for each in json.loads(report.read_text())["sources"]] == [10, 30]
    with pytest.raises(RecipeError, match="are no mixture; name its documents themselves"):
        raise call("inspect", recipe, f"data.train={long}").exception
    for arguments in ((long,), (long, "--model", "tiny", "--show", 1)):
        assert call("inspect", *arguments).exit_code == 2
