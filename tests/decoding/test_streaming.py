"""A streaming cache is, token for token, an ordinary model over the first and the latest tokens."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from transformers import (
    CohereConfig,
    Glm4Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Qwen3Config,
)
from transformers.models.auto import AutoModelForCausalLM

import lengthen
from lengthen.data.stdlib import stdlib_documents
from lengthen.decoding.generate import generate
from lengthen.decoding.prefill import hidden_chunks, new_cache
from lengthen.decoding.streaming import Streaming, StreamingCache
from lengthen.errors import ContextError, LengthenError, ModelError
from lengthen.head import logits_from

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 16}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "yarn": LlamaConfig(**SIZES, rope_parameters=YARN),
    "q and k norms": Qwen3Config(**SIZES, head_dim=8),
    "a part is rotated": GPTNeoXConfig(**SIZES, rotary_pct=0.5),
    "interleaved": CohereConfig(**SIZES),
    "a part, interleaved": Glm4Config(**SIZES, head_dim=8),
}


def build(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(scope="module")
def one_layer():
    return {name: build(config) for name, config in CONFIGS.items()}


def visible(position, streaming):
    """The places that the token at `position` sees, by the definition: what was held when its chunk began, and on."""
    chunk_start = position - position % streaming.chunk
    old = list(range(chunk_start))
    if len(old) > streaming.sinks + streaming.recent:
        old = old[: streaming.sinks] + old[-streaming.recent :]
    return [*old, *range(chunk_start, position + 1)]


@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=8)
@given(data=st.data())
def test_each_token_sees_the_sinks_and_the_recent_tokens_side_by_side(one_layer, name, data):
    # In one layer, keys depend on their own tokens only, so the ordinary model over what is visible is the truth.
    streaming = Streaming(*(data.draw(st.integers(*bounds)) for bounds in ((0, 4), (1, 9), (1, 6))))
    ids_1T = torch.randint(64, (1, data.draw(st.integers(1, 90))), generator=torch.Generator().manual_seed(1))
    model, cache = one_layer[name], StreamingCache(one_layer[name], streaming)
    ours = torch.cat(list(hidden_chunks(model, ids_1T, streaming.chunk, cache)), dim=1)[0]
    with torch.no_grad():
        for position in range(0, ids_1T.shape[1], 5):
            alone = model.get_decoder()(input_ids=ids_1T[:, visible(position, streaming)], use_cache=False)[0]
            torch.testing.assert_close(ours[position], alone[0, -1], atol=2e-5, rtol=0)


def test_texts_within_the_window_are_read_as_without_streaming(base):
    model, _ = lengthen.load(str(base), "float32")
    ids_1T = torch.randint(257, (1, 32))
    streamed = hidden_chunks(model, ids_1T, 7, StreamingCache(model, Streaming(4, 28, 7)))
    assert torch.equal(torch.cat(list(streamed), dim=1), torch.cat(list(hidden_chunks(model, ids_1T, 7)), dim=1))


def test_the_cache_stays_as_large_positions_small_and_the_sinks_untouched(base):
    model, _ = lengthen.load(str(base), "float32")
    streaming = Streaming(3, 13, 8)
    cache = StreamingCache(model, streaming)
    ids_1T = torch.randint(257, (1, 400))
    sinks = None
    for _, part in zip(hidden_chunks(model, ids_1T, 8, cache), range(50), strict=True):
        layers = cache.layers
        assert [layer.keys.shape[2] for layer in layers] == [layer.values.shape[2] for layer in layers]
        assert layers[0].keys.shape[2] == min(8 * (part + 1), 16)
        assert layers[0].keys.untyped_storage().nbytes() <= 16 * 2 * 8 * 4  # no larger tensor behind it
        assert cache.get_seq_length() < 2 * 16 + 8
        sinks = [layer.keys[:, :, :3].clone() for layer in layers] if sinks is None else sinks
        assert all(torch.equal(layer.keys[:, :, :3], kept) for layer, kept in zip(layers, sinks, strict=True))
    cache.reset()
    again = next(hidden_chunks(model, ids_1T[:, :8], 8, cache))
    assert torch.equal(again, next(hidden_chunks(model, ids_1T[:, :8], 8)))


def losses(model, ids_1T, cache, chunk):
    hidden = torch.cat(list(hidden_chunks(model, ids_1T[:, :-1], chunk, cache)), dim=1)
    return functional.cross_entropy(logits_from(model, hidden)[0], ids_1T[0, 1:], reduction="none")


def python_source(tokenizer, tokens):
    text = max((file.read_text(encoding="utf-8") for file in stdlib_documents("validation")), key=len)
    ids = np.asarray(tokenizer(text, verbose=False)["input_ids"][:tokens])
    assert len(ids) == tokens
    return torch.from_numpy(ids)[None]


def test_perplexity_stays_level_over_twenty_windows_and_five_contexts():
    model, tokenizer = lengthen.load("tiny", "float32")
    window = Streaming(4, 60, 16)
    ids_1T = python_source(tokenizer, 20 * 64)
    streamed = losses(model, ids_1T, StreamingCache(model, window), window.chunk)
    everything = losses(model, ids_1T, new_cache(model), window.chunk)
    within, beyond = slice(64, 256), slice(640, None)
    assert streamed[beyond].mean() < streamed[within].mean() + 1
    assert everything[beyond].mean() > streamed[beyond].mean() + 2


@pytest.mark.slow
def test_a_real_model_needs_the_sinks(smollm2):
    model, tokenizer = lengthen.load(smollm2, "float32")
    ids_1T = python_source(tokenizer, 20 * 128)
    caches = [StreamingCache(model, Streaming(sinks, 128 - sinks, 32)) for sinks in (4, 0)]
    streamed, sliding = (losses(model, ids_1T, cache, 32) for cache in caches)
    assert torch.equal(streamed[:127], sliding[:127])
    assert streamed[1280:].mean() < streamed[128:640].mean() + 0.5
    assert sliding[256:].mean() > streamed[256:].mean() + 0.3


@pytest.mark.parametrize(
    ("config", "error", "part"),
    [
        (GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2), ContextError, "no RoPE"),
        (MistralConfig(**SIZES, sliding_window=8), ModelError, "sliding window"),
        (
            LlamaConfig(**SIZES, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
            ContextError,
            "changes with the length",
        ),
    ],
)
def test_models_whose_keys_cannot_be_moved_are_refused(config, error, part):
    with pytest.raises(error, match=part):
        StreamingCache(build(config), Streaming(4, 8, 4))


def test_keys_that_know_their_positions_are_refused():
    class Absolute(torch.nn.Module):
        """What a rotation that is no rotation does: keys also grow with their positions."""

        def __init__(self, rotary):
            super().__init__()
            self.rotary = rotary

        def forward(self, x, position_ids):
            cos, sin = self.rotary(x, position_ids)
            return cos * (1 + position_ids[..., None] / 50), sin

    model = build(CONFIGS["llama"])
    model.model.rotary_emb = Absolute(model.model.rotary_emb)
    with pytest.raises(ModelError, match="more than RoPE's distances"):
        StreamingCache(model, Streaming(4, 8, 4))


def test_sizes():
    assert Streaming.within(8192) == Streaming(4, 6140, 512)
    assert Streaming.within(256, 0, 255) == Streaming(0, 255, 1)
    for sinks, recent in ((-1, 8), (4, 0), (4, 252)):
        with pytest.raises(LengthenError, match=f"`sinks={sinks}` and `recent={recent}`"):
            Streaming.within(256, sinks, recent)


def test_generation_goes_on_beyond_the_context(base):
    model, tokenizer = lengthen.load(str(base), "float32")  # a context of 32 tokens
    short, streaming = "abc abc", Streaming.within(32)
    assert generate(model, tokenizer, short, 8, streaming=streaming).text == generate(model, tokenizer, short, 8).text
    read = []
    result = generate(
        model, tokenizer, "abc " * 30, 50, 1.0, streaming=streaming, on_read=lambda *counts: read.append(counts)
    )
    assert (result.prompt_tokens, result.new_tokens) == (121, 50)
    assert read == [(done, 120) for done in range(0, 121, 8)]
