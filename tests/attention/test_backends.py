"""The other backends against the same reference, and which backend is picked where."""

import pytest
import torch
from cpu_varlen import CALLS
from hypothesis import given
from hypothesis import strategies as st
from layout_strategy import layouts
from s2_reference import HEAD_COUNTS, assert_equal_with_gradients, inputs_for, reference
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import LlamaConfig, LlamaForCausalLM

from lengthen._compat import torch_varlen, without_cudnn_attention
from lengthen.attention import backends, set_backend, set_group_size
from lengthen.attention.backends import pick_backend
from lengthen.attention.documents import is_regular
from lengthen.attention.flash import s2_flash
from lengthen.attention.flex import s2_flex
from lengthen.attention.sdpa import s2_sdpa
from lengthen.attention_pattern import Groups, head_parts, layer_patterns
from lengthen.errors import ModelError
from lengthen.training.memory import enable_checkpointing

SIZES = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "attn_implementation": "s2",
}  # fmt: skip
PATTERNS = [*layer_patterns("s2"), *layer_patterns("alternate"), *layer_patterns("full")]


@given(
    layouts(), st.integers(2, 17), st.sampled_from(HEAD_COUNTS), st.sampled_from([None, 0.3]), st.integers(0, 3),
    st.sampled_from(PATTERNS), st.sampled_from([6, 8]),
)  # fmt: skip
def test_varlen_equals_reference_forward_and_backward(layout, group, head_counts, scaling, sinks, pattern, value_size):
    """torch's own operator and its gradient, with slow kernels in the place of those for CUDA."""
    _, documents = layout
    inputs = inputs_for(layout, head_counts, value_size)
    groups = Groups(group, min(sinks, group // 2), pattern)
    CALLS.clear()
    ours = s2_flash(*inputs, documents, groups, scaling, varlen=torch_varlen())
    assert len(CALLS) == len(head_parts(*head_counts, documents, groups)) <= 2, "one call a half"
    assert_equal_with_gradients(ours, reference(*inputs, documents, groups, scaling), inputs)


@pytest.mark.parametrize("head_counts", [(4, 4), (8, 2), (4, 1)])
def test_varlen_copies_nothing_on_the_way_in(monkeypatch, head_counts):
    """A half is a view of the queries, keys and values as models give them."""
    given, taken = inputs_for((32, (((0, 32),),)), head_counts, 8), []

    def kernel(q, k, v, *lengths, **options):
        taken.extend((q, k, v))
        return torch_varlen()(q, k, v, *lengths, **options)

    s2_flash(*given, (((0, 32),),), Groups(8), varlen=kernel)
    memory = [x.untyped_storage().data_ptr() for x in given]
    assert [x.untyped_storage().data_ptr() for x in taken] == memory * 2


@pytest.mark.parametrize(("keep", "times"), [(False, 2), (True, 1)])
def test_varlen_is_kept_by_selective_checkpointing(keep, times):
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**SIZES)).to(torch.bfloat16).train()
        set_group_size(model, 8)
        for layer in model.model.layers:
            layer.self_attn.s2_backend = backends.varlen_backend("torch_varlen")
        if checkpointing:
            enable_checkpointing(model, keep)
        ids = torch.randint(0, 50, (1, 30), generator=torch.Generator().manual_seed(1))
        CALLS.clear()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        gradients.append(model.model.layers[0].self_attn.k_proj.weight.grad)
    torch.testing.assert_close(*gradients)
    assert len(CALLS) == 2 * 2 * times, "two calls in each of two layers"


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


CPU, CUDA, HALF = torch.device("cpu"), torch.device("cuda"), torch.bfloat16


@pytest.fixture
def gpu(monkeypatch):
    """Pretend to have a GPU with a compute capability, and packages installed."""

    def pretend(capability, *installed):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(backends, "_is_there", lambda name: name in installed)
        monkeypatch.setattr(backends, "varlen_backend", lambda name: lambda *arguments: name)
        monkeypatch.setattr(backends, "s2_sdpa", lambda *arguments: "sdpa")

    return pretend


LONG, PACKED = (((0, 32_768),),), (((0, 100), (100, 32_668)),)


def picked(documents=LONG, dropout=0.0, size=64, dtype=HALF, group=8192, pattern="s2"):
    """The backend that `auto` takes for a batch."""
    q = torch.zeros(1, 1, 1, 1).expand(1, 32, sum(length for _, length in documents[0]), size)
    groups = Groups(group, pattern=layer_patterns(pattern)[0])
    return pick_backend("auto", CUDA, dtype)(q, q, q, documents, groups, None, dropout)


def test_a_backend_is_picked_for_the_device_that_the_model_will_be_on(gpu):
    """As the shards of FSDP2 will, which are made on the CPU."""
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).to(torch.bfloat16)
    set_group_size(model, 8)
    layers = [layer.self_attn for layer in model.model.layers]
    assert all(layer.s2_backend is s2_sdpa for layer in layers)
    with pytest.raises(ModelError, match="needs a CUDA GPU"):
        set_backend(model, "torch_varlen", CPU)
    gpu((9, 0), "torch_varlen")
    set_backend(model, "torch_varlen", CUDA)
    assert {(layer.s2_backend(), layer.s2_window_backend()) for layer in layers} == {("torch_varlen", "torch_varlen")}
    assert all(layer.s2_groups.size == 8 for layer in layers)


def test_auto_decides_by_device_and_layout(gpu):
    assert pick_backend("auto", CPU, HALF) is s2_sdpa
    gpu((9, 0), "torch_varlen", "flash_attention_2")
    assert (picked(), picked(PACKED), picked((((0, 32_700),),))) == ("sdpa", "torch_varlen", "torch_varlen")
    assert (picked(dropout=0.1), picked(PACKED, size=512)) == ("flash_attention_2", "sdpa")
    assert picked(PACKED, dtype=torch.float32) == "sdpa"
    gpu((9, 0), "torch_varlen", "flash_attention_3")
    assert (picked(), picked(PACKED), picked(dropout=0.1)) == ("flash_attention_3", "flash_attention_3", "sdpa")
    gpu((8, 6), "torch_varlen")
    assert (picked(), picked(PACKED), picked(dropout=0.1)) == ("torch_varlen", "torch_varlen", "sdpa")
    gpu((12, 0), "flash_attention_2")
    assert picked() == "flash_attention_2"
    gpu((9, 0))
    assert picked(PACKED) == "sdpa"
    gpu((7, 5), "torch_varlen", "flash_attention_2")
    assert picked(PACKED) == "sdpa"


def test_auto_takes_fewer_calls_where_there_is_little_to_compute(gpu):
    """The faster one of each row that was measured on an H100 (docs/results/gpu.md)."""
    gpu((9, 0), "torch_varlen")
    short = (((0, 8192),),)
    assert picked(short, size=128, group=2048) == "torch_varlen"
    assert picked(short, size=128, pattern="full") == "sdpa"
    assert [picked(size=128, group=group) for group in (2048, 8192)] == ["sdpa"] * 2


def test_a_namespace_is_no_flash_attention(monkeypatch, tmp_path):
    """As flash-attn-4 installs itself, beside version 2 or alone."""
    (tmp_path / "flash_attn" / "cute").mkdir(parents=True)
    (tmp_path / "flash_attn" / "cute" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    with pytest.raises(ModelError, match="package flash-attn, which is not installed"):
        pick_backend("flash_attention_2", CUDA, HALF)
    assert pick_backend("auto", CUDA, HALF).with_dropout is s2_sdpa


def test_what_is_refused(monkeypatch):
    for name in ("torch_varlen", "flash_attention_2"):
        with pytest.raises(ModelError, match="needs a CUDA GPU"):
            pick_backend(name, CPU, HALF)
        with pytest.raises(ModelError, match="bfloat16 or float16"):
            pick_backend(name, CUDA, torch.float32)
    with pytest.raises(ModelError, match="package flash-attn-3, which is not installed"):
        pick_backend("flash_attention_3", CUDA, HALF)
    q = torch.zeros(1, 1, 8, 8)
    with pytest.raises(ModelError, match="no attention dropout"):
        backends.varlen_backend("torch_varlen")(q, q, q, (((0, 8),),), Groups(4), None, 0.1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    with pytest.raises(ModelError, match=r"capability 8\.0"):
        pick_backend("torch_varlen", CUDA, HALF)
    monkeypatch.setattr(backends, "torch_varlen", lambda: None)
    with pytest.raises(ModelError, match=r"needs torch 2\.11 or later"):
        pick_backend("torch_varlen", CUDA, HALF)


def test_cudnn_is_kept_from_layouts_that_change(monkeypatch):
    """Seen by the switch alone: without a GPU there is no cuDNN to choose."""
    switch = torch.backends.cuda.cudnn_sdp_enabled
    with without_cudnn_attention():
        assert not switch()
    assert switch()
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION), without_cudnn_attention():
        assert switch(), "nothing else is there to choose"
    assert is_regular((((0, 256),), ((0, 256),)), 256)
    assert not any((is_regular((((0, 200),),), 200), is_regular(PACKED, 256), is_regular((((0, 250),),), 256)))


def test_flex_refuses_what_it_can_not_do():
    q, k, v = inputs_for((8, (((0, 8),),)), (4, 2), dtype=torch.float32)
    flex = pick_backend("flex_attention", torch.device("cpu"), torch.float32)
    with pytest.raises(ModelError, match="no backward pass on CPU"):
        flex(q, k, v, (((0, 8),),), Groups(4), None, 0.0)
    with pytest.raises(ModelError, match="dropout"):
        flex(q, k, v, (((0, 8),),), Groups(4), None, 0.1)
