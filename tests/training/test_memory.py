"""Memory savers change no loss and no gradient."""

import platform
import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from lengthen import quantization
from lengthen.adapters.build import add_adapter
from lengthen.attention import set_group_size
from lengthen.errors import ModelError
from lengthen.recipe import AdapterRecipe, MemoryRecipe
from lengthen.training import offload
from lengthen.training.memory import enable_checkpointing, tile_mlps
from lengthen.training.objective import CausalLMObjective
from lengthen.training.offload import offload_saved

SIZES = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "attn_implementation": "s2",
}  # fmt: skip
SAVERS = [
    {"preset": "fast"},
    {"preset": "balanced"},
    {"preset": "low_memory", "mlp_tile": 7},
    {"preset": "fast", "mlp_tile": 16},
    {"preset": "balanced", "mlp_tile": 1},
    {"preset": "balanced", "offload_activations": True},
]


def loss_and_gradients(savers, nf4=False, kind=LlamaForCausalLM, config=LlamaConfig, folder=None):
    torch.manual_seed(0)
    model = kind(config(**SIZES)).train()
    if nf4:
        model = quantization.quantize(model, torch.float32, torch.device("cpu"))
        quantization.prepare_for_training(model)
    set_group_size(model, 8)
    wanted = MemoryRecipe(**savers)
    if wanted.activation_checkpointing:
        enable_checkpointing(model, wanted.activation_checkpointing == "keep_attention")
    if wanted.mlp_tile:
        tile_mlps(model, wanted.mlp_tile)
    model = add_adapter(
        model, AdapterRecipe(rank=4, embeddings=True, targets="all" if config is LlamaConfig else "attention")
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at the start, which would hide lora_A's gradients
            torch.nn.init.normal_(parameter, std=0.02)
    objective = CausalLMObjective(model, folder or wanted.offload_activations).train()
    ids = torch.randint(0, 97, (2, 33), generator=torch.Generator().manual_seed(1))
    positions = torch.cat([torch.arange(13), torch.arange(20)]).repeat(2, 1)
    loss = objective(input_ids=ids, labels=ids, position_ids=positions)
    loss.backward()
    return {"loss": loss.detach()} | {n: p.grad for n, p in objective.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("savers", SAVERS)
@pytest.mark.parametrize("nf4", [False, True])
def test_loss_and_gradients_stay(savers, nf4):
    plain = {"activation_checkpointing": False}
    torch.testing.assert_close(loss_and_gradients(savers, nf4), loss_and_gradients(plain, nf4), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("keep", "times"), [(False, 2), (True, 1)])
def test_kept_attention_is_computed_once(keep, times):
    class Count(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.seen += function is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
            return function(*args, **(kwargs or {}))

    model = LlamaForCausalLM(LlamaConfig(**SIZES | {"attn_implementation": "sdpa"})).train()
    enable_checkpointing(model, keep)
    ids = torch.randint(0, 97, (1, 33))
    with Count() as count:
        model(input_ids=ids, labels=ids).loss.backward()
    assert count.seen == times * SIZES["num_hidden_layers"]


@pytest.mark.parametrize("adapter_drops", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_what_is_dropped_is_dropped_again(dropout, adapter_drops):
    config = LlamaConfig(**SIZES | {"attn_implementation": "eager", "attention_dropout": dropout})
    model = LlamaForCausalLM(config).train()
    ids = torch.randint(0, 97, (1, 33))
    gradients = []
    for is_checkpointed in (False, True):
        if is_checkpointed:
            enable_checkpointing(model, False, adapter_drops)
        torch.manual_seed(0)
        loss = model(input_ids=ids, labels=ids).loss
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    torch.testing.assert_close(*gradients)


def test_flash_attention_is_kept_too():
    """As the packages register their operators, in a checkpoint like that of a layer."""
    calls = []
    library = torch.library.Library("flash_attn", "FRAGMENT")
    library.define("_forward_of_test(Tensor x) -> Tensor")
    library.impl("_forward_of_test", lambda x: calls.append(1) or x.sin(), "CPU")

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return torch.ops.flash_attn._forward_of_test(x)

        @staticmethod
        def backward(ctx, gradient):
            (x,) = ctx.saved_tensors
            return gradient * x.cos()

    model = LlamaForCausalLM(LlamaConfig(**SIZES | {"num_hidden_layers": 1})).train()
    model.model.layers[0].self_attn.forward = lambda hidden_states, **_: (Attention.apply(hidden_states), None)
    ids = torch.randint(0, 97, (1, 33))
    for keep, times in ((False, 2), (True, 1)):
        calls.clear()
        enable_checkpointing(model, keep)
        model(input_ids=ids, labels=ids).loss.backward()
        assert len(calls) == times


def test_experts_are_tiled_too():
    kinds = {"kind": MixtralForCausalLM, "config": MixtralConfig}
    ours, plain = (loss_and_gradients(savers, **kinds) for savers in (SAVERS[2], {"preset": "fast"}))
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)


def test_mlps_see_one_tile_at_a_time_in_training_only():
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).train()
    set_group_size(model, 8)
    lengths = []
    for layer in model.model.layers:
        layer.mlp.up_proj.register_forward_hook(lambda _module, inputs, _output: lengths.append(inputs[0].shape[1]))
    tile_mlps(model, 10)
    ids = torch.randint(0, 97, (1, 33))
    model(input_ids=ids, labels=ids).loss.backward()
    assert sorted(set(lengths)) == [3, 10]
    lengths.clear()
    with torch.no_grad():
        model.eval()(input_ids=ids)
    assert set(lengths) == {33}


def test_a_model_without_mlps_is_refused():
    with pytest.raises(ModelError, match="mlp_tile=0"):
        tile_mlps(torch.nn.Sequential(torch.nn.Linear(2, 2)), 4)


def test_presets_fill_what_is_not_given():
    assert MemoryRecipe().activation_checkpointing == "keep_attention"
    smallest = MemoryRecipe(preset="low_memory", mlp_tile=0)
    assert (smallest.activation_checkpointing, smallest.mlp_tile, smallest.offload_activations) == (True, 0, True)
    assert MemoryRecipe(**smallest.model_dump()) == smallest


def test_saved_tensors_come_back_one_ahead(monkeypatch):
    """On CPU, whose streams do nothing: which tensors are held when, and that they are the same."""
    monkeypatch.setattr(offload, "_stays", lambda tensor: tensor.ndim != 3)
    monkeypatch.setattr(offload, "_copy_stream", lambda device: torch.cpu.Stream())
    events, fetch, take = [], offload._Offloaded.fetch, offload._Offloaded.take
    order = {}

    def number(saved):
        return order.setdefault(id(saved), len(order))

    def fetching(self):
        events.append(("fetch", number(self))) if self._on_device is None else None
        fetch(self)

    def taking(self):
        events.append(("take", number(self)))
        return take(self)

    monkeypatch.setattr(offload._Offloaded, "fetch", fetching)
    monkeypatch.setattr(offload._Offloaded, "take", taking)
    smallest = {"preset": "balanced", "offload_activations": True}
    torch.testing.assert_close(loss_and_gradients(smallest), loss_and_gradients({"preset": "fast"}))
    takes = [which for what, which in events if what == "take"]
    assert len(takes) > SIZES["num_hidden_layers"]
    assert sorted(takes) == sorted(which for what, which in events if what == "fetch"), "each comes back once"
    # But for the first two, which come in another order, each is on its way before it is wanted.
    assert all(events.index(("fetch", which)) < events.index(("take", which)) for which in takes[2:])


@pytest.mark.parametrize("savers", [{"preset": "fast"}, {"preset": "low_memory"}])
def test_saved_tensors_wait_in_a_file(monkeypatch, tmp_path, savers):
    monkeypatch.setattr(offload, "_LEAST_OFFLOADED", 100)
    written = []
    pack = offload._OffloadToFile._pack
    monkeypatch.setattr(offload._OffloadToFile, "_pack", lambda *given: written.append(pack(*given)) or written[-1])
    ours = loss_and_gradients({**savers, "offload_activations": "disk"}, folder=tmp_path)
    torch.testing.assert_close(ours, loss_and_gradients({"preset": "fast"}))
    saved = [each for each in written if isinstance(each, offload._InFile)]
    assert len(saved) >= SIZES["num_hidden_layers"]
    assert list(tmp_path.iterdir()) == [], "nobody else sees the file"


@pytest.mark.gpu
def test_saved_tensors_wait_in_cpu_memory():
    layer = torch.nn.Linear(1024, 1024, device="cuda")
    x = torch.randn(1024, 1024, device="cuda", requires_grad=True)
    expected = torch.autograd.grad(layer(layer(x).relu()).sum(), x)
    with offload_saved(layer):
        before = torch.cuda.memory_allocated()
        out = layer(layer(x).relu()).sum()
    held = torch.cuda.memory_allocated() - before
    assert held < 2**21
    torch.testing.assert_close(torch.autograd.grad(out, x), expected)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps what is freed")
@pytest.mark.parametrize("released", [False, True])
def test_freed_tensors_go_back_to_the_system(released):
    """In a process of its own: the setting is the whole process's."""
    code = f"""
import psutil, torch
from lengthen.training.memory import trim_malloc
if {released}:
    trim_malloc()
for _ in range(3):  # glibc learns from what is freed
    torch.ones(2**22)
before = psutil.Process().memory_info().rss
many = [torch.ones(2**21) for _ in range(33)]
del many[:32]  # the last one is above them
print((psutil.Process().memory_info().rss - before) >> 23)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (int(done.stdout) < 4) == released
