"""What `lengthen doctor --data` says of data: format by source, what is taken, what is left out and why."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lengthen.data.instruct.templates import use_template
from lengthen.doctor.data import examine_data
from lengthen.models.load import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    loaded = load_tokenizer("tiny")
    use_template(loaded, "vicuna")
    return loaded


def said(tokenizer, *sources):
    findings = examine_data(sources, tokenizer)
    return [f"{'!' if finding.is_problem else ' '} {finding.text}" for finding in findings]


def test_each_kind_of_source(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("A book.")
    assert said(tokenizer, tmp_path / "a.txt") == ["  1 document (1 .txt), 7 characters"]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "one"}\n{"text": "two"}\n{"body": "x"}\n{'))
    lines = said(tokenizer, tmp_path / "a.jsonl.gz")
    assert lines[0] == "  2 documents"
    assert lines[1].startswith("! left out 2 of 4 lines; the first, ")
    assert ".jsonl.gz:3, has none of" in lines[1]
    assert lines[1].endswith(".jsonl.gz:4 is not JSON (Expecting property name enclosed in double quotes, column 2)")
    np.arange(10, dtype="<u2").tofile(tmp_path / "a.bin")
    assert said(tokenizer, tmp_path / "a.bin") == ["  a token file of 10 uint16 ids, all in the vocabulary"]
    pq.write_table(pa.table({"body": ["one", "two"]}), tmp_path / "a.parquet")
    assert said(tokenizer, f"{tmp_path}/a.parquet?body")[0].startswith("  2 documents")
    assert "by name" in said(tokenizer, "hf:owner/name")[0]
    (missing,) = said(tokenizer, tmp_path / "none.txt")
    assert missing.startswith("! ")
    assert "does not exist" in missing


def test_conversations(tokenizer, tmp_path):
    asked, told = {"role": "user", "content": "Q"}, {"role": "assistant", "content": f"A {tokenizer.eos_token}"}
    records = [
        {"messages": [asked, told], "id": 1},
        {"messages": [asked, told], "conversations": None, "id": 2},
        {"instruction": "Q", "input": "", "output": "A"},
        {"messages": [asked]},
        {"messages": [asked, {"role": "tool", "content": "42"}, told]},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    lines = said(tokenizer, path)
    assert lines[:2] == ["  2 conversations of messages", "  1 conversation of instruction, output"]
    assert "left out 2 of 5 lines" in lines[2]
    assert lines[3] == "! not read: id (2 records)"
    assert "written in it, read as plain text" in lines[4]
    bare = load_tokenizer("tiny")
    bare.chat_template = None
    assert any("need a template" in line for line in said(bare, path))


def test_a_folder(tokenizer, tmp_path):
    for name in ("a.txt", "b/c.md", "d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    lines = said(tokenizer, tmp_path)
    assert lines == ["  2 documents (1 .txt, 1 .md), 8 characters", "! files of other kinds left out: 1 (1 .png)"]
    (tmp_path / "e.jsonl").write_text('{"question": "Q", "answer": "A"}\n')
    assert "  1 conversation of question, answer" in said(tokenizer, tmp_path)
