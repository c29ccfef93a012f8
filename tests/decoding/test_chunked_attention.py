"""A chunk behind a cache is read as by transformers' own attention, without a mask."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lengthen.decoding import prefill as reading
from lengthen.decoding.chunked_attention import chunked_attention, chunked_mask, reading_chunks
from lengthen.decoding.prefill import bytes_per_token, default_chunk, prefill
from lengthen.evaluation.losses import token_losses

SIZES = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip


def llama(device="cpu", dtype=torch.float32, attention="sdpa", **config):
    torch.manual_seed(0)
    model = LlamaForCausalLM._from_config(
        LlamaConfig(**(SIZES | {"max_position_embeddings": 4096} | config)), attn_implementation=attention, dtype=dtype
    )
    return model.to(device).eval()


@pytest.mark.parametrize(("heads", "value_size"), [((4, 4), 8), ((4, 2), 8), ((4, 1), 8), ((4, 2), 6)])
@pytest.mark.parametrize(("chunk", "length"), [(1, 9), (3, 9), (9, 9), (8, 9)])
def test_equal_to_transformers_attention_under_its_mask(heads, value_size, chunk, length):
    generator = torch.Generator().manual_seed(0)
    module = torch.nn.Module()
    module.is_causal, module.num_key_value_groups = True, heads[0] // heads[1]
    query, key, value = (
        torch.randn(2, count, tokens, size, generator=generator)
        for count, tokens, size in ((heads[0], chunk, 8), (heads[1], length, 8), (heads[1], length, value_size))
    )
    mask = torch.ones(1, 1, chunk, length, dtype=torch.bool).tril(length - chunk)
    expected, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=0.3)
    ours, _ = chunked_attention(module, query, key, value, None, scaling=0.3)
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)
    assert ours.is_contiguous()


def test_a_model_reads_chunks_as_it_reads_the_whole():
    ids = torch.randint(64, (2, 50), generator=torch.Generator().manual_seed(1))
    own, plain = llama(attention="chunked"), llama()
    for chunk in (7, 16, 49):
        torch.testing.assert_close(token_losses(own, ids, 1, chunk), token_losses(plain, ids, 1, 49), atol=1e-5, rtol=0)


def test_a_sliding_window_keeps_its_mask():
    torch.manual_seed(0)
    config = MistralConfig(**SIZES, sliding_window=10, max_position_embeddings=256)
    plain = MistralForCausalLM._from_config(config, attn_implementation="sdpa").eval()
    ids = torch.randint(64, (1, 50), generator=torch.Generator().manual_seed(1))
    whole = token_losses(plain, ids, 1, 49)
    plain.set_attn_implementation("chunked")
    torch.testing.assert_close(token_losses(plain, ids, 1, 16), whole, atol=1e-5, rtol=0)


def test_only_plain_causality_has_no_mask():
    arguments = {"batch_size": 1, "q_length": 3, "kv_length": 8, "q_offset": 5}
    assert chunked_mask(**arguments) is None
    assert chunked_mask(**arguments, local_size=4) is not None
    assert chunked_mask(**arguments, allow_is_causal_skip=False).shape == (1, 1, 3, 8)
    padded = chunked_mask(**arguments, attention_mask=torch.tensor([[0] + [1] * 7], dtype=torch.bool))
    assert not padded[..., 0].any()
    assert chunked_mask(**(arguments | {"kv_length": 9})) is not None, "memory behind the tokens, which nobody may see"


def test_on_cpu_nothing_changes():
    model = llama()
    with reading_chunks(model):
        assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("kv_heads", [4, 1])
def test_memory_of_a_token(kv_heads):
    """What torch allocates at most while a layer is computed, counted on CPU, is what is planned or less."""
    sizes = {"hidden_size": 256, "intermediate_size": 700, "num_key_value_heads": kv_heads, "num_hidden_layers": 4}
    model = llama(dtype=torch.bfloat16, **sizes)
    length = 4096
    ids = torch.randint(64, (1, length))
    planned = length * bytes_per_token(model.config, model.dtype)
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        prefill(model, ids, length)
    held = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    assert 0.3 * planned < most < planned


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_flash_reads_chunks_on_a_gpu(dtype, kv_heads):
    model = llama("cuda", dtype, num_key_value_heads=kv_heads)
    ids = torch.randint(64, (2, 700), generator=torch.Generator().manual_seed(1)).cuda()
    whole = token_losses(model, ids, 1, 699)
    with reading_chunks(model):
        assert model.config._attn_implementation == "chunked"
    assert model.config._attn_implementation == "sdpa"
    torch.testing.assert_close(token_losses(model, ids, 1, 128), whole, atol=0.05, rtol=0)
    exact = token_losses(llama("cuda", num_key_value_heads=kv_heads), ids, 1, 128)
    torch.testing.assert_close(whole, exact, atol=0.05, rtol=0)


@pytest.mark.gpu
def test_a_chunk_takes_no_memory_for_a_mask():
    model = llama("cuda", torch.bfloat16, num_key_value_heads=1)
    ids = torch.randint(64, (1, 65536 + 4096), device="cuda")
    cache = prefill(model, ids[:, :65536], 65536)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    prefill(model, ids[:, 65536:], 4096, cache)
    added = sum(layer.keys.untyped_storage().nbytes() * 2 for layer in cache.layers)  # where the memory was full
    assert torch.cuda.max_memory_allocated() - before < added + 4096 * 65536


@pytest.mark.gpu
def test_on_a_gpu_the_whole_is_read_where_it_fits(monkeypatch):
    model = llama("cuda", torch.bfloat16)
    assert default_chunk(model, 131072) == 131072
    monkeypatch.setattr(reading, "_SHARE_OF_FREE", 0.001)
    chunk = default_chunk(model, 2**20, batch=64)
    assert chunk < 2**20
    assert chunk == 1 or chunk % 1024 == 0
    assert default_chunk(llama("cuda"), 131072) == 1024, "float32 has no flash kernel, and needs masks"
