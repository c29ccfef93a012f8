"""Pairs from an endpoint: a server process that speaks the protocol and does what the name of the model says."""

import inspect
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from command_line import invoke, succeed
from lengthen.data.documents import Document, read_documents
from lengthen.data.endpoint import Endpoint
from lengthen.data.instruct.formats import take_example
from lengthen.data.passages import passages_of
from lengthen.data.qa import KINDS, make_pairs
from lengthen.errors import DataError, LengthenError

TEXTS = {module.__name__: inspect.getsource(module) for module in (textwrap, inspect, subprocess)}


@pytest.fixture
def start_server():
    """A function that starts a server and returns its process and URL."""
    started = []

    def start():
        command = [sys.executable, str(Path(__file__).with_name("openai_server.py"))]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process, f"http://127.0.0.1:{process.stdout.readline().strip()}"

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def url(start_server):
    return start_server()[1]


@pytest.fixture
def documents():
    return [Document(f"{name}.py", text) for name, text in TEXTS.items()]


def records(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@given(st.text(alphabet="ab \n", max_size=300), st.integers(1, 80))
def test_passages_are_the_text_in_parts_of_at_most_the_size(text, size):
    spans = passages_of(text, size)
    assert "".join(text[start:stop] for start, stop in spans) == text
    assert all(0 < stop - start <= size for start, stop in spans)


def test_passages_end_at_paragraphs_and_are_of_about_one_length():
    text = "\n\n".join(f"Paragraph {number} " + "with words " * (number % 7) for number in range(200))
    spans = passages_of(text, 1000)
    assert all(text[stop - 2 : stop] == "\n\n" for _, stop in spans[:-1])
    assert min(stop - start for start, stop in spans) > 400


def test_a_pair_of_each_kind_about_each_passage_with_its_span(documents, url, tmp_path):
    out = tmp_path / "new" / "pairs.jsonl"
    made = make_pairs(documents, Endpoint(url, "canned:good,chatty"), out, passage_chars=20_000, max_passages=2)
    texts = {document.name: document.text for document in documents}
    written = records(out)
    assert made == {"passages": 5, "pairs": 25, "before": 0, "kinds": dict.fromkeys(KINDS, 5), "missing": {}}
    assert len({record["id"] for record in written}) == len(written) == 25
    for record in written:
        source = record["source"]
        assert texts[source["document"]][source["start"] : source["stop"]] == record["input"]
        assert record["input"].split()[0] in record["instruction"]
        assert "Answer" not in record["output"]
        assert "think" not in record["instruction"]
        # What trains on it finds the passage as the document.
        example = take_example(record)
        turn, start, stop = example.document
        assert example.turns[turn].text[start:stop] == record["input"].strip()
        assert example.turns[-1].text == record["output"]
    short = [len(record["input"]) for record in written if record["kind"] == "short"]
    assert max(short) <= 2000 < min(len(record["input"]) for record in written if record["kind"] == "summary")


def test_the_same_call_goes_on_after_the_server_died(documents, start_server, tmp_path):
    out = tmp_path / "pairs.jsonl"
    _, url = start_server()
    with pytest.raises(LengthenError, match=r"does not answer.* 7 pairs are in .*pairs.jsonl") as raised:
        make_pairs(documents, Endpoint(url, "canned:" + "good," * 7 + "die"), out, parallel=1)
    assert "running" in str(raised.value)
    kept = out.read_bytes()
    assert kept.count(b"\n") == 7

    # As after a power cut in the middle of a line.
    out.write_bytes(kept + b'{"instruction": "What')
    _, url = start_server()
    made = make_pairs(documents, Endpoint(url, "canned:good"), out)
    assert out.read_bytes().startswith(kept)
    assert made["before"] == 7
    assert made["pairs"] == len(records(out)) == made["passages"] * len(KINDS)
    whole = out.read_bytes()

    # Nothing is missing any more, so nobody is asked.
    made = make_pairs(documents, Endpoint("http://127.0.0.1:1", "canned:good"), out)
    assert made["before"] == made["pairs"] == len(records(out))
    assert out.read_bytes() == whole


def test_what_is_unusable_is_asked_for_again(documents, url, tmp_path):
    out = tmp_path / "pairs.jsonl"
    made = make_pairs(documents[:1], Endpoint(url, "canned:nonsense,cut,good,echo,good"), out, parallel=1)
    assert made["missing"] == {}
    assert made["pairs"] == len(records(out)) > 0
    assert "the question" not in {record["instruction"].strip("()") for record in records(out)}
    assert not any("And then" in record["output"] or "2 * x" in record["output"] for record in records(out))


def test_repeated_pairs_are_written_once(documents, url, tmp_path):
    out = tmp_path / "pairs.jsonl"
    made = make_pairs(documents[:1], Endpoint(url, "canned:same"), out, passage_chars=20_000, parallel=1)
    assert made["passages"] == 1
    assert len(records(out)) == made["pairs"] == 1
    assert made["missing"] == {"repeats an earlier pair": len(KINDS) - 1}
    # The same document under another name is the same passages.
    twice = [*documents[:1], Document("copy.py", documents[0].text)]
    made = make_pairs(twice, Endpoint(url, "canned:good"), out, passage_chars=20_000)
    assert made["passages"] == 1
    assert made["pairs"] == len(records(out)) == len(KINDS)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("canned:good,good,html", "protocol but with <html>It works!"),
        ("canned:good,good,nonsense,nonsense,nonsense," + "tool,empty,empty," * 40, "no usable pair 10 times"),
        ("unknown", "404.*there is no unknown"),
        ("closed", "401.*no key, no reply"),
    ],
)
def test_an_endpoint_that_fails_is_named_and_what_was_made_is_kept(model, said, documents, url, tmp_path):
    out = tmp_path / "pairs.jsonl"
    with pytest.raises(LengthenError, match=said) as raised:
        make_pairs(documents, Endpoint(url, model), out, passage_chars=4000, parallel=1)
    made = 2 if "good" in model else 0
    assert (len(records(out)) if out.exists() else 0) == made
    assert f"{made} pairs are in {out}" in str(raised.value)


def test_a_busy_server_is_asked_again(url, tmp_path):
    assert "goes on after" in Endpoint(f"{url}/v1/", "canned:busy,good").ask("The passage begins.\nHow", 9, 0.5).text


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://there/v1", "http://", "http:///v1", "http://a b/v1"])
def test_what_is_no_url_is_refused(url):
    with pytest.raises(LengthenError, match="is no URL"):
        Endpoint(url, "any")


def test_other_files_are_refused_and_untouched(documents, url, tmp_path):
    out = tmp_path / "pairs.jsonl"
    for content in ('{"instruction": "a", "output": "b"}\n', "text\n", "[]\n"):
        out.write_text(content)
        with pytest.raises(DataError, match=r"pairs.jsonl:1 is no pair"):
            make_pairs(documents, Endpoint(url, "canned:good"), out)
        assert out.read_text() == content
    with pytest.raises(DataError, match="none of the 1 documents has 200 characters"):
        make_pairs([Document("a.txt", "short")], Endpoint(url, "canned:good"), tmp_path / "new.jsonl")
    with pytest.raises(DataError, match="'long' is not one of summary"):
        make_pairs(documents, Endpoint(url, "canned:good"), tmp_path / "new.jsonl", kinds=["long"])
    assert not (tmp_path / "new.jsonl").exists()


def test_command(start_server, tmp_path, monkeypatch):
    _, url = start_server()
    source, out, report = tmp_path / "source.py", tmp_path / "pairs.jsonl", tmp_path / "report.json"
    source.write_text(TEXTS["textwrap"])
    call = ["data", "qa", source, "--endpoint", url, "--model", "closed:good", "--out", out, "--kinds", "detail,short"]
    result = invoke(*call, "--key-variable", "TEST_KEY")
    assert "TEST_KEY is not set" in str(result.exception)
    monkeypatch.setenv("TEST_KEY", "open sesame")
    result = succeed(*call, "--key-variable", "TEST_KEY", "--json", report)
    written = json.loads(report.read_text())
    assert written["pairs"] == len(records(out)) == 2 * written["passages"]
    assert written["kinds"] == {"detail": written["passages"], "short": written["passages"]}
    assert f"{written['pairs']} pairs about" in result.stdout
    assert "open sesame" not in report.read_text() + out.read_text() + result.output
    assert read_documents([source])[0][0].name == records(out)[0]["source"]["document"]

    result = invoke(*call[:-3], tmp_path / "pairs.txt")
    assert result.exit_code == 2
    assert ".jsonl" in result.stderr
