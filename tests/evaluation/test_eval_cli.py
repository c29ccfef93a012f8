"""``lengthen eval perplexity`` on the shipped base."""

import json
import re
import shutil
from functools import partial

import numpy as np
import pytest

import command_line
import lengthen
from lengthen.data.stdlib import stdlib_documents
from lengthen.errors import LengthenError
from lengthen.evaluation import perplexity

RESULT_KEYS = [
    *("context", "stride", "perplexity", "loss", "tokens", "windows", "seconds", "tokens_per_second", "chunk"),
    *("by_position", "per_document", "interval", "gain", "bos_token_id"),
]


invoke = partial(command_line.invoke, "eval", "perplexity")
succeed = partial(command_line.succeed, "eval", "perplexity")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LENGTHEN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def tiny():
    return lengthen.load("tiny")


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """A long document and a short one."""
    folder = tmp_path_factory.mktemp("books")
    source = max(stdlib_documents("validation"), key=lambda path: path.stat().st_size)
    (folder / "long.txt").write_text(source.read_text(encoding="utf-8")[:12_000], encoding="utf-8")
    (folder / "short.txt").write_text("import os\n", encoding="utf-8")
    return folder


def test_writes_the_contract_s_json_and_prints_tables(tiny, book, tmp_path):
    model, tokenizer = tiny
    out = tmp_path / "results" / "perplexity.json"
    ran = succeed(
        *("tiny", "--data", book, "--context", "256,64", "--max-tokens", 600, "--min-tokens", 50),
        *("--dtype", "float32", "--batch-size", 4, "--json", out, "--quiet"),
    )
    content = json.loads(out.read_text(encoding="utf-8"))
    assert set(content) >= {"model", "data", "protocol", "dtype", "documents", "results", "versions"}
    assert content["model"] == "tiny"
    assert content["data"] == [str(book)]
    assert content["protocol"] == "strided"
    assert content["dtype"] == "float32"
    assert len(content["documents"]) == 1, "the short document is skipped"
    assert set(content["versions"]) == {"torch", "transformers", "peft", "lengthen", "python"}
    assert [result["context"] for result in content["results"]] == [256, 64], "in the order asked for"
    ids = tokenizer((book / "long.txt").read_text(encoding="utf-8"), verbose=False)["input_ids"][:600]
    for result in content["results"]:
        assert sorted(result) == sorted(RESULT_KEYS)
        assert result["tokens"] == 599
        assert result["loss"] == pytest.approx(perplexity(model.float(), ids, result["context"]).loss, abs=1e-4)
        assert f"{result['perplexity']:.3f}" in ran.stdout
        assert f"{result['interval']['low']:.4g} to {result['interval']['high']:.4g}" in ran.stdout
        assert result["tokens_per_second"] > 0
        assert result["gain"] is None
    assert content["results"][0]["perplexity"] < 100, "the shipped base knows Python"


def test_a_token_file_a_published_protocol_and_positions(tiny, book, tmp_path):
    _, tokenizer = tiny
    ids = tokenizer((book / "long.txt").read_text(encoding="utf-8"), verbose=False)["input_ids"][:400]
    data = tmp_path / "tokens.bin"
    np.array(ids, dtype="<u2" if len(tokenizer) <= 65536 else "<u4").tofile(data)
    out = tmp_path / "out.json"
    ran = succeed("tiny", "--data", data, "--context", 64, "--protocol", "longqlora", "--bucket", 32, "--json", out)
    result = json.loads(out.read_text(encoding="utf-8"))["results"][0]
    assert result["windows"] == len(range(0, len(ids) - 64, 64)) - 1
    assert [(entry["from"], entry["to"]) for entry in result["by_position"]] == [(0, 32), (32, 64)]
    assert "by position in the window" in ran.stdout
    assert "wrote" not in ran.stdout, "results on standard output, the rest on standard error"


@pytest.mark.parametrize("protocol", ["strided", "longlora", "longqlora"])
def test_a_written_token_file_measures_as_its_text(tiny, book, tmp_path, protocol):
    """The published .bin files are flat rows of uint16 ids; `data tokenize` writes the same."""
    data = tmp_path / "tokens.bin"
    command_line.succeed("data", "tokenize", book / "long.txt", "--model", "tiny", "--out", data)
    _, tokenizer = tiny
    ids = tokenizer((book / "long.txt").read_text(encoding="utf-8"), verbose=False)["input_ids"]
    assert np.fromfile(data, "<u2").tolist() == ids, "no header, two bytes a token"
    results = []
    for source in (book / "long.txt", data):
        out = tmp_path / "out.json"
        succeed(
            *("tiny", "--data", source, "--context", 128, "--protocol", protocol, "--max-tokens", 1000),
            *("--batch-size", 4, "--dtype", "float32", "--json", out, "--quiet"),
        )
        result = json.loads(out.read_text(encoding="utf-8"))["results"][0]
        results.append({key: value for key, value in result.items() if "second" not in key})
    assert results[0] == results[1]


def test_a_published_token_file_of_a_llama_vocabulary(make_base, tmp_path):
    """32,000 ids take two bytes each, also where the tokenizer beside the model knows fewer."""
    base = make_base("wide", vocab_size=32_000)
    ids = np.random.default_rng(0).integers(0, 32_000, 300)
    ids[7] = 31_999
    ids.astype("<u2").tofile(tmp_path / "test.bin")
    out = tmp_path / "out.json"
    succeed(
        *(base, "--data", tmp_path / "test.bin", "--context", 32, "--protocol", "longlora", "--dtype", "float32"),
        *("--json", out, "--quiet"),
    )
    result = json.loads(out.read_text(encoding="utf-8"))["results"][0]
    expected = perplexity(lengthen.load(base, "float32")[0], ids, 32, protocol="longlora")
    assert result["windows"] == 1
    assert result["loss"] == pytest.approx(expected.loss, abs=1e-6)


def test_chunks_and_the_gain_over_a_short_context(book, tmp_path):
    results = []
    for chunk in ([], ["--chunk", 100]):
        out = tmp_path / "out.json"
        ran = succeed(
            *("tiny", "--data", book, "--context", 256, "--max-tokens", 600, "--min-tokens", 50, "--dtype", "float32"),
            *("--short-context", 32, "--json", out, *chunk),
        )
        results.append(json.loads(out.read_text(encoding="utf-8"))["results"][0])
    whole, chunked = results
    assert (whole["chunk"], chunked["chunk"]) == (256, 100)
    assert chunked["loss"] == pytest.approx(whole["loss"], abs=1e-4)
    assert chunked["gain"]["gain"] == pytest.approx(whole["gain"]["gain"], abs=1e-4)
    assert "Gain over a short context" in ran.stdout
    assert f"{chunked['gain']['gain']:.3f}" in ran.stdout


def test_tables_fit_a_terminal_of_80_columns(book):
    """rich would cut the columns' heads."""
    arguments = ("tiny", "--data", book, "--context", 256, "--max-tokens", 300, "--short-context", 32)
    ran = succeed(*arguments, columns=80)
    assert "tokens/s" in ran.stdout
    assert "\u2026" not in ran.stdout


def test_positions_can_be_scaled_untrained(book, tmp_path):
    losses = []
    for method in (["--beyond"], ["--method", "yarn", "--target", 1024]):
        out = tmp_path / "out.json"
        succeed("tiny", "--data", book, "--context", 1024, "--min-tokens", 1025, "--json", out, "--quiet", *method)
        losses.append(json.loads(out.read_text(encoding="utf-8"))["results"][0]["loss"])
    assert losses[1] < losses[0]


def test_a_run_folder_keeps_its_results(run, documents, tmp_path):
    mine = shutil.copytree(run, tmp_path / "my-run")
    ran = succeed(mine, "--data", documents, "--context", 64, "--max-tokens", 100, "--quiet")
    (written,) = (mine / "evals").glob("perplexity-*")
    assert re.fullmatch(r"perplexity-strided-\d{8}-\d{6}\.json", written.name)
    content = json.loads(written.read_text(encoding="utf-8"))
    assert content["results"][0]["context"] == 64
    assert content["model"] == "my-run"
    assert written.name in ran.stderr


@pytest.mark.parametrize("context", ["", "2048,", "2k", "1", "64,-8", "64;128"])
def test_a_bad_context_is_refused_before_anything_is_loaded(context):
    ran = invoke("no-such-model", "--data", "nothing.txt", f"--context={context}")
    assert ran.exit_code == 2
    assert "--context" in ran.stderr


def test_a_stride_beyond_the_shortest_context_is_refused():
    ran = invoke("no-such-model", "--data", "nothing.txt", "--context", "64,128", "--stride", 65)
    assert ran.exit_code == 2
    assert "--stride" in ran.stderr


def test_a_short_context_that_is_not_shorter_is_refused():
    ran = invoke("no-such-model", "--data", "nothing.txt", "--context", "64,128", "--short-context", 64)
    assert ran.exit_code == 2
    assert "--short-context" in ran.stderr


def test_a_method_without_a_target_is_refused():
    ran = invoke("no-such-model", "--data", "nothing.txt", "--context", 64, "--method", "yarn")
    assert ran.exit_code == 2
    assert "--target" in ran.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--min-tokens", 10**6], "--min-tokens"),
        (["--protocol", "longlora", "--max-tokens", 100], "no window"),
        (["--protocol", "sliding"], "sliding"),
    ],
)
def test_what_can_not_be_measured_is_the_user_s_error(book, arguments, message):
    ran = invoke("tiny", "--data", book, "--context", 64, *arguments)
    assert isinstance(ran.exception, LengthenError)
    assert message in str(ran.exception)


def test_a_context_beyond_the_model_s_is_refused_or_warned_about_once(book, tmp_path):
    with pytest.raises(LengthenError, match=r"1024 tokens are beyond the 256 .* --beyond"):
        invoke("tiny", "--data", book, "--context", "1024,512", catch_exceptions=False)
    out = tmp_path / "out.json"
    ran = succeed("tiny", "--data", book, "--context", "1024,512", "--beyond", "--json", out, "--quiet")
    assert ran.stderr.count("warning:") == 1
