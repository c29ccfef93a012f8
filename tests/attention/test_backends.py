"""The other backends against the same reference, and which backend is picked where."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from s2_reference import HEAD_COUNTS, assert_equal_with_gradients, inputs_for, layouts, reference

from lengthen.attention import backends
from lengthen.attention.backends import pick_backend
from lengthen.attention.flash import s2_flash
from lengthen.attention.flex import s2_flex
from lengthen.attention.pattern import Groups, layer_patterns
from lengthen.attention.sdpa import s2_sdpa
from lengthen.errors import ModelError

CALLS = []


def varlen_on_cpu(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, *, softmax_scale, causal):
    """flash_attn_varlen_func's contract, sequence by sequence: causality is aligned at the last query and key."""
    CALLS.append(len(q))
    assert causal
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert (cu_seqlens_q[-1], cu_seqlens_k[-1]) == (len(q), len(k))
    assert cu_seqlens_q.diff().max() == max_seqlen_q
    assert cu_seqlens_k.diff().max() == max_seqlen_k
    assert all(x.shape[-1] == q.shape[-1] and x.stride(-1) == 1 for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    outputs = []
    for (a, b), (c, d) in zip(
        cu_seqlens_q.unfold(0, 2, 1).tolist(), cu_seqlens_k.unfold(0, 2, 1).tolist(), strict=True
    ):
        scores = torch.einsum("thd,shd->hts", q[a:b], k[c:d]) * softmax_scale
        visible = torch.arange(d - c)[None] <= torch.arange(b - a)[:, None] + (d - c) - (b - a)
        weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
        outputs.append(torch.einsum("hts,shd->thd", weights, v[c:d]))
    return torch.cat(outputs)


PATTERNS = [*layer_patterns("s2"), *layer_patterns("alternate"), *layer_patterns("full")]


@settings(deadline=None, max_examples=60)
@given(
    layouts(), st.integers(2, 17), st.sampled_from(HEAD_COUNTS), st.sampled_from([None, 0.3]), st.integers(0, 3),
    st.sampled_from(PATTERNS), st.sampled_from([6, 8]),
)  # fmt: skip
def test_flash_equals_reference_forward_and_backward(layout, group, head_counts, scaling, sinks, pattern, value_size):
    _, documents = layout
    inputs = inputs_for(layout, head_counts, value_size)
    groups = Groups(group, min(sinks, group // 2), pattern)
    CALLS.clear()
    ours = s2_flash(*inputs, documents, groups, scaling, varlen=varlen_on_cpu)
    assert len(CALLS) == 1, "both head halves go in one call"
    assert_equal_with_gradients(ours, reference(*inputs, documents, groups, scaling), inputs)


@pytest.mark.parametrize("head_counts", [(9, 3), (4, 1)])
@pytest.mark.parametrize("sinks", [0, 2])
def test_flex_equals_reference_forward(monkeypatch, head_counts, sinks):
    # Uncompiled, flex_attention computes the same; one compiled case is below.
    monkeypatch.setattr("lengthen.attention.flex._compiled", lambda: torch.nn.attention.flex_attention.flex_attention)
    documents = (((0, 9), (9, 21)), ((4, 26),))
    inputs = [x.detach() for x in inputs_for((30, documents), head_counts, dtype=torch.float32)]
    groups = Groups(8, sinks)
    torch.testing.assert_close(s2_flex(*inputs, documents, groups), reference(*inputs, documents, groups))


def test_compiled_flex_equals_reference():
    documents = (((0, 150), (150, 106)),)
    shapes = ((4, 64), (2, 64), (2, 64))
    inputs = [torch.randn(1, heads, 256, size) for heads, size in shapes]
    groups = Groups(64, 1)
    torch.testing.assert_close(s2_flex(*inputs, documents, groups), reference(*inputs, documents, groups))


def test_what_is_picked_and_refused(monkeypatch):
    cpu, cuda, half = torch.device("cpu"), torch.device("cuda"), torch.bfloat16
    assert pick_backend("auto", cpu, half) is s2_sdpa
    with pytest.raises(ModelError, match="needs a CUDA GPU"):
        pick_backend("flash_attention_2", cpu, half)
    monkeypatch.setattr(backends, "_is_installed", lambda module: False)
    with pytest.raises(ModelError, match="package flash-attn-3, which is not installed"):
        pick_backend("flash_attention_3", cuda, half)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert pick_backend("auto", cuda, half) is s2_sdpa
    for installed, name in (("flash_attn", "flash_attention_2"), ("flash_attn_interface", "flash_attention_3")):
        monkeypatch.setattr(backends, "_is_installed", lambda module, installed=installed: module == installed)
        assert backends._best(cuda, half) == name
        assert pick_backend("auto", cuda, torch.float32) is s2_sdpa
        with pytest.raises(ModelError, match="bfloat16 or float16"):
            pick_backend(name, cuda, torch.float32)


def test_flex_refuses_what_it_can_not_do():
    q, k, v = inputs_for((8, (((0, 8),),)), (4, 2), dtype=torch.float32)
    flex = pick_backend("flex_attention", torch.device("cpu"), torch.float32)
    with pytest.raises(ModelError, match="no backward pass on CPU"):
        flex(q, k, v, (((0, 8),),), Groups(4), None, 0.0)
    with pytest.raises(ModelError, match="dropout"):
        flex(q, k, v, (((0, 8),),), Groups(4), None, 0.1)
