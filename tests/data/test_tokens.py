import logging
import tracemalloc
from itertools import chain

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lengthen.data import token_store
from lengthen.data import tokens as module
from lengthen.data.documents import Document
from lengthen.data.packing import PACKINGS, pack
from lengthen.data.token_cache import cache_key
from lengthen.data.token_file import read_token_file, write_token_file
from lengthen.data.token_store import TokenStore, check_vocabulary
from lengthen.data.tokens import default_cache, load_tokens, tokenize
from lengthen.errors import DataError, OutputError
from lengthen.progress import show_progress
from lengthen.training.restoration import cut_windows
from lengthen.vocabulary import vocabulary_size

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
BOS = len(BYTES)


def build_tokenizer(bos=True, reverse=False):
    """One token per byte, with a BOS in front where `bos`."""
    alphabet = BYTES[::-1] if reverse else BYTES
    backend = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)} | {"<s>": BOS}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", model_max_length=8)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture
def documents():
    return [Document("first", "hello"), Document("second", "\u00e9t\u00e9, a longer text\r\n"), Document("third", "x")]


def store_of(*documents):
    offsets = np.cumsum([0, *map(len, documents)], dtype=np.int64)
    return TokenStore.of_stream(
        np.array([*chain(*documents)], dtype=np.uint32), offsets, [f"d{i}" for i in range(len(documents))]
    )


def same(one, other):
    return (
        np.array_equal(one.tokens, other.tokens)
        and np.array_equal(one.offsets, other.offsets)
        and one.names == other.names
    )


def test_store_is_a_sequence_of_documents():
    store = store_of([1, 2, 3], [], [4])
    assert len(store) == 3
    assert [document.tolist() for document in store] == [[1, 2, 3], [], [4]]
    assert store[-1].tolist() == [4]
    assert store.lengths.tolist() == [3, 0, 1]
    assert store[0].base is not None  # a view
    with pytest.raises(IndexError):
        store[3]


def test_tokens_are_the_tokenizers_own(tokenizer, documents):
    store = tokenize(documents, tokenizer)
    assert store.names == ["first", "second", "third"]
    assert store.tokens.dtype == np.uint32
    assert store.offsets.dtype == np.int64
    for i, document in enumerate(documents):
        assert store[i].tolist() == tokenizer(document.text, verbose=False)["input_ids"]
        assert store[i][0] == BOS
        assert tokenizer.decode(store[i][1:].tolist()) == document.text
    assert tokenize(documents, build_tokenizer(bos=False))[2].tolist() == [BYTES.index("x")]


def test_batches_do_not_change_the_tokens(tokenizer, documents, monkeypatch):
    whole = tokenize(documents, tokenizer)
    for characters in (1, 6, 20):
        monkeypatch.setattr(module, "_BATCH_CHARACTERS", characters)
        batches = list(module._batches([document.text for document in documents]))
        assert [*chain(*batches)] == [document.text for document in documents]
        assert all(len(batch) == 1 or sum(map(len, batch)) <= characters for batch in batches)
        assert same(tokenize(documents, tokenizer), whole)


def test_no_documents_and_empty_text(tokenizer, tmp_path):
    assert len(tokenize([], tokenizer)) == 0
    bare = build_tokenizer(bos=False)
    for _ in range(2):  # the second time from the cache
        assert tokenize([Document("a", "")], bare, tmp_path).lengths.tolist() == [0]


def test_long_documents_bring_no_warning(documents, caplog):
    fresh = build_tokenizer()
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        tokenize(documents, fresh)
    finally:
        logger.removeHandler(caplog.handler)
    assert caplog.text == ""


def test_progress_only_where_asked(tokenizer, documents, capsys):
    tokenize(documents, tokenizer)
    assert capsys.readouterr() == ("", "")
    show_progress()
    try:
        tokenize(documents, tokenizer)
    finally:
        show_progress(False)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "tokenizing" in shown.err


def key(documents, tokenizer):
    return cache_key([document.text for document in documents], tokenizer)


def test_cache_key_follows_texts_and_tokenizer(tokenizer, documents):
    reference = key(documents, tokenizer)
    renamed = [Document("other", document.text) for document in documents]
    assert key(renamed, build_tokenizer()) == reference
    # A call leaves its truncation in the backend; it must not change the key.
    used = build_tokenizer()
    used("text", truncation=True, max_length=4)
    assert key(documents, used) == reference
    moved = [Document("first", "hell"), Document("second", "o" + documents[1].text), documents[2]]
    others = [
        key(documents[::-1], tokenizer),
        key(documents[:2], tokenizer),
        key(moved, tokenizer),
        key(documents, build_tokenizer(bos=False)),
        key(documents, build_tokenizer(reverse=True)),
    ]
    assert len({reference, *others}) == 6


class Counting:
    """A tokenizer that counts its calls."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.calls = 0

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return self.tokenizer(*args, **kwargs)


def test_cache_hit_and_miss(tokenizer, documents, tmp_path):
    counting = Counting(tokenizer)
    first = tokenize(documents, counting, tmp_path / "new" / "cache")
    again = tokenize(documents, counting, tmp_path / "new" / "cache")
    assert counting.calls == 1
    assert same(first, again)
    assert same(first, tokenize(documents, tokenizer))
    tokenize([*documents, Document("fourth", "!")], counting, tmp_path / "new" / "cache")
    assert counting.calls == 2
    renamed = [Document(f"new {document.name}", document.text) for document in documents]
    assert tokenize(renamed, counting, tmp_path / "new" / "cache").names[0] == "new first"
    assert counting.calls == 2


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_corrupt_cache_is_rewritten(tokenizer, documents, tmp_path, data):
    reference = tokenize(documents, tokenizer, tmp_path)
    (path,) = tmp_path.iterdir()
    good = path.read_bytes()
    if data.draw(st.booleans()):
        bad = good[: data.draw(st.integers(0, len(good) - 1))]
    else:
        place = data.draw(st.integers(0, len(good) - 1))
        bad = good[:place] + bytes([good[place] ^ data.draw(st.integers(1, 255))]) + good[place + 1 :]
    path.write_bytes(bad)
    assert same(tokenize(documents, tokenizer, tmp_path), reference)
    assert same(tokenize(documents, tokenizer, tmp_path), reference)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_unwritable_cache_warns_and_goes_on(tokenizer, documents, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="not cached"):
        store = tokenize(documents, tokenizer, tmp_path / "file" / "cache")
    assert same(store, tokenize(documents, tokenizer))


def test_slow_tokenizers_have_a_key_too(documents):
    class Slow:
        name_or_path = "slow"

        def __init__(self, vocabulary):
            self.init_kwargs = {"add_bos_token": True}
            self.get_vocab = lambda: vocabulary

    assert key(documents, Slow({"a": 0, "b": 1})) == key(documents, Slow({"b": 1, "a": 0}))
    assert key(documents, Slow({"a": 0, "b": 1})) != key(documents, Slow({"a": 1, "b": 0}))


def test_default_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("LENGTHEN_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_cache() == tmp_path / ".cache" / "lengthen" / "tokens"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache() == tmp_path / "xdg" / "lengthen" / "tokens"
    monkeypatch.setenv("LENGTHEN_CACHE", str(tmp_path / "own"))
    assert default_cache() == tmp_path / "own" / "lengthen" / "tokens"


def test_vocabulary_size_counts_gaps():
    assert vocabulary_size(build_tokenizer()) == BOS + 1


@pytest.mark.parametrize(("vocab_size", "item"), [(300, "<u2"), (65536, "<u2"), (65537, "<u4"), (200_000, "<u4")])
@given(documents=st.lists(st.lists(st.integers(0, 299), min_size=1, max_size=9), min_size=1, max_size=4))
@settings(max_examples=20)
def test_token_file_round_trip(tmp_path_factory, vocab_size, item, documents):
    path = tmp_path_factory.mktemp("tokens") / "a.bin"
    documents[0][0] = min(vocab_size, 70_000) - 1
    store = store_of(*documents)
    write_token_file(path, store, vocab_size)
    assert path.read_bytes() == store.tokens.astype(item).tobytes()
    back = read_token_file(path, vocab_size)
    assert back.tokens.tolist() == store.tokens.tolist()
    assert back.names == ["a.bin"]
    assert len(back) == 1
    assert back[0].tolist() == store.tokens.tolist()


def test_dtype_can_be_named(tmp_path):
    path = tmp_path / "a.bin"
    np.arange(100, dtype="<u4").tofile(path)
    assert read_token_file(str(path), 300, dtype="uint32").tokens.tolist() == list(range(100))
    np.arange(100, dtype="<u2").tofile(path)
    assert read_token_file(path, 100_000, dtype="uint16").tokens.tolist() == list(range(100))
    with pytest.raises(DataError, match=r"int8.*uint16, uint32"):
        read_token_file(path, 300, dtype="int8")


def test_uint32_file_is_not_read_as_uint16(tmp_path):
    path = tmp_path / "a.bin"
    np.arange(100, dtype="<u4").tofile(path)
    with pytest.raises(DataError, match="uint32"):
        read_token_file(path, 300)
    assert len(read_token_file(path, 300, dtype="uint16").tokens) == 200


def test_uint16_file_is_not_read_as_uint32(tmp_path):
    path = tmp_path / "a.bin"
    np.arange(100, dtype="<u2").tofile(path)
    with pytest.raises(DataError, match="read it with dtype uint16"):
        read_token_file(path, 100_000)


def test_bad_token_files(tmp_path):
    path = tmp_path / "a.bin"
    with pytest.raises(DataError, match="does not exist"):
        read_token_file(path, 300)
    with pytest.raises(DataError, match="is a folder"):
        read_token_file(tmp_path, 300)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="is empty"):
        read_token_file(path, 300)
    path.write_bytes(b"abc")
    with pytest.raises(DataError, match=r"3 bytes.*uint16"):
        read_token_file(path, 300)
    path.write_bytes(b"abcdef")
    with pytest.raises(DataError, match=r"6 bytes.*uint32"):
        read_token_file(path, 100_000)


@pytest.mark.parametrize("scan", [2, 1000])
def test_id_outside_the_vocabulary(tmp_path, monkeypatch, scan):
    monkeypatch.setattr(token_store, "_SCAN_TOKENS", scan)
    path = tmp_path / "a.bin"
    np.array([1, 299, 5, 300, 400], dtype="<u2").tofile(path)
    with pytest.raises(DataError, match=r"id 300 at position 3.*300 tokens.*uint32"):
        read_token_file(path, 300)
    assert len(read_token_file(path, 401).tokens) == 5
    with pytest.raises(DataError, match="d1 has token id 300"):
        write_token_file(path, store_of([1, 299, 5], [300, 400]), 300)


def test_failed_write_leaves_the_old_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises((OutputError, OSError)):
        write_token_file(tmp_path / "file" / "a.bin", store_of([1]), 300)


def test_load_tokens_mixes_files_in_order(tokenizer, tmp_path):
    write_token_file(tmp_path / "a.bin", store_of([1, 2], [3]), 300)
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "c.jsonl").write_text('"c"\n{broken\n')
    paths = [str(tmp_path / "b.txt"), tmp_path / "a.bin", tmp_path / "c.jsonl"]
    store, warnings = load_tokens(paths, tokenizer, 300)
    assert [document.tolist() for document in store] == [[BOS, BYTES.index("b")], [1, 2, 3], [BOS, BYTES.index("c")]]
    assert store.names == [str(tmp_path / "b.txt"), "a.bin", f"{tmp_path / 'c.jsonl'}:1"]
    assert store.tokens.dtype == np.uint32
    assert len(warnings) == 1
    assert "c.jsonl:2" in warnings[0]


def test_load_tokens_refuses(tokenizer, tmp_path):
    with pytest.raises(DataError, match="no data"):
        load_tokens([], tokenizer, 300)
    with pytest.raises(DataError, match="does not exist"):
        load_tokens([tmp_path / "none.bin"], tokenizer, 300)
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(DataError, match=rf"a\.txt has token id {BOS}.*{BOS} tokens"):
        load_tokens([tmp_path / "a.txt"], tokenizer, BOS)
    np.arange(100, dtype="<u4").tofile(tmp_path / "a.bin")
    assert len(load_tokens([tmp_path / "a.bin"], tokenizer, 300, dtype="uint32")[0].tokens) == 100


def test_documents_that_are_held_out_are_not_in_what_is_left():
    store = TokenStore.of_stream(np.arange(9, dtype=np.uint32), np.array([0, 2, 5, 9]), ["a", "b", "c"])
    left = store.without(["b", "no such one"])
    assert left.names == ["a", "c"]
    assert [list(left[i]) for i in range(2)] == [[0, 1], [5, 6, 7, 8]]
    assert store.without([]) is store
    assert list(store.take([2, 0, 2]).stream()) == [5, 6, 7, 8, 0, 1, 5, 6, 7, 8]
    with pytest.raises(DataError, match=r"all documents .* are held out"):
        store.without("abc")


def test_stores_that_are_taken_of_another_hold_no_tokens_of_their_own(tmp_path):
    np.arange(50, dtype="<u2").tofile(tmp_path / "a.bin")
    mapped = read_token_file(tmp_path / "a.bin", 300)
    stream = TokenStore.of_stream(mapped.tokens, np.array([0, 20, 30, 50]), ["a", "b", "c"])
    left = stream.without(["b"]).take([1, 0, 1])
    for index, name in enumerate("cac"):
        assert left.names[index] == name
        assert np.shares_memory(left[index], mapped.tokens)
    blocks = pack(left, 20, "documents")
    assert [block.input_ids[0] for block in blocks] == [30, 0, 30]
    assert stream.take([1, 2]).stream().base is not None, "in their order they are a view"
    np.testing.assert_array_equal(left.stream(), [*range(30, 50), *range(20), *range(30, 50)])
    check_vocabulary(left, 50)
    with pytest.raises(DataError, match="a has token id 19"):
        check_vocabulary(left.take([1]), 19)
    write_token_file(tmp_path / "left.bin", left, 300)
    assert np.fromfile(tmp_path / "left.bin", "<u2").tolist() == left.stream().tolist()


def test_what_is_trained_on_holds_the_corpus_once():
    """Without what is held out, packed either way, and cut into windows of restoration."""
    size, length = 4_000_000, 100_000
    names = [str(index) for index in range(size // length)]
    store = TokenStore.of_stream(np.zeros(size, np.uint32), np.arange(0, size + 1, length), names)
    tracemalloc.start()
    left = store.without(names[:2])
    kept = [pack(left, 3 * length, packing) for packing in PACKINGS], cut_windows(left, 1024, 0)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(kept[1].block(5)) == 1024
    assert held <= peak < store.tokens.nbytes / 5
