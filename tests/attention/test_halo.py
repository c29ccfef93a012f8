"""Slices of a sequence: attention over them is attention over the whole, in every backend's definition."""

import cpu_varlen  # noqa: F401 - registers kernels
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layout_strategy import layouts
from s2_reference import HEAD_COUNTS, assert_equal_with_gradients, inputs_for, reference

from lengthen._compat import torch_varlen
from lengthen.attention.flash import s2_flash
from lengthen.attention.flex import s2_flex
from lengthen.attention.halo import add_sinks, slices
from lengthen.attention.sdpa import s2_sdpa
from lengthen.attention_pattern import Groups, layer_patterns

PATTERNS = [each for name in ("s2", "alternate", "full") for each in layer_patterns(name)]


def groups_strategy():
    sizes = st.integers(2, 12)
    return sizes.flatmap(
        lambda size: st.builds(Groups, st.just(size), st.integers(0, size // 2), st.sampled_from(PATTERNS))
    )


def by_slices(backend, q, k, v, documents, groups, chunk):
    parts = slices(documents, groups, q.shape[2], chunk)
    outputs = []
    for part in parts:
        own = [part.take(x.transpose(1, 2)).transpose(1, 2) for x in (q, k, v)]
        outputs.append(backend(*own, part.documents, groups)[:, part.start - part.stop :])
    return torch.cat(outputs, dim=1)


@settings(max_examples=150, deadline=None)
@given(layouts(), groups_strategy(), st.sampled_from(HEAD_COUNTS), st.integers(1, 30))
def test_attention_by_slices_is_attention_over_the_whole(layout, groups, head_counts, chunk):
    inputs, documents = inputs_for(layout, head_counts), layout[1]
    expected = reference(*inputs, documents, groups)
    assert_equal_with_gradients(by_slices(s2_sdpa, *inputs, documents, groups, chunk), expected, inputs)


@settings(max_examples=25, deadline=None)
@given(layouts(), groups_strategy(), st.sampled_from(HEAD_COUNTS), st.integers(1, 30))
def test_variable_length_kernels_take_slices(layout, groups, head_counts, chunk):
    inputs, documents = inputs_for(layout, head_counts), layout[1]

    def flash(*arguments):
        return s2_flash(*arguments, varlen=torch_varlen())

    expected = reference(*inputs, documents, groups)
    assert_equal_with_gradients(by_slices(flash, *inputs, documents, groups, chunk), expected, inputs)


@torch.no_grad()
def test_flex_attention_takes_slices(monkeypatch):
    # Uncompiled, flex_attention computes the same.
    monkeypatch.setattr("lengthen.attention.flex._compiled", lambda: torch.nn.attention.flex_attention.flex_attention)
    length, documents = 40, (((0, 30), (30, 10)), ((3, 37),))
    inputs = [x.float() for x in inputs_for((length, documents), (4, 2), value_size=8)]
    for groups in (Groups(8), Groups(8, sinks=3)):
        ours = by_slices(s2_flex, *inputs, documents, groups, 16)
        torch.testing.assert_close(ours, reference(*inputs, documents, groups))


@settings(max_examples=60, deadline=None)
@given(layouts(), groups_strategy(), st.integers(1, 30))
def test_slices_give_back_each_gradient_once(layout, groups, chunk):
    """`add` and `add_sinks` are the transpose of `take`, and chunks are all tokens in order."""
    length, documents = layout
    parts = slices(documents, groups, length, chunk)
    assert [token for part in parts for token in range(part.start, part.stop)] == list(range(length))
    x = torch.randn(len(documents), length, 2, dtype=torch.float64, requires_grad=True)
    for part in parts:
        taken = part.take(x)
        gradient, ours = torch.randn_like(taken), torch.zeros_like(x)
        sinks = {}
        part.add(gradient, ours, sinks)
        add_sinks(sinks, ours)
        torch.testing.assert_close(ours, torch.autograd.grad(taken, x, gradient)[0])


def test_a_chunk_at_a_group_needs_half_a_group_and_the_sinks():
    parts = slices((((0, 64),),), Groups(8, sinks=2), 64, 16)
    assert [part[:5] for part in parts] == [
        (0, 0, 16, 0, ()), (12, 16, 32, 2, (0,)), (28, 32, 48, 2, (0,)), (44, 48, 64, 2, (0,)),
    ]  # fmt: skip
    assert parts[1].documents == parts[2].documents, "so that what a backend makes of a layout serves all chunks"
