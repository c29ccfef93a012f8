"""Attention over shards of a sequence, one in each process, is attention over the whole; what is sent is counted."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from s2_reference import HEAD_COUNTS, inputs_for, reference

from lengthen.attention.layout import Shard, ShardLayout
from lengthen.attention.sdpa import s2_sdpa
from lengthen.attention.shards import shard_bounds, sharded_attention
from lengthen.attention_pattern import Groups, heads_of, layer_patterns
from lengthen.errors import ModelError
from shard_threads import in_threads

PATTERNS = [each for name in ("s2", "alternate") for each in layer_patterns(name)]
FULL = layer_patterns("full")[0]


def assert_shards_equal_the_whole(inputs, documents, groups, bounds):
    """Outputs and gradients; returns the sizes of the messages of the forward and of the backward pass."""
    weight = torch.randn(len(documents), bounds[-1], inputs[0].shape[1], inputs[2].shape[-1], dtype=torch.float64)
    expected = reference(*inputs, documents, groups)
    gradients = torch.autograd.grad((expected * weight).sum(), inputs)

    def work(shard):
        own = [x[:, :, shard.start : shard.stop].detach().requires_grad_() for x in inputs]
        out = sharded_attention(s2_sdpa, *own, ShardLayout(documents, shard), groups)
        loss = (out * weight[:, shard.start : shard.stop]).sum()
        # Without keys of its own that anybody sees, a tensor has no gradient.
        found = torch.autograd.grad(loss, own, allow_unused=True, materialize_grads=True)
        return out.detach(), *found

    shards, sent = in_threads(bounds, work)
    outputs, *found = zip(*shards, strict=True)
    torch.testing.assert_close(torch.cat(outputs, dim=1), expected.detach())
    for ours, theirs in zip(found, gradients, strict=True):
        torch.testing.assert_close(torch.cat(ours, dim=2), theirs)
    return sent


@st.composite
def cut_layouts(draw):
    """Documents without gaps, as batches bring them, and where shards of any length begin."""
    length = draw(st.integers(2, 40))
    cuts_of_row = st.sets(st.integers(1, length - 1), max_size=3)
    rows = [sorted({0, length, *draw(cuts_of_row)}) for _ in range(draw(st.integers(1, 3)))]
    documents = tuple(tuple((a, b - a) for a, b in pairwise(points)) for points in rows)
    cuts = draw(st.sets(st.integers(1, length - 1), min_size=1, max_size=3))
    return length, documents, (0, *sorted(cuts), length)


def groups_strategy():
    sizes = st.integers(2, 12)
    return sizes.flatmap(
        lambda size: st.builds(Groups, st.just(size), st.integers(0, size // 2), st.sampled_from(PATTERNS))
    )


@settings(max_examples=150, deadline=None)
@given(cut_layouts(), groups_strategy(), st.sampled_from(HEAD_COUNTS))
def test_s2_over_shards_is_s2_over_the_whole(layout, groups, head_counts):
    length, documents, bounds = layout
    inputs = inputs_for((length, documents), head_counts)
    assert_shards_equal_the_whole(inputs, documents, groups, bounds)


@settings(max_examples=40, deadline=None)
@given(cut_layouts(), st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 3, 4]))
def test_full_attention_over_shards_shares_out_heads(layout, per_process, kv_heads):
    length, documents, bounds = layout
    count = len(bounds) - 1
    heads = per_process * count * kv_heads
    inputs = inputs_for((length, documents), (heads, kv_heads))
    groups = Groups(4, pattern=FULL)
    if kv_heads % count and count % kv_heads:
        with pytest.raises(ModelError, match=f"{heads} query and {kv_heads} key/value heads"):
            heads_of(0, count, heads, kv_heads)
        return
    assert_shards_equal_the_whole(inputs, documents, groups, bounds)


def test_what_is_sent_is_the_halo_and_the_sinks():
    """Of 4 query and 4 key/value heads with keys of 8 and values of 6 numbers, at groups of 8 tokens."""
    inputs, documents = inputs_for((64, (((0, 64),),)), (4, 4)), (((0, 64),),)
    halo = 2 * 4 * (8 + 6)  # shifted heads, half a group
    sent = assert_shards_equal_the_whole(inputs, documents, Groups(8), (0, 16, 32, 48, 64))
    # Forward to the next shard, and the gradients back to the one before.
    assert sent == {(a, b): [halo] for a in range(4) for b in range(4) if abs(a - b) == 1}
    sinks = 2 * 2 * (8 + 6)  # either half of the heads, two tokens
    sent = assert_shards_equal_the_whole(inputs, documents, Groups(8, sinks=2), (0, 16, 32, 48, 64))
    assert sent[1, 2] == sent[3, 2] == [halo]
    assert sent[0, 1] == sent[1, 0] == [sinks, halo + sinks] or sent[1, 0] == [halo + sinks, sinks]
    assert sent[0, 2] == sent[0, 3] == sent[2, 0] == sent[3, 0] == [sinks, sinks]
    # A document that begins with a shard needs nothing of the others.
    sent = assert_shards_equal_the_whole(inputs, (((0, 32), (32, 32)),), Groups(8, sinks=2), (0, 32, 64))
    assert sent == {}


def test_the_halo_travels_while_the_plain_heads_are_computed():
    """Forward its keys and values, backward their gradients; told by a shard that has neighbors on both sides."""
    documents, bounds, events = (((0, 48),),), (0, 16, 32, 48), []
    inputs = inputs_for((48, documents), (4, 4))

    def work(shard):
        told = events if shard.rank == 1 else []

        def transport(*messages):
            number = sum(event.startswith("begin") for event in told)
            told.append(f"begin {number}")
            wait = shard.transport(*messages)
            return lambda: (told.append(f"end {number}"), wait())

        def backend(q_BRSD, k_BRSD, *more):
            half = "shifted" if "plain" in told else "plain"
            told.append(half)
            k_BRSD.register_hook(lambda _: told.append(f"{half} back"))
            return s2_sdpa(q_BRSD, k_BRSD, *more)

        own = [x[:, :, shard.start : shard.stop].detach().requires_grad_() for x in inputs]
        layout = ShardLayout(documents, Shard(shard.rank, shard.bounds, transport))
        sharded_attention(backend, *own, layout, Groups(8)).sum().backward()

    in_threads(bounds, work)
    at = {event: index for index, event in enumerate(events)}
    assert at["begin 1"] < at["plain"] < at["end 1"] < at["shifted"], events
    assert at["begin 2"] < at["plain back"] < at["end 2"], events


@given(st.integers(1, 8), st.integers(2, 40), st.integers(0, 200))
def test_shards_begin_at_groups_and_are_about_equal(count, group, more):
    length = count * group + more
    bounds = shard_bounds(length, group, count)
    sizes = [stop - start for start, stop in pairwise(bounds)]
    assert (bounds[0], bounds[-1], len(sizes)) == (0, length, count)
    assert all(start % group == 0 for start in bounds[:-1])
    assert max(abs(size - length / count) for size in sizes) <= group
    assert min(sizes) >= group / 2
