"""Datasets by name; a local folder of data files takes the place of the hub, which takes the same way."""

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lengthen.data import tokens as module
from lengthen.data.hub import HubSource, HubStream, parse_hub_source
from lengthen.data.tokens import load_tokens
from lengthen.errors import DataError

TEXTS = ["one", "the second", "3"]


@pytest.fixture
def dataset(tmp_path):
    """A function that writes a folder with one split of these rows and returns its source without a split."""

    def make(rows, split="train", column="text"):
        folder = tmp_path / "books"
        folder.mkdir(exist_ok=True)
        pq.write_table(pa.table({column: rows, "year": list(range(len(rows)))}), folder / f"{split}.parquet")
        return f"hf:{folder}"

    return make


def read(source, limit=None):
    stream = HubStream(parse_hub_source(source), limit)
    return [document.text for document in stream], stream


def refused(source, *words):
    with pytest.raises(DataError) as caught:
        read(source)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("hf:emozilla/pg19", HubSource("emozilla/pg19")),
        ("hf:emozilla/pg19:validation", HubSource("emozilla/pg19", split="validation")),
        ("hf:a/b:en:train", HubSource("a/b", config="en")),
        ("hf:a/b@main:test?body", HubSource("a/b", "main", split="test", column="body")),
        ("hf:a/b?long text", HubSource("a/b", column="long text")),
    ],
)
def test_forms(text, source):
    assert parse_hub_source(text) == source


@pytest.mark.parametrize("text", ["hf:", "hf::train", "hf:a/b:c:d:e", "hf:a/b:", "hf:a/b@", "hf:a/b?"])
def test_other_forms_are_refused(text):
    with pytest.raises(DataError, match="is not of the form"):
        parse_hub_source(text)


def test_documents_come_in_order(dataset):
    source = dataset(TEXTS)
    dataset(["v"], split="validation")
    dataset(["body"], split="test", column="body")
    assert read(source)[0] == TEXTS
    assert read(f"{source}:train", limit=2)[0] == TEXTS[:2]
    assert read(f"{source}:validation")[0] == ["v"]


def test_another_column(dataset):
    source = dataset(TEXTS, column="body")
    assert read(f"{source}?body")[0] == TEXTS
    refused(source, 'no column "text"', "body, year", "?body")


def test_rows_without_text_are_left_out(dataset):
    texts, stream = read(dataset(["one", None, " ", "two", "three"]), limit=2)
    assert texts == ["one", "two"]
    assert len(stream.warnings) == 1
    assert "left out 2 of 4 rows" in stream.warnings[0]
    assert "row 1" in stream.warnings[0]
    refused(dataset(["", ""]), "no usable rows of 2")
    refused(f"{dataset([1, 2])}", "has int where text should be")


def test_what_is_not_there_is_refused(dataset, tmp_path):
    source = dataset(TEXTS)
    refused(f"{source}:dev", "dev", "train")
    refused(f"{source}:english:train", "english")
    refused(f"hf:{tmp_path / 'none'}", "none")
    (tmp_path / "books" / "train.parquet").write_bytes(b"PAR1 no more")
    refused(source, "can't read")


def test_tokens_are_cached_under_what_the_files_are(dataset, tokenizer, tmp_path, monkeypatch):
    source, cache = dataset(TEXTS), tmp_path / "cache"
    encoded = []
    monkeypatch.setattr(
        module, "_encode", lambda texts, _: encoded.append(texts) or [np.zeros(len(text), np.uint32) for text in texts]
    )

    def load(*sources, **more):
        encoded.clear()
        return load_tokens(sources, tokenizer, 300, cache, **more)[0]

    first = load(source)
    assert encoded == [TEXTS]
    again = load(source)
    assert encoded == []
    assert again.names == first.names
    assert np.array_equal(again.tokens, first.tokens)
    assert first.names[1].endswith("books:train[1]")
    assert len(load(source, max_documents=1)) == 1
    assert encoded == [TEXTS[:1]]
    dataset(["x", "y"])
    os.utime(tmp_path / "books" / "train.parquet", (1, 1))
    assert len(load(source)) == 2
    assert encoded == [["x", "y"]]

    monkeypatch.setattr(HubStream, "identity", None)
    load(source)
    load(source)
    assert encoded == [["x", "y"]]


def test_a_stream_with_broken_rows_warns_each_time(dataset, tokenizer, tmp_path):
    source = dataset(["one", None])
    for _ in range(2):
        store, warnings = load_tokens([source], tokenizer, 300, tmp_path / "cache")
        assert len(store) == 1
        assert "left out 1 of 2 rows" in warnings[0]


def test_datasets_and_files_in_one_store(dataset, tokenizer, tmp_path):
    source = dataset(TEXTS)
    (tmp_path / "a.txt").write_text("abc")
    np.arange(5, dtype="<u2").tofile(tmp_path / "b.bin")
    store, _ = load_tokens([tmp_path / "a.txt", source, tmp_path / "b.bin", source], tokenizer, 300)
    assert len(store) == 8
    assert [tokenizer.decode(store[i], skip_special_tokens=True) for i in (0, 1, 7)] == ["abc", "one", "3"]
