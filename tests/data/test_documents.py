import bz2
import gzip
import json
import lzma
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from lengthen.data.documents import SUPPORTED, Document, read_documents
from lengthen.errors import DataError


def refused(path, *words):
    """Reading `path` is refused in one line that has all of the words."""
    with pytest.raises(DataError) as caught:
        read_documents([path])
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


def test_text_files_are_taken_as_they_are(tmp_path):
    for suffix in (".txt", ".md", ".py", ".TXT"):
        path = tmp_path / f"a{suffix}"
        path.write_bytes("one\r\ntwo\rthr\u00e9e\n\n".encode())
        documents, warnings = read_documents([path])
        assert documents == [Document(str(path), "one\r\ntwo\rthr\u00e9e\n\n")]
        assert warnings == []


def test_byte_order_mark_goes(tmp_path):
    for name, content in (("a.txt", "text"), ("a.jsonl", '{"text": "text"}\n'), ("a.json", '["text"]')):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content.encode())
        assert [document.text for document in read_documents([tmp_path / name])[0]] == ["text"]


def test_folder_is_read_recursively_sorted_and_without_the_rest(tmp_path):
    for name in ("b.txt", "a/z.md", "a/b/c.py", ".hidden.txt", ".git/x.txt", "image.png", "data.bin", "a.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    documents, warnings = read_documents([str(tmp_path)])
    assert [document.text for document in documents] == ["a/b/c.py", "a/z.md", "a.txt", "b.txt"]
    assert [document.name for document in documents][2] == str(tmp_path / "a.txt")
    assert warnings == [f"{tmp_path}: files of other kinds left out: 2 (1 .bin, 1 .png)"]


def test_empty_files_in_a_folder_are_one_warning(tmp_path):
    (tmp_path / "__init__.py").write_text("")
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "c.py").write_text("pass")
    documents, warnings = read_documents([tmp_path])
    assert [document.text for document in documents] == ["pass"]
    assert len(warnings) == 1
    assert "__init__.py" in warnings[0]
    assert ": 2," in warnings[0]


def test_order_is_as_named(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    documents, _ = read_documents([tmp_path / "b.txt", tmp_path / "a.txt"])
    assert [document.text for document in documents] == ["b.txt", "a.txt"]


def test_json_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    # U+2028 ends a line for str.splitlines, and not for JSON.
    lines = [json.dumps({"text": "one\u2028more", "id": 1}, ensure_ascii=False), '"two"', "", '{"text": "three"}\r']
    path.write_bytes("\n".join(lines).encode())
    documents, warnings = read_documents([path])
    assert documents == [
        Document(f"{path}:1", "one\u2028more"),
        Document(f"{path}:2", "two"),
        Document(f"{path}:4", "three"),
    ]
    assert warnings == []


@pytest.mark.parametrize(
    "broken",
    ["{not json", '{"body": "x"}', '{"text": 3}', "7", '{"text": " "}', "[" * 100_000, "1" * 10_000, '"\\ud800"'],
)
def test_broken_json_lines_are_one_warning(tmp_path, broken):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(['"first"', broken, '"third"', broken]))
    documents, warnings = read_documents([path])
    assert [document.text for document in documents] == ["first", "third"]
    assert len(warnings) == 1
    assert "2 of 4" in warnings[0]
    assert f"{path}:2" in warnings[0]
    assert "\n" not in warnings[0]

    path.write_text(f"\n{broken}\n{broken}\n")
    refused(path, f"{path}:2")


def test_json_list_and_object(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('["one",\n {"text": "two"}, {"no": 1}]')
    documents, warnings = read_documents([path])
    assert documents == [Document(f"{path}[0]", "one"), Document(f"{path}[1]", "two")]
    assert len(warnings) == 1
    assert f"{path}[2]" in warnings[0]
    path.write_text('{"text": "alone"}')
    assert read_documents([path]) == ([Document(str(path), "alone")], [])


@pytest.mark.parametrize("content", ['["a", ', '{"text": 1}', "12", '[{"a": 1}, 3]', '{"instruction": "x"}'])
def test_json_without_documents_is_refused(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_text(content)
    refused(path, str(path))


def test_nothing_named():
    with pytest.raises(DataError, match="no documents were named"):
        read_documents([])


def test_missing_path(tmp_path):
    refused(tmp_path / "none.txt", "none.txt", "does not exist")


@pytest.mark.parametrize("name", ["a.doc", "a.bin", "noextension"])
def test_other_extension_names_the_supported_ones(tmp_path, name):
    (tmp_path / name).write_text("x")
    refused(tmp_path / name, name, *SUPPORTED)


@pytest.mark.parametrize(("name", "content"), [("a.txt", ""), ("a.md", " \n\t"), ("a.jsonl", "\n \n"), ("a.json", "")])
def test_empty_file(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    refused(tmp_path / name, name, "empty")


def test_empty_json_list(tmp_path):
    (tmp_path / "a.json").write_text("[]")
    refused(tmp_path / "a.json", "empty")


def test_binary_file(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"abc\0def")
    refused(tmp_path / "a.txt", "binary", "offset 3")


def test_other_encodings(tmp_path):
    (tmp_path / "a.txt").write_bytes("caf\u00e9".encode("latin-1"))
    refused(tmp_path / "a.txt", "not UTF-8", "offset 3", "0xe9", "convert")
    (tmp_path / "b.txt").write_text("text", encoding="utf-16")
    refused(tmp_path / "b.txt", "UTF-16", "convert")


def test_folder_without_documents(tmp_path):
    refused(tmp_path, "no documents")
    (tmp_path / "a.png").write_bytes(b"\0")
    (tmp_path / "empty.txt").write_text("")
    refused(tmp_path, "no documents")


def test_unreadable_file(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("x")

    def deny(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", deny)  # chmod does not stop root
    refused(tmp_path / "a.txt", "can't read", "Permission denied", "check its permissions")


def test_modules_are_light():
    code = """
import sys
import lengthen.data, lengthen.data.documents, lengthen.data.stdlib, lengthen.data.tokens, lengthen.data.packing
import lengthen.cli.data
assert not {"torch", "transformers", "datasets"} & set(sys.modules), "heavy import"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def parquet(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


def test_parquet_rows_are_documents(tmp_path):
    texts = [f"text {i}" for i in range(200)]
    path = parquet(tmp_path / "a.parquet", id=list(range(200)), text=texts)
    documents, warnings = read_documents([path])
    assert [document.text for document in documents] == texts
    assert documents[3].name == f"{path}[3]"
    assert warnings == []
    assert read_documents([tmp_path])[0] == documents


def test_parquet_that_can_not_be_used(tmp_path):
    path = tmp_path / "a.parquet"
    documents, warnings = read_documents([parquet(path, text=["", "one", None])])
    assert [document.text for document in documents] == ["one"]
    assert "left out 2 of 3 rows" in warnings[0]
    assert f"{path}[0]" in warnings[0]
    refused(parquet(path, body=["one"]), 'no column "text"', "body")
    refused(parquet(path, text=[1.5]), "no usable rows", "has float")
    refused(parquet(path, text=pa.array([], pa.string())), "is empty")
    path.write_bytes(b"PAR1 and no more")
    refused(path, "can't read", "Parquet")


def test_limit_takes_the_first_documents_of_each_path(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for name in ("1.txt", "2.txt", "3.txt"):
            (tmp_path / folder / name).write_text(folder + name)
    (tmp_path / "c.jsonl").write_text('"one"\n"two"\n"three"\n')
    path = parquet(tmp_path / "d.parquet", text=["one", "two", "three"])
    documents, _ = read_documents([tmp_path / "a", tmp_path / "b", tmp_path / "c.jsonl", path], limit=2)
    assert [document.text for document in documents] == ["a1.txt", "a2.txt", "b1.txt", "b2.txt", *["one", "two"] * 2]


# --- files as they lie around ----------------------------------------------------------------------------------------

LINES = b'{"text": "one"}\n{"text": "two"}\n'
PACKED = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard.compress}


def texts(path):
    documents, warnings = read_documents([path])
    assert warnings == []
    return [document.text for document in documents]


@pytest.mark.parametrize("suffix", PACKED)
def test_compressed_files(tmp_path, suffix):
    pack = PACKED[suffix]
    for name, content, expected in (
        ("a.jsonl", LINES, ["one", "two"]),
        ("a.json", b'[{"text": "one"}]', ["one"]),
        ("a.txt", "caf\u00e9\n".encode(), ["caf\u00e9\n"]),
        ("a.csv", b"text\none\n", ["one"]),
    ):
        path = tmp_path / (name + suffix)
        path.write_bytes(pack(content))
        assert texts(path) == expected
    # Files that were written one after another, and such that are cut short or something else.
    path = tmp_path / f"b.jsonl{suffix}"
    path.write_bytes(pack(LINES) + pack(LINES))
    assert texts(path) == ["one", "two"] * 2
    for content in (pack(LINES * 99)[:-6], b"something else"):
        path.write_bytes(content)
        refused(path, str(path), "decompress", suffix)
    (tmp_path / f"a.parquet{suffix}").write_bytes(pack(b"x"))
    refused(tmp_path / f"a.parquet{suffix}", "decompress it first")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", 'id,text\n1,"one, with\na line"\n2,two\n', ["one, with\na line", "two"]),
        ("a.csv", "\ufefftext;id\none, two;1\n", ["one, two"]),
        ("a.tsv", "id\ttext\n1\tone\n", ["one"]),
        ("a.ndjson", LINES.decode(), ["one", "two"]),
        ("a.json", LINES.decode(), ["one", "two"]),
        ("a.json", '{"data": [{"text": "one"}, {"text": "two"}], "version": 1}', ["one", "two"]),
        ("a.json", '{"rows": ["one"]}', ["one"]),
        ("a.json", '{"text": ["one", "two"], "id": [1, 2]}', ["one", "two"]),
        ("a.json", '{"text": "one", "data": [1]}', ["one"]),
        ("a.jsonl", '{"text": ["p1", "p2"]}', ["p1\n\np2"]),
        ("a.jsonl", '{"text": "one", "score": NaN}', ["one"]),
        ("a.tex", "\\\\section{A}", ["\\\\section{A}"]),
        ("a.rst", "A\n=", ["A\n="]),
        ("a.txt", "\ufeff\ufefftext", ["text"]),
    ],
)
def test_other_layouts(tmp_path, name, content, expected):
    (tmp_path / name).write_text(content, "utf-8", newline="")
    assert texts(tmp_path / name) == expected


def test_another_column(tmp_path):
    pq.write_table(pa.table({"content": ["one", "two"], "meta": [{"a": 1}] * 2}), tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("body,text\none,x\ntwo,y\n")
    (tmp_path / "a.jsonl").write_text('{"body": "one"}\n{"body": ["two"]}\n')
    for source in ("a.parquet?content", "a.csv?body", "a.jsonl?body"):
        assert texts(f"{tmp_path}/{source}") == ["one", "two"]
    refused(tmp_path / "a.parquet", 'no column "text"', "a.parquet?content")
    refused(f"{tmp_path}/a.csv?title", 'no column "title"', "body, text")
    refused(f"{tmp_path}/a.jsonl", "FILE?KEY")
    (tmp_path / "a.txt").write_text("x")
    refused(f"{tmp_path}/a.txt?text", "no columns")
    refused(f"{tmp_path}/none.csv?text", "does not exist")
    (tmp_path / "odd?name.txt").write_text("one")  # a name like any other
    assert texts(tmp_path / "odd?name.txt") == ["one"]


def test_broken_csv(tmp_path):
    (tmp_path / "a.csv").write_text("id,text\n1,one,more\n2,two\n3\n")
    documents, (warning,) = read_documents([tmp_path / "a.csv"])
    assert [document.text for document in documents] == ["two"]
    assert "left out 2 of 3 rows" in warning
    assert "a.csv:2, has more values than the 2 columns" in warning
    (tmp_path / "a.csv").write_text('text\n"one\n')
    refused(tmp_path / "a.csv", "as CSV")


def test_notebooks(tmp_path):
    cells = [
        {"cell_type": "markdown", "source": ["# A title\n", "of it"]},
        {"cell_type": "code", "source": "x = 1", "outputs": [{"text": ["not this"]}]},
        {"cell_type": "code", "source": []},
    ]
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps({"cells": cells, "nbformat": 4, "metadata": {}}))
    assert texts(path) == ["# A title\nof it\n\n```python\nx = 1\n```"]
    old = [{"cell_type": "code", "input": ["y"], "language": "python"}]
    path.write_text(json.dumps({"worksheets": [{"cells": old}], "nbformat": 3}))
    assert texts(path) == ["```python\ny\n```"]
    path.write_text("{}")
    refused(path, "no notebook")


@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("utf-16", "UTF-16,"), ("utf-16-le", "UTF-16LE"), ("utf-16-be", "UTF-16BE"), ("utf-32", "UTF-32,"),
        ("utf-32-le", "UTF-32LE"), ("utf-32-be", "UTF-32BE"), ("cp1252", "-f WINDOWS-1252"),
        ("mac-roman", "not UTF-8"), ("cp1250", "not UTF-8"),
    ],
)  # fmt: skip
def test_encodings_are_named_and_the_advice_works(tmp_path, encoding, said):
    text = "a \u201cquote\u201d that is long enough"
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode(encoding))
    message = refused(path, said)
    told = re.search(r"`iconv -f (\S+) -t UTF-8`", message)
    if encoding not in ("mac-roman", "cp1250"):
        assert path.read_bytes().decode(told[1]) == text
