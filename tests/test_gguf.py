"""Positions of GGUF files: what a file states is in the config, and llama.cpp computes the same with it."""

import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("gguf")

from transformers import LlamaConfig, LlamaModel

import lengthen
from gguf_files import llama3_divisors, write_gguf
from lengthen.context import base_context, extend, is_length_dependent
from lengthen.errors import ModelError
from lengthen.gguf import add_positions
from lengthen.models.load import load_config
from lengthen.models.resolve import resolve_model

ROTARY = 32
YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 8.0, "rope.scaling.original_context_length": 32}
CASES = {
    "none": ({}, {}, {"rope_type": "default"}),
    "none, said": ({"rope.scaling.type": "none", "rope.scaling.factor": 8.0}, {}, {"rope_type": "default"}),
    "linear": (
        {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}, {}, {"rope_type": "linear", "factor": 8.0}
    ),
    "a factor without a type": ({"rope.scaling.factor": 4.0}, {}, {"rope_type": "linear", "factor": 4.0}),
    "the old key": ({"rope.scale_linear": 2.0}, {}, {"rope_type": "linear", "factor": 2.0}),
    "yarn": (YARN, {}, {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32}),
    "yarn with a factor of its own on the scores": (
        YARN | {"rope.scaling.attn_factor": 1.5}, {},
        {"rope_type": "yarn", "factor": 8.0, "attention_factor": 1.5 * (0.1 * np.log(8) + 1)},
    ),
    "llama3": (
        {}, {"rope_freqs.weight": llama3_divisors(ROTARY, 1e4, 8.0, 64)},
        {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "other divisors": (
        {}, {"rope_freqs.weight": np.linspace(1, 5, ROTARY // 2)},
        {"rope_type": "longrope", "long_factor": np.linspace(1, 5, ROTARY // 2, dtype=np.float32).tolist()},
    ),
    "divisors of one": ({}, {"rope_freqs.weight": np.ones(ROTARY // 2)}, {"rope_type": "default"}),
    "longrope": (
        {
            "rope.scaling.type": "longrope", "rope.scaling.original_context_length": 64,
            "rope.scaling.attn_factor": 1.25,
        },
        {"rope_factors_long.weight": np.full(ROTARY // 2, 4.0), "rope_factors_short.weight": np.ones(ROTARY // 2)},
        {
            "rope_type": "longrope", "long_factor": [4.0] * 16, "short_factor": [1.0] * 16, "attention_factor": 1.25,
            "original_max_position_embeddings": 64,
        },
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def wide(make_base):
    """A base whose heads have 32 dimensions, for scalings that treat frequencies differently."""
    return make_base(
        "wide", vocab_size=258, hidden_size=64, num_attention_heads=2, num_key_value_heads=1, initializer_range=0.2
    )


@pytest.mark.parametrize("case", CASES)
def test_what_a_file_states_is_in_the_config(case, wide, tmp_path):
    keys, tensors, expected = CASES[case]
    file = write_gguf(tmp_path / "a.gguf", wide, keys, tensors, context=256)
    config = load_config(resolve_model(str(file)))
    for key, value in expected.items():
        assert config.rope_parameters[key] == (value if isinstance(value, str) else pytest.approx(value))
    assert base_context(config) == 256
    kind = config.rope_parameters["rope_type"]
    assert is_length_dependent(config) == (case == "longrope")
    if kind in ("linear", "yarn", "llama3") and case != "yarn with a factor of its own on the scores":
        # A run over the file scales on from there, and not once more from the beginning.
        assert extend(config, 512, kind).rope_parameters["factor"] == 2 * expected["factor"]


@pytest.mark.parametrize(
    "case", ["linear", "yarn", "yarn with a factor of its own on the scores", "llama3", "longrope"]
)
def test_llama_cpp_computes_the_same(case, wide, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp")
    keys, tensors, _ = CASES[case]
    file = write_gguf(tmp_path / "a.gguf", wide, keys, tensors, context=256)
    ids = torch.randint(1, 257, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    settings = {"n_ctx": 256, "n_batch": 256, "logits_all": True, "verbose": False, "n_threads": 1}
    theirs = llama_cpp.Llama(str(file), type_k=0, type_v=0, **settings)  # keys and values in float32
    theirs.eval(ids)
    logits = torch.from_numpy(np.array(theirs.scores[: len(ids)]))
    model, _ = lengthen.load(str(file), dtype="float32")
    with torch.no_grad():
        ours = model(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(ours, logits, atol=2e-3, rtol=0)
    plain = write_gguf(tmp_path / "plain.gguf", wide, context=256)
    unscaled, _ = lengthen.load(str(plain), dtype="float32")
    with torch.no_grad():
        other = unscaled(torch.tensor([ids])).logits[0]
    assert (other - logits).abs().max() > 0.02, "without the scaling it is another model"


def test_a_maximum_from_before_yarn_is_not_the_context(wide, tmp_path):
    """As a converter copies it from Qwen3's config with the YaRN of its model card."""
    config = load_config(resolve_model(str(write_gguf(tmp_path / "a.gguf", wide, YARN, context=40))))
    assert base_context(config) == 256
    assert extend(config, 512, "yarn").rope_parameters["factor"] == 16


def test_two_scalings_of_one_file_multiply_into_one(wide, tmp_path):
    file = write_gguf(tmp_path / "a.gguf", wide, YARN, context=256)
    twice = LlamaModel(extend(load_config(resolve_model(str(file))), 512, "yarn")).rotary_emb.inv_freq
    once = LlamaModel(extend(load_config(resolve_model(str(wide))), 512, "yarn")).rotary_emb.inv_freq
    torch.testing.assert_close(twice, once)


@pytest.mark.parametrize(
    ("keys", "tensors", "reason"),
    [
        ({"rope.scaling.type": "ntk-aware", "rope.scaling.factor": 2.0}, {}, "ntk-aware"),
        (YARN | {"rope.scaling.yarn_log_multiplier": 0.1}, {}, "yarn_log_multiplier"),
        (YARN | {"rope.scaling.yarn_ext_factor": 0.5}, {}, "yarn_ext_factor"),
        (YARN, {"rope_freqs.weight": np.full(16, 2.0)}, "twice"),
        ({"rope.scaling.type": "longrope"}, {}, "lacks its factors"),
        ({}, {"rope_freqs.weight": np.full(5, 2.0)}, "5 rotary frequencies"),
    ],
)
def test_what_can_not_be_said_in_a_config_is_refused(keys, tensors, reason, wide, tmp_path):
    file = write_gguf(tmp_path / "a.gguf", wide, keys, tensors)
    with pytest.raises(ModelError, match=rf"a\.gguf .*{reason}"):
        load_config(resolve_model(str(file)))


def test_another_share_of_rotated_dimensions_is_another_model(wide, tmp_path):
    file = write_gguf(tmp_path / "a.gguf", wide)
    config = LlamaConfig.from_pretrained(wide)
    config.rope_parameters["partial_rotary_factor"] = 0.25
    with pytest.raises(ModelError, match=r"a\.gguf rotates 32 dimensions .* would rotate 8"):
        add_positions(config, file)


def test_a_damaged_file(tmp_path, wide):
    file = write_gguf(tmp_path / "a.gguf", wide)
    content = file.read_bytes()
    for damaged in (b"GGUF", content[:100], b"no gguf at all" * 10):
        file.write_bytes(damaged)
        with pytest.raises(ModelError, match=r"a\.gguf"):
            load_config(resolve_model(str(file)))


def test_a_command_shows_no_bars_of_other_packages(wide, tmp_path):
    file = write_gguf(tmp_path / "a.gguf", wide)
    command = [sys.executable, "-m", "lengthen.cli", "generate", str(file), "--prompt", "a", "--max-new-tokens", "2"]
    done = subprocess.run([*command, "--quiet"], capture_output=True, text=True, check=True)
    assert done.stderr == ""
