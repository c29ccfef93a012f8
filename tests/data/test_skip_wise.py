"""Skip-wise positions: what is drawn, and that a model reads the jump as a distance and not as another document."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from lengthen.data.blocks import Block
from lengthen.data.collate import collate
from lengthen.data.counts import positions_beyond
from lengthen.data.skip_wise import skip_positions, skip_wise
from lengthen.errors import DataError


def window(*segments):
    """A block in which every token has an id of its own, in order."""
    return Block(np.arange(sum(segments), dtype=np.int64), tuple(segments))


@given(
    segments=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    length=st.integers(2, 30),
    further=st.integers(1, 100),
    seed=st.integers(0, 9),
)
@settings(max_examples=150)
def test_two_chunks_of_one_document_with_one_jump(segments, length, further, seed):
    target = length + further
    if max(segments) < length:
        with pytest.raises(DataError, match=f"longest document has {max(segments)} tokens"):
            skip_wise([window(*segments)], length, target, seed)
        return
    blocks = skip_wise([window(*segments)], length, target, seed)
    assert len(blocks) == sum(n // length for n in segments)
    bounds = np.cumsum([0, *segments])
    for block in blocks:
        assert block.segments == (length,)
        for row, end in ((block.input_ids, bounds[-1]), (block.positions, target)):
            assert row.dtype == np.int64
            steps = np.diff(row)
            assert (steps >= 1).all()
            assert (steps > 1).sum() <= 1
            assert 0 <= row[0] <= row[-1] < end
        document = np.searchsorted(bounds, block.input_ids, side="right")
        assert len(set(document.tolist())) == 1
        assert block.input_ids[0] in bounds  # the first chunk begins its document
        assert block.positions[0] == 0
        jumps = [np.flatnonzero(np.diff(row) > 1) for row in (block.input_ids, block.positions)]
        assert all(0 <= at < (length + 1) // 2 for jump in jumps for at in jump)
        assert not (jumps[0].size and jumps[1].size) or jumps[0] == jumps[1]
    again = skip_wise([window(*segments)], length, target, seed)
    assert [b.positions.tolist() for b in again] == [b.positions.tolist() for b in blocks]


def test_all_distances_of_the_target_are_met():
    blocks = skip_wise([window(8)] * 400, 8, 40, seed=0)
    distances = {int(p) for block in blocks for p in block.positions[-1:] - block.positions}
    assert distances == set(range(40))
    assert {b.positions[-1] for b in blocks} == {b.positions[-1] for b in skip_wise([window(8)] * 400, 8, 40, seed=1)}
    assert [b.positions[-1] for b in blocks] != [b.positions[-1] for b in skip_wise([window(8)] * 400, 8, 40, seed=1)]


@given(length=st.integers(2, 60), further=st.integers(0, 200), seed=st.integers(0, 99))
def test_positions_of_a_whole_text_have_one_jump_before_its_end(length, further, seed):
    target = length + further
    positions = skip_positions(length, target, np.random.default_rng(seed))
    jumps = np.flatnonzero(np.diff(positions) != 1)
    assert positions.shape == (length,)
    assert 0 <= positions[0] <= positions[-1] < target
    assert jumps.size <= 1
    assert all(length // 8 <= jump + 1 <= max(1, length * 7 // 8) for jump in jumps)


def test_half_of_the_sequences_reach_from_the_first_position_to_the_last():
    generator = np.random.default_rng(0)
    drawn = [skip_positions(64, 1024, generator) for _ in range(400)]
    whole = [row for row in drawn if row[0] == 0 and row[-1] == 1023]
    assert 0.45 < len(whole) / len(drawn) < 0.55
    others = {int(row[-1] - row[0]) for row in drawn} - {1023}
    assert min(others) < 150 < 900 < max(others)


def test_positions_beyond_counts_positions_and_not_tokens():
    block = Block(np.arange(4), (4,), np.array([0, 1, 10, 11]))
    assert positions_beyond([block], 4) == 0.5
    assert positions_beyond([block], 11) == 0.25


def test_a_model_sees_across_the_jump_as_far_as_the_positions_say():
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128, attn_implementation="sdpa",
        )
    ).train()  # fmt: skip
    (block,) = skip_wise([window(12)], 12, 100, seed=3)
    jump = int(np.flatnonzero(np.diff(block.positions) > 1)[0]) + 1
    batch = collate([block], 0)
    assert batch.pop("documents") == (((0, 12),),)
    logits = model(**batch, use_cache=False).logits

    # The same distances in one long sequence, whose tokens in between nobody may see.
    span = int(block.positions[-1]) + 1
    ids = torch.zeros(1, span, dtype=torch.long)
    ids[0, block.positions] = torch.from_numpy(block.input_ids)
    real = torch.zeros(span, dtype=torch.bool)
    real[block.positions] = True
    mask = (torch.ones(span, span, dtype=torch.bool).tril() & real) | torch.eye(span, dtype=torch.bool)
    whole = model(input_ids=ids, attention_mask=mask[None, None], use_cache=False).logits[:, block.positions]
    torch.testing.assert_close(logits, whole, atol=1e-5, rtol=1e-4)

    # Without the mask of ones, the jump would be read as another document.
    del batch["attention_mask"]
    apart = model(**batch, use_cache=False).logits
    torch.testing.assert_close(apart[:, :jump], logits[:, :jump])
    assert not torch.allclose(apart[:, jump:], logits[:, jump:], atol=1e-4)
