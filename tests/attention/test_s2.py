"""S2: the definition, the backend against the reference, and the invariants seen through a real model."""

from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layout_strategy import layouts
from peft import LoraConfig, get_peft_model
from s2_reference import HEAD_COUNTS, assert_equal_with_gradients, inputs_for, reference
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from lengthen._compat import enable_activation_checkpointing
from lengthen.attention import s2_first_shifted_head, s2_mask, s2_segments, set_group_size, use_full_by_layout
from lengthen.attention.documents import find_spans
from lengthen.attention.layout import Layout
from lengthen.attention.reference import groups_mask
from lengthen.attention.sdpa import s2_sdpa
from lengthen.attention_pattern import Groups, layer_patterns, register_pattern
from lengthen.data.blocks import Block
from lengthen.data.collate import collate
from lengthen.errors import LengthenError, ModelError
from lengthen.training.objective import CausalLMObjective

pytestmark = pytest.mark.invariants


@pytest.mark.parametrize(
    ("length", "group", "plain", "shifted"),
    [
        (8, 4, [0, 4, 8], [0, 2, 6, 8]),
        (9, 4, [0, 4, 8, 9], [0, 2, 6, 9]),
        (2, 4, [0, 2], [0, 2]),
        (7, 5, [0, 5, 7], [0, 2, 7]),
        (1, 2, [0, 1], [0, 1]),
        (3, 2, [0, 2, 3], [0, 1, 3]),
    ],
)
def test_cut_points(length, group, plain, shifted):
    assert s2_segments(length, group, False) == plain
    assert s2_segments(length, group, True) == shifted


@pytest.mark.parametrize(
    ("heads", "kv", "first"), [(8, 8, 4), (9, 3, 6), (32, 8, 16), (9, 1, 5), (8, 1, 4), (3, 3, 2), (1, 1, 1)]
)
def test_first_shifted_head(heads, kv, first):
    assert s2_first_shifted_head(heads, kv) == first


@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.integers(2, 20), st.booleans())
def test_mask_is_causal_local_and_inside_documents(lengths, group, shifted):
    mask = s2_mask(lengths, group, shifted)
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    position = torch.cat([torch.arange(n) for n in lengths])
    query, key = mask.nonzero(as_tuple=True)
    assert (key <= query).all()
    assert (document[key] == document[query]).all()
    assert (position[query] - position[key] < group).all()
    assert mask.diagonal().all()


def test_short_document_sees_full_attention():
    for shifted in (False, True):
        assert torch.equal(s2_mask([5], 10, shifted), torch.ones(5, 5, dtype=torch.bool).tril())


def test_sinks_are_seen_by_every_later_token_of_their_document():
    without, with_sinks = s2_mask([3, 12], 4, True), s2_mask([3, 12], 4, True, sinks=2)
    assert not without[14, 3:5].any()
    assert with_sinks[14, 3:5].all()
    assert torch.equal(with_sinks[:, 5:], without[:, 5:])
    assert not with_sinks[3:, :3].any()


def test_sinks_must_fit_half_a_group():
    with pytest.raises(LengthenError, match="must be 0 to 2"):
        s2_mask([8], 4, False, sinks=3)


def test_group_below_two_is_refused():
    with pytest.raises(LengthenError, match="at least 2"):
        s2_segments(8, 1, False)


def test_patterns_for_ablation():
    (plain,), (even, odd), (full,) = (layer_patterns(name) for name in ("plain", "alternate", "full"))
    assert plain(8, 4) == even(8, 4) == ([0, 4, 8], [0, 4, 8])
    assert odd(8, 4) == ([0, 2, 6, 8], [0, 2, 6, 8])
    assert full(8, 4) == ([0, 8], [0, 8])
    with pytest.raises(LengthenError, match="did you mean 'alternate'"):
        layer_patterns("alternat")


def test_a_pattern_of_ones_own():
    register_pattern("thirds", lambda n, g: ([0, n], [0, n // 3, n] if n > 2 else [0, n]))
    assert not groups_mask([9], Groups(4, 0, *layer_patterns("thirds")), 1)[8, 2]
    assert groups_mask([9], Groups(4, 0, *layer_patterns("thirds")), 0)[8, 2]
    with pytest.raises(LengthenError, match="already"):
        register_pattern("thirds", lambda n, g: ([0, n], [0, n]))
    with pytest.raises(LengthenError, match="must begin with 0"):
        Groups(4, 0, lambda n, g: ([0, n], [0, n, n])).cuts(5, 1)
    with pytest.raises(LengthenError, match="inside 2 sinks"):
        Groups(4, 2, lambda n, g: ([0, 1, n], [0, n])).cuts(5, 0)


def test_alternate_turns_with_the_layers_and_full_equals_evaluation():
    model, ids = llama(), torch.randint(0, 50, (1, 32))
    set_group_size(model, 8, pattern="alternate")
    first, second = (layer.self_attn.s2_groups for layer in model.model.layers)
    assert (first.cuts(8, 1), second.cuts(8, 0)) == ([0, 8], [0, 4, 8])
    set_group_size(model, 8, pattern="full")
    torch.testing.assert_close(hidden(model.train(), input_ids=ids), hidden(model.eval(), input_ids=ids))


@given(
    layouts(),
    st.integers(2, 17),
    st.sampled_from(HEAD_COUNTS),
    st.sampled_from([None, 0.3]),
    st.integers(0, 3),
    st.sampled_from([*layer_patterns("s2"), *layer_patterns("alternate"), *layer_patterns("full")]),
)
def test_sdpa_equals_reference_forward_and_backward(layout, group, head_counts, scaling, sinks, pattern):
    _, documents = layout
    inputs = inputs_for(layout, head_counts)
    groups = Groups(group, min(sinks, group // 2), pattern)
    ours = s2_sdpa(*inputs, documents, groups, scaling)
    assert_equal_with_gradients(ours, reference(*inputs, documents, groups, scaling), inputs)


def llama(heads=4, kv=2, **more):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=8 * heads, intermediate_size=48, num_hidden_layers=2, num_attention_heads=heads,
        num_key_value_heads=kv, head_dim=8, max_position_embeddings=128, attn_implementation="s2", **more,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    set_group_size(model, 8)
    return model


def hidden(model, **inputs):
    return model.model(**inputs, use_cache=False).last_hidden_state


@pytest.mark.parametrize(("heads", "kv"), [(4, 2), (9, 3), (4, 1)])
def test_training_output_has_no_gradient_to_later_inputs(heads, kv):
    model = llama(heads, kv).train()
    embeddings = torch.randn(1, 29, 8 * heads, requires_grad=True)
    out = hidden(model, inputs_embeds=embeddings)
    for t in (0, 3, 7, 11, 20):
        (gradient,) = torch.autograd.grad(out[0, t].sum(), embeddings, retain_graph=True)
        assert gradient[0, t + 1 :].abs().max() == 0
        assert gradient[0, t].abs().max() > 0


def test_training_differs_from_evaluation_only_beyond_half_a_group():
    model = llama()
    ids = torch.randint(0, 50, (1, 32))
    trained, evaluated = hidden(model.train(), input_ids=ids), hidden(model.eval(), input_ids=ids)
    torch.testing.assert_close(trained[:, :4], evaluated[:, :4])
    assert not torch.allclose(trained[:, 8:], evaluated[:, 8:], atol=1e-3)


def test_evaluation_is_the_ordinary_full_attention():
    model = llama().eval()
    ids = torch.randint(0, 50, (2, 21))
    mask = torch.ones_like(ids)
    mask[1, :6] = 0
    ours = model(input_ids=ids, attention_mask=mask).logits
    generated = model.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False)
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(ours[mask.bool()], model(input_ids=ids, attention_mask=mask).logits[mask.bool()])
    assert torch.equal(generated, model.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False))


def test_packed_documents_are_isolated_and_equal_to_each_alone():
    model = llama().train()
    lengths = [13, 1, 20]
    ids = torch.randint(0, 50, (1, sum(lengths)))
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    packed = hidden(model, input_ids=ids, position_ids=positions)
    start = 0
    for length in lengths:
        alone = hidden(model, input_ids=ids[:, start : start + length])
        torch.testing.assert_close(packed[:, start : start + length], alone)
        start += length


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(side):
    model = llama().train()
    ids = torch.randint(0, 50, (1, 19))
    padded = torch.full((2, 30), 7)
    mask = torch.zeros(2, 30, dtype=torch.long)
    span = slice(11, 30) if side == "left" else slice(0, 19)
    padded[0, span], mask[0, span] = ids, 1
    padded[1], mask[1] = torch.randint(0, 50, (30,)), 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    out = hidden(model, input_ids=padded, attention_mask=mask, position_ids=positions)
    torch.testing.assert_close(out[:1, span], hidden(model, input_ids=ids))
    torch.testing.assert_close(out[1:], hidden(model, input_ids=padded[1:]))
    assert out.isfinite().all()


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant):
    ids = torch.randint(0, 50, (1, 30))
    gradients = []
    for checkpointing in (False, True):
        model = llama().train()
        if checkpointing:
            enable_activation_checkpointing(model, {"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        gradients.append(model.model.layers[0].self_attn.q_proj.weight.grad)
    torch.testing.assert_close(*gradients)


def test_no_dense_mask_is_built_in_training(monkeypatch):
    def dense(self):
        raise AssertionError("a (T, T) mask was built")

    monkeypatch.setattr(Layout, "dense", property(dense))
    positions = torch.cat([torch.arange(9), torch.arange(11)])[None]
    hidden(llama().train(), input_ids=torch.randint(0, 50, (1, 20)), position_ids=positions)


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=3), min_size=1, max_size=3))
def test_a_batch_says_where_its_documents_are(rows):
    """What the mask would tell, which is then not read: a GPU would be waited for."""
    batch = collate([Block(np.arange(sum(lengths)), tuple(lengths)) for lengths in rows], 0)
    objective = CausalLMObjective(llama().train())
    with patch("lengthen.attention.layout.find_spans", wraps=find_spans) as read:
        told = objective(**batch)
        assert read.call_count == 0
        found = objective(**{key: value for key, value in batch.items() if key != "documents"})
        assert read.call_count == 1
        assert find_spans(*read.call_args.args) == batch["documents"]
    assert torch.equal(told, found)


def test_full_attention_finds_packed_documents_without_a_mask(monkeypatch):
    model = llama().train()
    model.set_attn_implementation("sdpa")
    batch = {"input_ids": torch.randint(0, 50, (2, 20)), "position_ids": torch.cat([torch.arange(9), torch.arange(11)])}
    batch["position_ids"] = batch["position_ids"].repeat(2, 1)
    before = hidden(model, **batch)
    assert use_full_by_layout(model)
    monkeypatch.setattr(Layout, "dense", property(lambda self: pytest.fail("a (T, T) mask was built")))
    torch.testing.assert_close(hidden(model, **batch), before)


def test_full_attention_stays_where_the_layout_can_not_be_used():
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, attn_logit_softcapping=5.0, attn_implementation="eager",
    )  # fmt: skip
    model = Gemma2ForCausalLM(config)
    assert not use_full_by_layout(model)
    assert model.config._attn_implementation == "eager"


def test_hole_in_the_padding_is_refused():
    mask = torch.ones(1, 10, dtype=torch.long)
    mask[0, 4] = 0
    with pytest.raises(LengthenError, match="padding inside a document"):
        hidden(llama().train(), input_ids=torch.randint(0, 50, (1, 10)), attention_mask=mask)


def test_missing_group_size_is_refused():
    model = llama().train()
    for layer in model.model.layers:
        del layer.self_attn.s2_groups
    with pytest.raises(ModelError, match="set_group_size"):
        hidden(model, input_ids=torch.randint(0, 50, (1, 10)))


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_ready_made_mask_is_read(dtype):
    model = llama().train()
    ids = torch.randint(0, 50, (2, 30))
    documents, positions = torch.zeros(2, 30, dtype=torch.long), torch.arange(30).repeat(2, 1)
    documents[0, 13:], positions[0, 13:] = 1, torch.arange(17)
    mask = (documents[:, None, :, None] == documents[:, None, None, :]) & torch.ones(30, 30, dtype=torch.bool).tril()
    if dtype.is_floating_point:
        mask = torch.where(mask, 0.0, torch.finfo(dtype).min)
    expected = torch.cat([hidden(model, input_ids=ids[i : i + 1], position_ids=positions[i : i + 1]) for i in (0, 1)])
    torch.testing.assert_close(hidden(model, input_ids=ids, position_ids=positions, attention_mask=mask), expected)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(1, 1, 6, 6), "not causal attention inside documents"),
        (torch.full((1, 1, 6, 6), -0.5), "adds to the scores"),
        (torch.zeros(1, 4, 6, 6), "shape"),
    ],
)
def test_ready_made_mask_that_is_no_packing_is_refused(mask, message):
    with pytest.raises(LengthenError, match=message):
        hidden(llama().train(), input_ids=torch.randint(0, 50, (1, 6)), attention_mask=mask)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sinks", [0, 2])
def test_half_precision_is_as_near_to_the_reference_as_attention_in_it_is(dtype, sinks):
    layout, groups = (40, (((0, 25), (25, 15)),)), Groups(8, sinks)
    inputs = inputs_for(layout, (4, 2))
    expected = reference(*inputs, layout[1], groups)
    ours = s2_sdpa(*(x.to(dtype) for x in inputs), layout[1], groups)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), expected, atol=8 * torch.finfo(dtype).eps, rtol=0)


def test_compiled_model_gives_the_same_loss_and_gradients():
    ids = torch.randint(0, 50, (2, 30))
    positions = torch.cat([torch.arange(13), torch.arange(17)]).repeat(2, 1)
    results = []
    for compiled in (False, True):
        model = llama().train()
        forward = torch.compile(model, backend="aot_eager") if compiled else model
        loss = forward(input_ids=ids, position_ids=positions, labels=ids, use_cache=False).loss
        loss.backward()
        results.append([loss, *(p.grad for p in model.parameters())])
    torch.testing.assert_close(*results)


def test_groups_are_found_below_an_adapter():
    model = get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"])).train()
    for layer in model.get_base_model().model.layers:
        del layer.self_attn.s2_groups
    set_group_size(model, 8)
    ids = torch.randint(0, 50, (1, 30))
    model(input_ids=ids, labels=ids).loss.backward()
    with_adapter = model(input_ids=ids).logits  # LoRA's B starts at zero: the base's own output
    torch.testing.assert_close(with_adapter, llama().train()(input_ids=ids).logits)
    assert all(p.grad is not None for name, p in model.named_parameters() if "lora_B" in name)
