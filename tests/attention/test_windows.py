"""Layers that see less than the whole context under S2: they stay as they are, whatever tells of their windows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layout_strategy import layouts
from s2_reference import HEAD_COUNTS, assert_equal_with_gradients, inputs_for
from transformers import AutoConfig, AutoModelForCausalLM

from lengthen.attention import check_s2, keeps_documents_apart, set_group_size
from lengthen.attention.layout import Layout
from lengthen.attention.window import window_attention
from lengthen.errors import ModelError
from lengthen.training.chunked import chunk_layers

CONTEXT = 64
SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": CONTEXT, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
IDS = torch.randint(3, 60, (1, 40), generator=torch.Generator().manual_seed(0))


def build(kind, attention="s2", **more):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SIZES | more)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32).train()
    if attention == "s2":
        set_group_size(model, 8)
    return model


def hidden_states(model):
    with torch.no_grad():
        return model(IDS, use_cache=False, output_hidden_states=True).hidden_states


@given(layouts(), st.sampled_from(HEAD_COUNTS), st.integers(1, 12))
def test_a_window_in_blocks_is_that_of_a_mask(layout, head_counts, window):
    length, documents = layout
    q, k, v = inputs = inputs_for(layout, head_counts)
    seen_BTT = torch.zeros(len(documents), length, length, dtype=torch.bool)
    for row, spans in enumerate(documents):
        for start, size in spans:
            span = slice(start, start + size)
            seen_BTT[row, span, span] = torch.ones(size, size, dtype=torch.bool).tril().triu(1 - window)
    repeated = (x.repeat_interleave(head_counts[0] // head_counts[1], 1) for x in (k, v))
    scores = (q @ next(repeated).transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(~seen_BTT[:, None], -torch.inf)
    expected = (scores.softmax(-1).nan_to_num() @ next(repeated)).transpose(1, 2)
    real_BT11 = seen_BTT.any(-1)[:, :, None, None]
    ours = window_attention(q, k, v, documents, window).masked_fill(~real_BT11, 0)
    assert_equal_with_gradients(ours, expected, inputs)


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("llama4_text", {"attention_chunk_size": 16}),  # whose attention is told of its chunks by the mask alone
        ("gemma3_text", {"sliding_window": 16, "layer_types": ["sliding_attention"] * 3 + ["full_attention"]}),
        ("olmo3", {"sliding_window": 2 * CONTEXT}),  # beside whole layers a window stays one
    ],
)
def test_window_layers_stay_as_they_are_beside_whole_ones(kind, more, monkeypatch):
    model = build(kind, **more)
    assert check_s2(model) == (1, 4), "the last one"
    with monkeypatch.context() as patched:
        patched.delattr(Layout, "dense")  # no layer asks for a (T, T) mask
        ours = hidden_states(model)
    full = hidden_states(build(kind, "sdpa", **more))
    for layer in range(4):
        torch.testing.assert_close(ours[layer], full[layer], msg=f"input of layer {layer}")
    assert (ours[4] - full[4]).abs().max() > 1e-3
    with pytest.raises(ModelError, match=r"window of its own.*sequence_chunk=0"):
        chunk_layers(model, 16)


@pytest.mark.parametrize(("kind", "window"), [("phi3", 4 * CONTEXT), ("mistral", CONTEXT), ("starcoder2", 2 * CONTEXT)])
def test_a_window_of_at_least_the_context_in_all_layers_is_none(kind, window):
    model = build(kind, sliding_window=window)
    assert check_s2(model) == (4, 4)
    for ours, without in zip(hidden_states(model), hidden_states(build(kind, sliding_window=None)), strict=True):
        torch.testing.assert_close(ours, without)
    chunk_layers(model, 16)


@pytest.mark.parametrize("kind", ["phi3", "phimoe"])  # the latter's attention, too, is told by the mask alone
def test_a_shorter_one_in_all_layers_leaves_nothing_to_s2(kind):
    with pytest.raises(ModelError, match="window of its own"):
        check_s2(build(kind, sliding_window=CONTEXT - 1))


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("llama4_text", {"attention_chunk_size": 16}),
        ("gemma3_text", {"sliding_window": 5}),
        ("cohere2", {"sliding_window": 9}),
    ],
)
def test_windows_and_chunks_of_a_packed_document_are_counted_from_its_own_beginning(kind, more):
    model = build(kind, **more)
    assert keeps_documents_apart(model)
    positions = torch.cat([torch.arange(13), torch.arange(27)])[None]
    with torch.no_grad():
        packed = model(IDS, position_ids=positions, use_cache=False).logits[:, 13:]
        alone = model(IDS[:, 13:], use_cache=False).logits
    torch.testing.assert_close(packed, alone)
