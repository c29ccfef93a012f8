"""A cache that grows in place holds what transformers' own holds, whatever is done to it."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import DynamicLayer

from lengthen._compat import with_cache
from lengthen.decoding.kv_cache import GrowingLayer
from lengthen.decoding.prefill import new_cache, prefill

add = st.tuples(st.just("add"), st.one_of(st.integers(1, 4), st.integers(250, 600)))
change = st.one_of(
    st.tuples(st.just("crop"), st.integers(1, 5)),
    st.tuples(st.sampled_from(["repeat", "select", "reorder", "reset", "copy"]), st.just(0)),
)


def do(layer, what, count, states):
    if what == "add":
        layer.update(*states)
    elif what == "crop":
        layer.crop(-min(count, layer.get_seq_length()))
    elif what == "repeat":
        layer.batch_repeat_interleave(2)
    elif what == "select":
        layer.batch_select_indices(torch.tensor([0]))
    elif what == "reorder":
        layer.reorder_cache(torch.arange(len(layer.keys)).flip(0))
    elif what == "reset":
        layer.reset()
    return copy.deepcopy(layer) if what == "copy" else layer


@given(st.lists(st.one_of(add, add, change), max_size=12), st.integers(0, 1000))
def test_as_transformers_own(actions, seed):
    generator = torch.Generator().manual_seed(seed)
    ours, theirs = GrowingLayer(), DynamicLayer()
    for what, count in [("add", 3), *actions]:
        batch = len(theirs.keys) if theirs.is_initialized else 2
        if what != "add" and not theirs.get_seq_length():
            continue
        states = [torch.randn(batch, 2, max(1, count), size, generator=generator) for size in (4, 3)]
        ours, theirs = (do(layer, what, count, states) for layer in (ours, theirs))
        assert ours.get_seq_length() == theirs.get_seq_length()
        if theirs.get_seq_length():
            assert torch.equal(ours.keys, theirs.keys)
            assert torch.equal(ours.values, theirs.values)


def test_tokens_are_written_behind_the_others():
    layer = GrowingLayer()
    layer.update(torch.zeros(1, 2, 1000, 4), torch.zeros(1, 2, 1000, 4))
    place = layer.keys.data_ptr()
    for _ in range(125):
        layer.update(torch.ones(1, 2, 2, 4), torch.ones(1, 2, 2, 4))
    assert layer.keys.data_ptr() == place, "an eighth more, or 256 tokens, find room"
    assert layer.keys.untyped_storage().nbytes() <= 1.3 * 1000 * 2 * 4 * 4
    assert layer.keys.sum() == 250 * 2 * 4


@pytest.mark.parametrize("grad", [torch.inference_mode, torch.no_grad])
def test_what_was_read_in_inference_mode_is_continued_outside(grad):
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    ).eval()
    ids = torch.randint(64, (1, 12))
    cache = prefill(model, ids[:, :-1], 5)
    assert isinstance(cache.layers[0], GrowingLayer)
    with grad():
        continued = model(input_ids=ids[:, -1:], **with_cache(cache)).logits[:, -1]
        whole = model(input_ids=ids, **with_cache(new_cache(model))).logits[:, -1]
    torch.testing.assert_close(continued, whole, atol=1e-5, rtol=0)
