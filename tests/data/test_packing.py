import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.masking_utils import find_packed_sequence_indices

from lengthen.data.blocks import Block
from lengthen.data.collate import collate
from lengthen.data.counts import describe_blocks, describe_lengths, positions_beyond
from lengthen.data.packing import choose_documents, pack
from lengthen.data.token_store import TokenStore
from lengthen.errors import DataError

IGNORED = -100


def store_of(*lengths):
    """Documents of the given lengths; every token of all of them has an id of its own, in order."""
    offsets = np.cumsum([0, *lengths], dtype=np.int64)
    return TokenStore.of_stream(
        np.arange(offsets[-1], dtype=np.uint32), offsets, [f"d{i}" for i in range(len(lengths))]
    )


def segments_of(block):
    return [part.tolist() for part in np.split(block.input_ids, np.cumsum(block.segments)[:-1])]


lengths_lists = st.lists(st.integers(0, 40), min_size=1, max_size=30)
sequence_lengths = st.integers(2, 25)


@given(lengths=lengths_lists, sequence_length=sequence_lengths)
@settings(max_examples=150)
def test_documents_packing_loses_nothing(lengths, sequence_length):
    store = store_of(*lengths)
    # What each document must become, in order; only a last piece of one token is dropped.
    expected = [
        document[start : start + sequence_length].tolist()
        for document in store
        for start in range(0, len(document), sequence_length)
        if len(document) - start >= 2
    ]
    if not expected:
        with pytest.raises(DataError, match="no training block"):
            pack(store, sequence_length)
        return
    blocks = pack(store, sequence_length)
    found = [segment for block in blocks for segment in segments_of(block)]
    assert sorted(found) == expected
    for block in blocks:
        assert block.input_ids.dtype == np.int64
        assert sum(block.segments) == len(block) <= sequence_length
        assert min(block.segments) >= 2
        assert segments_of(block) == sorted(segments_of(block))  # order of documents within a block
    firsts = [int(block.input_ids[0]) for block in blocks]
    assert firsts == sorted(firsts)
    again = pack(store, sequence_length)
    assert [(b.segments, b.input_ids.tolist()) for b in again] == [(b.segments, b.input_ids.tolist()) for b in blocks]
    # Best fit never leaves two blocks that would fit into one.
    fill = sorted(map(len, blocks))
    assert len(fill) < 2 or fill[0] + fill[1] > sequence_length


def test_best_fit():
    # 6 leaves 4, 7 leaves 3: the 3 belongs beside the 7, so that the 4 still fits beside the 6.
    blocks = pack(store_of(6, 7, 3, 4), 10)
    assert [block.segments for block in blocks] == [(6, 4), (7, 3)]


@given(
    lengths=lengths_lists, sequence_length=sequence_lengths, limits=st.tuples(st.integers(1, 20), st.integers(0, 20))
)
@settings(max_examples=100)
def test_concatenate_is_the_stream(lengths, sequence_length, limits):
    least, most = limits[0], sum(limits)
    store = store_of(*lengths)
    stream = [token for document in store if least <= len(document) <= most for token in document.tolist()]
    if len(stream) < sequence_length:
        with pytest.raises(DataError, match="no training block"):
            pack(store, sequence_length, "concatenate", least, most)
        return
    blocks = pack(store, sequence_length, "concatenate", least, most)
    assert len(blocks) == len(stream) // sequence_length
    assert [token for block in blocks for token in block.input_ids.tolist()] == stream[: len(blocks) * sequence_length]
    assert all(block.segments == (sequence_length,) for block in blocks)


@pytest.mark.parametrize("packing", ["documents", "concatenate"])
def test_limits_choose_documents(packing):
    store = store_of(4, 5, 6, 7)
    assert choose_documents(store, 5, 6).tolist() == [1, 2]
    assert choose_documents(store).tolist() == [0, 1, 2, 3]
    assert choose_documents(store, min_tokens=7).tolist() == [3]
    blocks = pack(store, 11, packing, min_tokens=5, max_tokens=6)
    assert [block.input_ids.tolist() for block in blocks] == [list(range(4, 15))]


@pytest.mark.parametrize("packing", ["documents", "concatenate"])
def test_the_corpus_is_held_once(packing):
    """A million tokens, of which no copy is made before a block is asked for."""
    store = store_of(*[50_000] * 20)
    tracemalloc.start()
    try:
        blocks = pack(store, 32_768, packing, max_tokens=60_000)
        assert positions_beyond(blocks, 16_384) > 0.3
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(blocks) > 20
    assert peak < 1_000_000, "less than an eighth of the ids in int64"


def test_slices_of_blocks():
    blocks = pack(store_of(4, 5, 6, 7), 7)
    assert [len(block) for block in blocks[1:3]] == [len(blocks[1]), len(blocks[2])]
    assert blocks[-1].input_ids.tolist() == blocks[len(blocks) - 1].input_ids.tolist()
    with pytest.raises(IndexError):
        blocks[len(blocks)]


def test_memory_mapped_ids_pack_too():
    store = TokenStore.of_stream(np.arange(10, dtype=np.uint16), np.array([0, 10]), ["a.bin"])
    for packing in ("documents", "concatenate"):
        assert [block.input_ids.dtype for block in pack(store, 5, packing)] == [np.int64, np.int64]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sequence_length": 8, "packing": "padded"}, ["padded", "documents, concatenate"]),
        ({"sequence_length": 1}, ["sequence_length is 1"]),
        ({"sequence_length": 0}, ["sequence_length is 0"]),
        ({"sequence_length": 8, "min_tokens": 5, "max_tokens": 4}, ["max_tokens 4", "min_tokens 5"]),
        ({"sequence_length": 8, "min_tokens": 50}, ["longest document has 6", "min_tokens 50", "change these limits"]),
        ({"sequence_length": 8, "max_tokens": 2}, ["longest document has 6", "max_tokens 2"]),
        ({"sequence_length": 80, "packing": "concatenate"}, ["9 tokens", "sequence_length is 80", "lower"]),
    ],
)
def test_refusals(arguments, words):
    with pytest.raises(DataError) as caught:
        pack(store_of(3, 6), **arguments)
    for word in words:
        assert word in str(caught.value)


def test_documents_of_one_token_predict_nothing():
    with pytest.raises(DataError, match="longest document has 1 "):
        pack(store_of(1, 1), 8)
    with pytest.raises(DataError, match="0 of 0 documents"):
        pack(store_of(), 8)


def test_positions_beyond():
    blocks = [Block(np.arange(10), (7, 3)), Block(np.arange(6), (6,))]
    assert positions_beyond(blocks, 0) == 1.0
    assert positions_beyond(blocks, 5) == 3 / 16
    assert positions_beyond(blocks, 7) == 0.0
    assert positions_beyond([], 7) == 0.0


@given(
    data=st.lists(st.lists(st.integers(2, 9), min_size=1, max_size=4), min_size=1, max_size=4),
    pad_id=st.integers(0, 300),
)
@settings(max_examples=100)
def test_collate(data, pad_id):
    blocks = [Block(1000 + np.arange(sum(segments)), tuple(segments)) for segments in data]
    batch = collate(blocks, pad_id)
    width = max(map(len, blocks))
    assert set(batch) == {"documents", "input_ids", "labels", "position_ids"}
    for tensor in (batch["input_ids"], batch["labels"], batch["position_ids"]):
        assert tensor.dtype == torch.int64
        assert tensor.shape == (len(blocks), width)
    for row, block in enumerate(blocks):
        ids, labels, positions = (batch[name][row].tolist() for name in ("input_ids", "labels", "position_ids"))
        padding = width - len(block)
        assert ids == [*block.input_ids.tolist(), *[pad_id] * padding]
        assert positions == [p for length in (*block.segments, padding) for p in range(length)]
        starts = set(np.cumsum([0, *block.segments]).tolist())
        expected = [IGNORED if t in starts or t >= len(block) else token for t, token in enumerate(ids)]
        assert labels == expected
        # transformers finds the same segments, the padding included, from the positions alone.
        found = find_packed_sequence_indices(batch["position_ids"][row : row + 1])
        lengths = [*block.segments, *([padding] if padding else [])]
        assert [length for _, length in batch["documents"][row]] == lengths
        assert [start for start, _ in batch["documents"][row]] == np.cumsum([0, *lengths[:-1]]).tolist()
        if len(lengths) == 1:
            assert found is None
        else:
            assert torch.unique_consecutive(found, return_counts=True)[1].tolist() == lengths


def test_descriptions():
    store = store_of(1, 2, 3, 3, 9)
    described = describe_lengths(store.lengths)
    assert (described["documents"], described["tokens"]) == (5, 18)
    assert described["lengths"]["min"] == 1
    assert described["lengths"]["median"] == 3
    assert described["lengths"]["max"] == 9
    assert described["lengths"]["mean"] == 3.6
    assert [(b["from"], b["to"], b["documents"], b["tokens"]) for b in described["histogram"]] == [
        (1, 2, 1, 1),
        (2, 4, 3, 8),
        (4, 8, 0, 0),
        (8, 16, 1, 9),
    ]
    assert describe_lengths(store_of(0, 0).lengths)["histogram"] == [{"from": 0, "to": 1, "documents": 2, "tokens": 0}]
    blocks = pack(store, 10)
    assert describe_blocks(blocks, 10, context=4) == {
        "sequence_length": 10,
        "blocks": 2,
        "tokens": 17,
        "segments": 4,
        "fill": 0.85,
        "context": 4,
        "positions_beyond": 5 / 17,
    }
    assert "context" not in describe_blocks(blocks, 10)
