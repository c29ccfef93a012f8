"""Layers computed by chunks: every loss and every gradient is that of whole layers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import (
    FalconH1Config,
    FalconH1ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from lengthen import quantization
from lengthen.adapters.build import add_adapter
from lengthen.attention import set_group_size
from lengthen.errors import ModelError, RecipeError
from lengthen.recipe import AdapterRecipe, MemoryRecipe, parse_recipe
from lengthen.training import offload
from lengthen.training.chunked import check_layers, chunk_layers
from lengthen.training.memory import enable_checkpointing, tile_mlps
from lengthen.training.objective import CausalLMObjective
from lengthen.training.parallel import shard

SIZES = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 56, "num_hidden_layers": 3, "head_dim": 8,
    "attn_implementation": "s2", "initializer_range": 0.2,  # so that attention is not the mean
}  # fmt: skip
HEADS = [(4, 2), (4, 1), (6, 3)]


def objective_of(
    chunk, group, sinks=0, pattern="s2", heads=(4, 2), adapter=None, nf4=False, tile=0, every=1, kind=LlamaForCausalLM,
    folder=None, **sizes,
):  # fmt: skip
    torch.manual_seed(0)
    config = {LlamaForCausalLM: LlamaConfig, MixtralForCausalLM: MixtralConfig}[kind]
    counts = {"num_attention_heads": heads[0], "num_key_value_heads": heads[1]}
    model = kind(config(**SIZES | counts | sizes))
    if nf4:
        model = quantization.quantize(model, torch.float32, torch.device("cpu"))
        quantization.prepare_for_training(model)
    set_group_size(model, group, sinks, pattern)
    if tile:
        tile_mlps(model, tile)
    if chunk:
        chunk_layers(model, chunk, every)
    if adapter is not None:
        model = add_adapter(model, adapter)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zero at the start, which would hide lora_A's gradients
                torch.nn.init.normal_(parameter, std=0.02)
    return CausalLMObjective(model, folder or False).train()


def loss_and_gradients(objective, documents, rows=1, padding=0):
    """Of packed documents, told by their positions, or of one document with padding in the second row."""
    length = sum(documents)
    ids = torch.randint(0, 97, (rows, length), generator=torch.Generator().manual_seed(1))
    labels, more = ids.clone(), {}
    if padding:
        mask = torch.ones_like(ids)
        mask[-1, length - padding :] = 0
        labels[mask == 0] = -100
        more = {"attention_mask": mask}
    else:
        more = {"position_ids": torch.cat([torch.arange(each) for each in documents]).expand(rows, -1)}
    torch.manual_seed(2)
    objective.zero_grad()
    loss = objective(input_ids=ids, labels=labels, **more)
    loss.backward()
    trained = {name: p.grad for name, p in objective.named_parameters() if p.requires_grad}
    assert trained
    return {"loss": loss.detach(), **{name: grad for name, grad in trained.items() if grad is not None}}


def assert_same(chunked, whole):
    """Within float32 rounding of each tensor; where its sums nearly cancel, of what they are sums of."""
    assert chunked.keys() == whole.keys()
    largest = max(tensor.abs().max().item() for name, tensor in whole.items() if name != "loss")
    for name, tensor in whole.items():
        tolerance = 1e-5 * tensor.abs().max().item() + 1e-6 * largest
        difference = (chunked[name] - tensor).abs().max().item()
        assert difference <= tolerance, f"{name}: {difference:.2e} > {tolerance:.2e}"


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 12).flatmap(lambda group: st.tuples(st.just(group), st.integers(0, group // 2))),
    st.integers(1, 40),
    st.sampled_from(["s2", "alternate", "plain"]),
    st.sampled_from(HEADS),
    st.lists(st.integers(1, 30), min_size=1, max_size=4).filter(lambda documents: sum(documents) > 1),
    st.booleans(),
    st.integers(1, 3),
)
def test_all_gradients_of_full_fine_tuning(group_and_sinks, chunk, pattern, heads, documents, doubled, every):
    options = {"group": group_and_sinks[0], "sinks": group_and_sinks[1], "pattern": pattern, "heads": heads}
    options["every"] = every
    ours, whole = (
        loss_and_gradients(objective_of(each, **options), documents, rows=1 + doubled) for each in (chunk, 0)
    )
    assert_same(ours, whole)


LORA = AdapterRecipe(rank=4, targets="all")


@pytest.mark.parametrize(
    "options",
    [
        {"adapter": LORA},
        {"adapter": LORA, "sinks": 4, "every": 2},
        {"adapter": LORA, "nf4": True, "hidden_size": 64, "intermediate_size": 128},
        {"adapter": LORA, "tile": 5},
        {"adapter": AdapterRecipe(rank=4, variant="dora", norms=True)},
        {"adapter": AdapterRecipe(rank=4, embeddings=False, norms=False)},
        {"kind": MixtralForCausalLM, "num_local_experts": 4},
    ],
    ids=["lora", "sinks", "nf4", "tiles", "dora", "lora alone", "experts"],
)
@pytest.mark.parametrize("layout", [{"documents": [13, 37, 20]}, {"documents": [70], "rows": 2, "padding": 45}])
def test_adapters_and_savers_beside_it(options, layout):
    ours, whole = (loss_and_gradients(objective_of(chunk, 8, **options), **layout) for chunk in (16, 0))
    assert_same(ours, whole)


@pytest.mark.parametrize("layout", [{"documents": [13, 37, 20]}, {"documents": [70], "rows": 2, "padding": 45}])
@pytest.mark.parametrize("adapter", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize(("every", "kept"), [(1, 4), (2, 3)])
def test_what_is_kept_can_wait_in_a_file(monkeypatch, tmp_path, every, kept, adapter, layout):
    """Of 3 layers and the last norm."""
    monkeypatch.setattr(offload, "_LEAST_OFFLOADED", 100)
    written, pack = [], offload._OffloadToFile._pack
    monkeypatch.setattr(offload._OffloadToFile, "_pack", lambda *given: written.append(pack(*given)) or written[-1])
    options = {"adapter": adapter, "sinks": 2, "every": every}
    ours = loss_and_gradients(objective_of(16, 8, folder=tmp_path, **options), **layout)
    assert_same(ours, loss_and_gradients(objective_of(0, 8, **options), **layout))
    shapes = [each.shape for each in written if isinstance(each, offload._InFile)]
    assert shapes.count((layout.get("rows", 1), 70, 48)) == kept


@pytest.mark.parametrize(("tile", "every"), [(0, 1), (5, 1), (0, 2)])
def test_dropout_is_the_same_in_both_passes(tile, every):
    """The loss, with the same random numbers, changes along the gradient as the gradient says."""
    dropped = AdapterRecipe(rank=4, targets="all", dropout=0.3)
    objective = objective_of(16, 8, adapter=dropped, tile=tile, every=every)
    found = loss_and_gradients(objective, [50])
    trained = dict(objective.named_parameters())
    expected = sum(gradient.square().sum() for gradient in list(found.values())[1:])
    step, losses = 3e-3 / expected.sqrt(), []
    for sign in (1, -2):
        with torch.no_grad():
            for name, gradient in list(found.items())[1:]:
                trained[name] += sign * step * gradient
        losses.append(loss_and_gradients(objective, [50])["loss"])
    clean = loss_and_gradients(objective_of(16, 8, adapter=LORA), [50])["loss"]
    assert abs(found["loss"] - clean) > 1e-4, "dropout is at work"
    torch.testing.assert_close((losses[0] - losses[1]) / (2 * step), expected, rtol=2e-2, atol=0)


def test_autocast_reaches_both_passes():
    found = []
    for chunk in (16, 0):
        objective = objective_of(chunk, 8, adapter=LORA)
        with torch.autocast("cpu", torch.bfloat16):
            found.append(loss_and_gradients(objective, [50]))
    assert found[0].keys() == found[1].keys()
    for name, tensor in found[1].items():
        torch.testing.assert_close(found[0][name], tensor, rtol=0, atol=0.03 * tensor.abs().max().item(), msg=name)


def test_of_several_layers_one_keeps_its_input():
    counts, computed = [], []
    for every in (1, 2, 3):
        objective = objective_of(16, 8, every=every)
        saved, seen = [], []
        objective.model.model.layers[0].mlp.gate_proj.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        with torch.autograd.graph.saved_tensors_hooks(lambda x, saved=saved: saved.append(x.shape) or x, lambda x: x):
            loss = objective(input_ids=torch.arange(64)[None], labels=torch.arange(64)[None])
        loss.backward()
        counts.append(saved.count((1, 64, 48)))
        computed.append(len(seen) // 4)
    assert counts == [4, 3, 2], "of 3 layers: 3, 2, 1; and of the last norm"
    assert computed == [2, 3, 4]


def test_a_layer_sees_one_slice_at_a_time_and_keeps_its_input_only():
    objective = objective_of(16, 8)
    seen, projected, saved = [], [], []
    layer = objective.model.model.layers[1]
    layer.self_attn.k_proj.register_forward_hook(lambda _module, given, _out: seen.append(given[0].shape[1]))
    layer.mlp.gate_proj.register_forward_hook(lambda _module, given, _out: projected.append(given[0].shape[1]))
    ids = torch.randint(0, 97, (1, 64))

    def save(tensor):
        saved.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        loss = objective(input_ids=ids, labels=ids)
    assert seen == [16, 20, 20, 20]
    assert saved.count((1, 64, 48)) >= 2
    assert not [shape for shape in saved if shape[1:2] in ((16,), (20,)) or shape[-1:] == (56,)], "nothing inside"
    loss.backward()
    assert seen == [16, 20, 20, 20] * 2
    assert projected == [16] * 8, "MLPs leave out what stands before a chunk"
    with torch.no_grad():
        objective.eval()(input_ids=ids, labels=ids)
    assert seen[8:] == [64], "evaluation is whole"


@pytest.mark.parametrize(
    ("kind", "config", "more", "what"),
    [
        (Gemma3ForCausalLM, Gemma3TextConfig, {"sliding_window": 8}, "window of its own"),
        (
            FalconH1ForCausalLM, FalconH1Config,
            {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8},
            "sequence_chunk=0",
        ),
    ],
)  # fmt: skip
def test_layers_that_see_more_are_refused(kind, config, more, what):
    model = kind(config(**SIZES, num_attention_heads=4, num_key_value_heads=2, **more))
    set_group_size(model, 8)
    with pytest.raises(ModelError, match=what):
        chunk_layers(model, 16)


CONTENT = {"model": "m", "context": {"target": 64}, "data": {"train": ["d"]}, "training": {"steps": 1}}


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"memory": {"sequence_chunk": 24}}, "no multiple of the group size of 16"),
        ({"memory": {"sequence_chunk": 32}, "attention": {"kind": "full"}}, "attention.kind=full"),
        ({"memory": {"sequence_chunk": 32}, "attention": {"full_last": 0.5}}, "attention.full_last=0.5"),
        ({"memory": {"sequence_chunk": 32, "activation_checkpointing": True}}, "recomputes layers by itself"),
        ({"memory": {"sequence_chunk": 32}, "parallel": "zero2"}, "ddp and fsdp2"),
        ({"memory": {"checkpoint_every": 2}}, "set memory.sequence_chunk"),
        ({"memory": {"sequence_chunk": 32, "checkpoint_every": 2}, "parallel": "fsdp2"}, "put its weights away"),
    ],
)
def test_recipes_that_cannot_be_had(changes, what):
    with pytest.raises(RecipeError, match=what):
        parse_recipe({**CONTENT, **changes}, "test")


def test_chunks_replace_checkpointing_in_every_preset():
    for preset in ("fast", "balanced", "low_memory"):
        memory = parse_recipe({**CONTENT, "memory": {"preset": preset, "sequence_chunk": 32}}, "test").memory
        assert memory.activation_checkpointing is False
        assert MemoryRecipe(**memory.model_dump()) == memory


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_two_processes_by_chunks_equal_one_whole(make_base, train_in_processes, parallel):
    base = make_base("wide", hidden_size=64, intermediate_size=128)
    recipe = {"attention": {"sinks": 2}, "adapter": {"targets": "all", "rank": 4}}
    whole, losses = train_in_processes(base, 1, "whole", **recipe)
    two, others = train_in_processes(base, 2, "chunks", **recipe, memory={"sequence_chunk": 32}, parallel=parallel)
    assert others == pytest.approx(losses, rel=1e-5)
    adapters = [load_file(run / "adapter" / "adapter_model.safetensors") for run in (whole, two)]
    for name, tensor in adapters[0].items():
        torch.testing.assert_close(adapters[1][name], tensor, rtol=1e-3, atol=1e-5)


@pytest.fixture
def one_process():
    """A process group of this process alone."""
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    yield
    torch.distributed.destroy_process_group()


def test_layers_that_were_tried_by_parts_are_recomputed_under_fsdp2(one_process):
    """FSDP2 gives a layer another class; a forward on the layer itself would be the old one, which keeps everything."""

    def kept(recomputed, tried):
        objective = objective_of(0, 8)
        if tried:
            check_layers(objective.model, "parallel.sequence=1")
        if recomputed:
            enable_checkpointing(objective.model, keep_attention=False)
        shard(objective, objective.model, torch.device("cpu"))
        numbers = 0

        def keep(tensor):
            nonlocal numbers
            numbers += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            objective(input_ids=torch.arange(64)[None], labels=torch.arange(64)[None])
        return numbers

    assert kept(True, tried=True) == kept(True, tried=False) < kept(False, tried=True) / 2
