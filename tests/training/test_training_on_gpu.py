"""What a training step does only on a GPU: run by `python -m pytest -m gpu`."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from lengthen.adapters.build import add_adapter
from lengthen.attention import set_group_size
from lengthen.recipe import AdapterRecipe, MemoryRecipe
from lengthen.training.fused import fuse_elementwise
from lengthen.training.loss import linear_cross_entropy
from lengthen.training.memory import enable_checkpointing, tile_mlps
from lengthen.training.objective import CausalLMObjective

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("vocabulary", [5000, 128_256])
def test_the_loss_and_its_gradients(vocabulary):
    torch.manual_seed(0)
    hidden = torch.randn(1000, 512, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = (torch.randn(vocabulary, 512, device="cuda") * 0.05).to(torch.bfloat16).requires_grad_()
    targets = torch.randint(vocabulary, (1000,), device="cuda")
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    ours = linear_cross_entropy(hidden, weight, targets)
    expected = cross_entropy(exact[0] @ exact[1].T, targets, reduction="sum")
    assert abs(ours / expected - 1) < 1e-4
    for mine, theirs in zip(
        torch.autograd.grad(ours, (hidden, weight)), torch.autograd.grad(expected, exact), strict=True
    ):
        assert (mine.double() - theirs).norm() < 0.01 * theirs.norm()


def step(packed, fused=False, **savers):
    """Loss and gradients of a small model; its activations are large enough (1 MiB) to be moved."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=5000, hidden_size=512, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, attn_implementation="s2",
    )  # fmt: skip
    model = LlamaForCausalLM(config).to("cuda", torch.bfloat16)
    set_group_size(model, 512)
    if fused:
        assert fuse_elementwise(model) == (9, 4)
    wanted = MemoryRecipe(**savers)
    if wanted.activation_checkpointing:
        enable_checkpointing(model, wanted.activation_checkpointing == "keep_attention")
    if wanted.mlp_tile:
        tile_mlps(model, 500)
    model = add_adapter(model, AdapterRecipe(rank=4, embeddings=True), autocast=True)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    objective = CausalLMObjective(model, wanted.offload_activations).train()
    ids = torch.randint(5000, (1, 2048), generator=torch.Generator().manual_seed(1)).cuda()
    positions = torch.cat([torch.arange(n) for n in ((700, 1348) if packed else (2048,))])[None].cuda()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = objective(input_ids=ids, labels=ids, position_ids=positions)
    loss.backward()
    return {"loss": loss.detach()} | {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("savers", [{"preset": "balanced"}, {"preset": "low_memory"}])
def test_presets_change_nothing(packed, savers):
    expected, ours = step(packed, preset="fast"), step(packed, **savers)
    for _ in range(2):  # pinned memory is used again
        ours = step(packed, **savers)
    assert ours.keys() == expected.keys()
    for name, theirs in expected.items():
        assert (ours[name] - theirs).norm() <= 0.01 * theirs.norm(), name


@pytest.mark.parametrize("savers", [{"preset": "fast"}, {"preset": "low_memory"}])
def test_fused_kernels_equal_eager_ones(savers):
    """Norms have float32 masters and 16-bit inputs; both round to 16 bits, at other places."""
    pytest.importorskip("liger_kernel")
    expected, ours = step(False, **savers), step(False, fused=True, **savers)
    assert ours.keys() == expected.keys()
    assert abs(ours["loss"] / expected["loss"] - 1) < 1e-3
    for name, theirs in expected.items():
        assert ours[name].dtype == theirs.dtype
        assert (ours[name] - theirs).norm() <= 0.05 * theirs.norm(), name
