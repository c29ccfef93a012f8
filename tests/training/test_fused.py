"""Fused kernels: which modules they take, and who is refused. What they compute is tested on GPUs."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, OPTConfig, Qwen3Config

from lengthen.errors import ModelError, RecipeError
from lengthen.training.fused import check_fused, fuse_elementwise

SIZES = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip


def build(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if "norm" in name:  # at 1 (or 0), norms that add 1 would be seen by that alone
            parameter.data += 0.1 * torch.randn(parameter.shape)
    return model


@pytest.mark.parametrize(("config", "norms"), [(LlamaConfig(**SIZES), 5), (Qwen3Config(**SIZES), 9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_and_gated_mlps_are_found_by_what_they_compute(config, norms, dtype):
    model = build(config).to(dtype)
    assert fuse_elementwise(model) == (norms, 2)
    assert model.model.norm.forward.__self__ is model.model.norm


OPT = OPTConfig(vocab_size=97, hidden_size=64, ffn_dim=128, num_hidden_layers=2, num_attention_heads=4)


@pytest.mark.parametrize("config", [Gemma2Config(**SIZES), OPT])
def test_norms_that_add_one_and_other_activations_stay(config):
    with pytest.raises(ModelError, match=r"memory\.fused_kernels=false"):
        fuse_elementwise(build(config))


def test_refused_without_a_gpu_or_the_package(monkeypatch):
    with pytest.raises(RecipeError, match=r"memory\.fused_kernels needs a CUDA GPU, and the model is on cpu"):
        check_fused(torch.device("cpu"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"lengthen\[liger\]"):
        check_fused(torch.device("cuda"))
