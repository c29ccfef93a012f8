"""Sequences that several processes share: every loss and every gradient is that of one process."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from lengthen.adapters.build import add_adapter
from lengthen.attention import set_group_size
from lengthen.attention.shards import shard_bounds
from lengthen.data.blocks import Block
from lengthen.data.collate import collate
from lengthen.errors import ModelError, RecipeError
from lengthen.planning.measure import model_shape
from lengthen.planning.traffic import sequence_traffic
from lengthen.recipe import AdapterRecipe, check_heads, parse_recipe
from lengthen.training.memory import enable_checkpointing
from lengthen.training.objective import CausalLMObjective
from lengthen.training.parallel import check_parallel
from lengthen.training.sequence import cut_batch
from shard_threads import in_threads

SIZES = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 56, "num_hidden_layers": 3, "head_dim": 8,
    "attn_implementation": "s2", "initializer_range": 0.2,  # so that attention is not the mean
}  # fmt: skip


def objective_of(group, sinks=0, pattern="s2", heads=(4, 2), adapter=None, checkpointing=False):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, num_attention_heads=heads[0], num_key_value_heads=heads[1]))
    set_group_size(model, group, sinks, pattern)
    if checkpointing:
        enable_checkpointing(model, checkpointing == "keep_attention", adapter_drops=False)
    if adapter is not None:
        model = add_adapter(model, adapter)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zero at the start, which would hide lora_A's gradients
                torch.nn.init.normal_(parameter, std=0.02)
    return CausalLMObjective(model).train()


def loss_and_gradients(objective, batch):
    loss = objective(**batch)
    loss.backward()
    return {"loss": loss.detach(), "by sequence": objective.sequence_losses} | {
        name: p.grad for name, p in objective.named_parameters() if p.requires_grad
    }


def batch_of(rows, weighted=False, shortest=0):
    generator = np.random.default_rng(1)
    blocks = []
    for segments in rows:
        length = sum(segments)
        weights = generator.random(length).astype(np.float32) if weighted else None
        blocks.append(Block(generator.integers(0, 97, length), tuple(segments), loss_weights=weights))
    return collate(blocks, 0, shortest)


def assert_shards_equal_the_whole(count, group, rows, weighted=False, **options):
    objective = objective_of(group, **options)
    batch = batch_of(rows, weighted, count * group)
    bounds = shard_bounds(batch["input_ids"].shape[1], group, count)
    copies = [objective_of(group, **options) for _ in range(count)]
    whole = loss_and_gradients(objective, batch)
    found, sent = in_threads(bounds, lambda shard: loss_and_gradients(copies[shard.rank], cut_batch(batch, shard)))
    largest = max(tensor.abs().max().item() for name, tensor in whole.items() if name not in ("loss", "by sequence"))
    for name, tensor in whole.items():
        ours = sum(each[name] for each in found)
        # Within float32 rounding of each tensor; where its sums nearly cancel, of what they are sums of.
        tolerance = 1e-5 * tensor.abs().max().item() + 1e-6 * largest
        assert (ours - tensor).abs().max() <= tolerance, name
    return sent


@settings(max_examples=25, deadline=None)
@given(
    st.integers(2, 4),
    st.integers(2, 12).flatmap(lambda group: st.tuples(st.just(group), st.integers(0, group // 2))),
    st.sampled_from(["s2", "alternate", "plain"]),
    st.sampled_from([(4, 2), (4, 1), (6, 3)]),
    st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=3), min_size=1, max_size=2),
    st.booleans(),
)
def test_every_gradient_of_full_fine_tuning(count, group_and_sinks, pattern, heads, rows, weighted):
    group, sinks = group_and_sinks
    assert_shards_equal_the_whole(count, group, rows, weighted, sinks=sinks, pattern=pattern, heads=heads)


@pytest.mark.parametrize(
    "options",
    [
        {"adapter": AdapterRecipe(rank=4, targets="all"), "sinks": 2},
        {"checkpointing": True, "sinks": 2},
        {"checkpointing": "keep_attention"},
        {"pattern": "full"},
        {"pattern": "full", "heads": (8, 1), "checkpointing": "keep_attention"},
    ],
    ids=["lora", "recomputed", "attention kept", "full", "full with one key/value head"],
)
@pytest.mark.parametrize("count", [2, 4])
def test_with_adapters_and_memory_savers(options, count):
    heads = {"heads": (8, 4)} | options
    assert_shards_equal_the_whole(count, 8, [[13, 37, 20], [70]], **heads)


def test_layers_send_the_halo_and_the_sinks_and_nothing_else():
    """In each of 3 layers, keys and values: of half of 4 heads and half a group of 8; of 2 sinks and all heads."""
    sent = assert_shards_equal_the_whole(4, 8, [[64]], heads=(4, 4), sinks=2)
    halo, sinks = 2 * 2 * 8 * 4, 2 * 4 * 8 * 2
    neighbors = {(a, b): sum(sizes) for (a, b), sizes in sent.items() if a < b}
    assert neighbors == {
        (0, 1): 3 * (halo + sinks), (1, 2): 3 * halo, (2, 3): 3 * halo, (0, 2): 3 * sinks, (0, 3): 3 * sinks,
    }  # fmt: skip
    assert {(b, a): sum(sizes) for (a, b), sizes in sent.items() if a > b} == neighbors, "gradients go back"


@pytest.mark.parametrize(
    ("count", "options"),
    [
        (2, {"heads": (4, 4)}),
        (2, {"heads": (4, 4), "sinks": 2}),
        (4, {"heads": (4, 4), "sinks": 2}),
        (4, {"heads": (6, 3), "sinks": 2, "checkpointing": True}),
        (3, {"heads": (4, 1), "sinks": 1, "checkpointing": "keep_attention"}),
        (4, {"heads": (4, 2), "pattern": "plain", "sinks": 2}),
        (2, {"heads": (8, 4), "pattern": "full"}),
        (4, {"heads": (8, 2), "pattern": "full", "checkpointing": True}),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else f"{value} shards",
)
def test_the_plan_counts_what_is_sent(count, options):
    """The numbers that the process sends which sends most, forward, recomputed and backward."""
    sent = assert_shards_equal_the_whole(count, 8, [[96]], **options)
    by_process = [sum(sum(sizes) for (a, _), sizes in sent.items() if a == rank) for rank in range(count)]
    attention = {"group_size": 8, "sinks": options.get("sinks", 0), "pattern": options.get("pattern", "s2")}
    memory = {"activation_checkpointing": options.get("checkpointing", False)}
    content = {"context": {"target": 96}, "attention": attention, "memory": memory, "parallel": {"sequence": count}}
    recipe = parse_recipe({**CONTENT, **content}, "test")
    heads = dict(zip(("num_attention_heads", "num_key_value_heads"), options["heads"], strict=True))
    found = sequence_traffic(model_shape(LlamaConfig(**SIZES, **heads), recipe.adapter), recipe, 1)
    assert found.total == max(by_process)


def test_a_plan_of_full_attention_at_the_end_is_the_mean_over_the_run():
    config = LlamaConfig(**SIZES, num_attention_heads=8, num_key_value_heads=2)
    last, s2, full = (
        sequence_traffic(model_shape(config, recipe.adapter), recipe, 2)
        for recipe in (
            parse_recipe({**CONTENT, "parallel": {"sequence": 2}, "attention": attention}, "test")
            for attention in ({"full_last": 0.25}, {}, {"kind": "full"})
        )
    )
    assert (last.neighbors, last.sinks) == (0.75 * s2.neighbors, 0.75 * s2.sinks)
    assert last.heads == 0.25 * full.heads > 0
    assert s2.heads == full.neighbors == full.sinks == 0


# -- processes


@pytest.mark.parametrize(
    ("processes", "settings"),
    [
        pytest.param(
            2, {"parallel": {"sequence": 2}, "attention": {"sinks": 2, "full_last": 0.3}}, id="2 of a sequence"
        ),
        pytest.param(
            4, {"parallel": {"sequence": 4}, "attention": {"sinks": 1}}, id="4 of a sequence", marks=pytest.mark.slow
        ),
        pytest.param(
            4,
            {
                "parallel": {"data": "fsdp2", "sequence": 2},
                "attention": {"sinks": 2},
                "training": {"restoration": {"share": 0.5, "length": 32}},
            },
            id="2 of a sequence, twice, fsdp2",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_processes_that_share_sequences_equal_one(make_base, train_in_processes, processes, settings):
    base = make_base("wide", hidden_size=64, intermediate_size=128)
    adapter = {"targets": "all", "rank": 4, "embeddings": True}
    one, losses = train_in_processes(base, 1, adapter=adapter, **{**settings, "parallel": "ddp"})
    several, others = train_in_processes(base, processes, adapter=adapter, **settings)
    assert len(losses) == 4
    assert others == pytest.approx(losses, rel=1e-5)
    adapters = [load_file(run / "adapter" / "adapter_model.safetensors") for run in (one, several)]
    for name, tensor in adapters[0].items():
        torch.testing.assert_close(adapters[1][name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_two_nodes_of_one_process_equal_one_node_of_two(make_base, train_in_processes):
    base = make_base("wide", hidden_size=64, intermediate_size=128)
    settings = {"parallel": {"sequence": 2}, "attention": {"sinks": 1}, "training": {"steps": 2}}
    one, losses = train_in_processes(base, 2, "one node", **settings)
    two, others = train_in_processes(base, 2, "two nodes", nodes=2, **settings)
    assert len(losses) == 2
    assert others == losses
    adapters = [load_file(run / "adapter" / "adapter_model.safetensors") for run in (one, two)]
    torch.testing.assert_close(*adapters, rtol=0, atol=0)


# -- refused


CONTENT = {"model": "m", "context": {"target": 64}, "data": {"train": ["d"]}, "training": {"steps": 1}}


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"parallel": {"sequence": 5}}, "a sequence of 64 tokens has 4 whole groups of 16; each process needs one"),
        ({"parallel": {"sequence": 2, "data": "zero2"}}, "ddp and fsdp2, not zero2"),
        ({"parallel": {"sequence": 0}}, "parallel.sequence"),
        ({"parallel": {"sequences": 2}}, "unknown key 'parallel.sequences'"),
        ({"parallel": {"sequence": 2}, "memory": {"sequence_chunk": 32}}, "exchanges no keys"),
        (
            {
                "parallel": {"sequence": 2}, "adapter": {"kind": "p_tuning"}, "attention": {"kind": "full"},
                "data": {"train": ["d"], "packing": "concatenate"},
            },
            "virtual tokens",
        ),
    ],
)  # fmt: skip
def test_recipes_that_cannot_be_had(changes, what):
    with pytest.raises(RecipeError, match=what):
        parse_recipe({**CONTENT, **changes}, "test")


@pytest.mark.parametrize(("processes", "what"), [(1, "there is one"), (3, "there are 3")])
def test_a_number_of_processes_that_can_not_share(monkeypatch, processes, what):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    recipe = parse_recipe({**CONTENT, "parallel": {"sequence": 2}}, "test")
    with pytest.raises(RecipeError, match=f"parallel.sequence=2 wants a multiple of 2 processes, and {what}"):
        check_parallel(recipe, torch.device("cpu"))


def test_heads_that_can_not_be_shared_out():
    for attention in ({"kind": "full"}, {"full_last": 0.1}, {"pattern": "full"}):
        recipe = parse_recipe({**CONTENT, "parallel": {"sequence": 2}, "attention": attention}, "test")
        with pytest.raises(ModelError, match="9 query and 3 key/value heads can't be shared out evenly"):
            check_heads(recipe, 9, 3)
    check_heads(parse_recipe({**CONTENT, "parallel": {"sequence": 2}}, "test"), 9, 3)


def test_short_form_and_overrides():
    assert parse_recipe({**CONTENT, "parallel": "fsdp2"}, "test").parallel.data == "fsdp2"
