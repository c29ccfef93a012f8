"""Position scaling: the formulas against transformers' own frequencies, composition, refusals."""

import math

import pytest
import torch
from transformers import AutoConfig, Gemma3TextConfig, GPT2Config, GPTNeoXConfig, LlamaConfig, LlamaModel, Phi3Config

from lengthen.context import base_context, extend, is_length_dependent
from lengthen.errors import ContextError

pytestmark = pytest.mark.invariants


def llama(**more):
    return LlamaConfig(
        vocab_size=8, hidden_size=32, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=256, **more,
    )  # fmt: skip


def frequencies(config):
    return LlamaModel(config).rotary_emb.inv_freq


BASE = 1.0 / 10000 ** (torch.arange(0, 16, 2) / 16)


def test_linear_divides_by_the_rounded_up_factor():
    config = extend(llama(), 300)
    assert config.max_position_embeddings == 300
    assert config.original_max_position_embeddings == 256
    assert config.rope_parameters["factor"] == 2
    torch.testing.assert_close(frequencies(config), BASE / 2)


def test_ntk_is_a_raised_base():
    config = extend(llama(), 1024, "ntk")
    theta = 10000 * 4 ** (16 / 14)
    torch.testing.assert_close(frequencies(config), 1.0 / theta ** (torch.arange(0, 16, 2) / 16))
    # Source of the exponent: the lowest frequency is interpolated fully.
    torch.testing.assert_close(frequencies(config)[-1], BASE[-1] / 4)


def test_ntk_uses_the_rotary_dimension():
    config = GPTNeoXConfig(hidden_size=64, num_attention_heads=2, max_position_embeddings=128, rotary_pct=0.25)
    theta = extend(config, 256, "ntk").rope_parameters["rope_theta"]
    assert math.isclose(theta, 10000 * 2 ** (8 / 6))


def test_yarn_keeps_high_and_divides_low_frequencies():
    config = extend(llama(), 2048, "yarn")
    inv_freq = frequencies(config)
    assert config.rope_parameters["original_max_position_embeddings"] == 256
    torch.testing.assert_close(inv_freq[0], BASE[0])
    torch.testing.assert_close(inv_freq[-1], BASE[-1] / 8)
    assert math.isclose(LlamaModel(config).rotary_emb.attention_scaling, 0.1 * math.log(8) + 1)


def test_llama3_keeps_high_and_divides_low_frequencies():
    inv_freq = frequencies(extend(llama(), 2048, "llama3"))
    torch.testing.assert_close(inv_freq[0], BASE[0])
    torch.testing.assert_close(inv_freq[-1], BASE[-1] / 8)


def test_theta_and_none():
    assert extend(llama(), 512, "theta", theta=5e5).rope_parameters["rope_theta"] == 5e5
    config = extend(llama(), 512, "none")
    assert config.max_position_embeddings == 512
    torch.testing.assert_close(frequencies(config), BASE)


def test_nothing_is_extended_by_none_at_the_bases_own_context():
    for base in (llama(), extend(llama(), 512, "yarn")):
        assert extend(base, base_context(base), "none").to_dict() == base.to_dict()
        with pytest.raises(ContextError, match=r"exactly that with context\.method=none"):
            extend(base, base_context(base), "yarn")
        with pytest.raises(ContextError, match="choose a larger target"):
            extend(base, base_context(base) - 1, "none")


@pytest.mark.parametrize("method", ["linear", "yarn", "llama3", "ntk"])
def test_two_steps_equal_one(method):
    twice = extend(extend(llama(), 512, method), 2048, method)
    once = extend(llama(), 2048, method)
    assert twice.max_position_embeddings == 2048
    assert twice.original_max_position_embeddings == 256
    torch.testing.assert_close(frequencies(twice), frequencies(once))


@pytest.mark.parametrize(
    ("first", "second"),
    [("linear", "yarn"), ("yarn", "ntk"), ("ntk", "yarn"), ("llama3", "theta"), ("theta", "linear")],
)
def test_other_combinations_are_refused(first, second):
    options = {"theta": {"theta": 1e6}}
    config = extend(llama(), 512, first, **options.get(first, {}))
    with pytest.raises(ContextError, match="compose"):
        extend(config, 1024, second, **options.get(second, {}))


def test_base_that_keeps_its_original_maximum_beside_the_factor():
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 256}
    config = llama(rope_parameters=rope)
    assert base_context(config) == 1024
    extended = extend(config, 2048, "yarn")
    assert extended.rope_parameters["factor"] == 8
    assert extended.rope_parameters["original_max_position_embeddings"] == 256


def test_written_default_attention_factor_follows():
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 128}
    written = llama(rope_parameters={**rope, "attention_factor": 0.1 * math.log(2) + 1})
    assert "attention_factor" not in extend(written, 512, "yarn").rope_parameters
    with pytest.raises(ContextError, match="attention_factor"):
        extend(llama(rope_parameters={**rope, "attention_factor": 1.4}), 512, "yarn")


def test_longrope_from_the_base_and_from_lists():
    lists = {"short_factor": [1.0] * 8, "long_factor": [float(i) for i in range(1, 9)]}
    config = extend(llama(), 1024, "longrope", **lists)
    assert is_length_dependent(config)
    again = extend(config, 2048, "longrope")
    assert again.rope_parameters["long_factor"] == [2.0 * i for i in range(1, 9)]
    with pytest.raises(ContextError, match="8 rotary frequencies"):
        extend(llama(), 1024, "longrope", short_factor=[1.0], long_factor=[1.0])
    with pytest.raises(ContextError, match="brings none"):
        extend(llama(), 1024, "longrope")


def test_longrope_phi3():
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "rope_theta": 1e4}
    config = Phi3Config(
        hidden_size=32, num_attention_heads=2, max_position_embeddings=1024, original_max_position_embeddings=256,
        rope_parameters=rope, pad_token_id=0,
    )  # fmt: skip
    extended = extend(config, 4096, "longrope")
    assert extended.original_max_position_embeddings == 256
    assert extended.rope_parameters["long_factor"] == [16.0] * 8


def test_layers_with_their_own_rope_only_full_attention_scales():
    config = Gemma3TextConfig(max_position_embeddings=256, num_hidden_layers=6)
    before = dict(config.rope_parameters["sliding_attention"])
    extended = extend(config, 1024, "linear")
    assert extended.rope_parameters["full_attention"]["factor"] == 4
    assert extended.rope_parameters["sliding_attention"] == before


def test_survives_saving(tmp_path):
    for method in ("linear", "ntk", "yarn", "llama3"):
        config = extend(llama(), 1024, method)
        config.save_pretrained(tmp_path / method)
        again = AutoConfig.from_pretrained(tmp_path / method)
        torch.testing.assert_close(frequencies(again), frequencies(config))
        assert again.original_max_position_embeddings == 256


def test_the_given_config_is_untouched():
    config = llama()
    before = config.to_dict()
    extend(config, 1024, "yarn")
    assert config.to_dict() == before


def test_refusals():
    with pytest.raises(ContextError, match="larger target"):
        extend(llama(), 256)
    with pytest.raises(ContextError, match="no RoPE"):
        extend(GPT2Config(), 4096)
    with pytest.raises(ContextError, match="below target"):
        extend(llama(), 2048, factor=4)
    with pytest.raises(ContextError, match="unknown position scaling 'dynamic'"):
        extend(llama(), 2048, "dynamic")
    with pytest.raises(ContextError, match=r"needs context\.theta"):
        extend(llama(), 2048, "theta")
