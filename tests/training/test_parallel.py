"""Sharded runs: two FSDP2 processes follow one plain process; what goes to DeepSpeed; what is refused beforehand."""

import json
import shutil
import sys
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from lengthen.errors import RecipeError
from lengthen.recipe import parse_recipe
from lengthen.training.parallel import check_parallel, shard, zero_config

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ZERO = ("zero2", "zero3", "zero2_offload", "zero3_offload")


# Frozen bfloat16 weights beside float32 masters in one unit, a tied head in the root, MLPs in tiles; all float32.
@pytest.mark.parametrize(
    ("settings", "tied"),
    [
        pytest.param(
            {
                "adapter": {"targets": "all", "variant": "dora", "embeddings": True},
                "training": {"dtype": "bfloat16"},
                "memory": {"mlp_tile": 32, "offload_activations": True},
            },
            True,
            id="dora in bfloat16, tied",
        ),
        pytest.param(
            {"training": {"restoration": {"share": 0.5, "length": 32}}, "attention": {"group_size": 16}, "adapter": {}},
            True,
            id="restoration, tied",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"adapter": {"kind": "full"}, "memory": {"activation_checkpointing": False}},
            False,
            id="full",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_two_sharded_processes_equal_one(make_base, train_in_processes, settings, tied):
    base = make_base(f"base{tied}", tie_word_embeddings=tied)
    one, losses = train_in_processes(base, 1, **settings)
    two, others = train_in_processes(base, 2, parallel="fsdp2", **settings)
    assert len(losses) == 4
    assert others == pytest.approx(losses, rel=1e-5)
    name = (
        "model/model.safetensors" if settings["adapter"].get("kind") == "full" else "adapter/adapter_model.safetensors"
    )
    assert_same(load_file(two / name), load_file(one / name))

    checkpoints = [run / "checkpoints" / "checkpoint-2" for run in (one, two)]
    assert_same(*(load_file(folder / "trainable.safetensors") for folder in reversed(checkpoints)))
    states = [torch.load(folder / "optimizer.pt", weights_only=True)["state"] for folder in checkpoints]
    for index, state in states[0].items():
        assert_same(states[1][index], state)

    after = load_file(two / name)
    shutil.rmtree(two / "checkpoints" / "checkpoint-4")
    shutil.rmtree((two / name).parent)
    resumed, again = train_in_processes(base, 2, parallel="fsdp2", options=["--resume"], **settings)
    assert resumed == two
    assert again == others
    for key, tensor in load_file(two / name).items():
        assert torch.equal(tensor, after[key])


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=1e-3, atol=1e-5)


def test_a_process_holds_its_shard_of_every_parameter():
    from torch import nn
    from torch.testing._internal.distributed.fake_pg import FakeStore

    class Layer(nn.Linear):
        pass

    class Model(nn.Module):
        _no_split_modules = ("Layer",)

        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(Layer(8, 8), Layer(8, 8))
            self.head = nn.Linear(8, 4)

    torch.distributed.init_process_group("fake", rank=0, world_size=4, store=FakeStore())
    try:
        model = Model()
        objective = nn.Sequential(model)
        shard(objective, model, CPU)
        assert type(objective).__name__ == "FSDPSequential"
        assert [type(layer).__name__ for layer in model.layers] == ["FSDPLayer"] * 2
        for parameter in objective.parameters():
            assert parameter.to_local().numel() * 4 == parameter.numel()
    finally:
        torch.distributed.destroy_process_group()


# -- DeepSpeed; not installed where the tests run


# https://www.deepspeed.ai/docs/config-json/
KEYS = {"zero_optimization", "bf16", "fp16", "gradient_clipping", "gradient_accumulation_steps", "train_batch_size",
        "train_micro_batch_size_per_gpu"}  # fmt: skip
ZERO_KEYS = {"stage", "overlap_comm", "contiguous_gradients", "reduce_bucket_size", "allgather_bucket_size",
             "offload_optimizer", "offload_param"}  # fmt: skip


def zero(kind):
    return zero_config(kind, batch_size=2, accumulation=4, max_grad_norm=0.5, dtype=torch.bfloat16)


@pytest.mark.parametrize("kind", ZERO)
def test_zero_config(kind, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    config = zero(kind)
    assert config.keys() <= KEYS
    assert config == json.loads(json.dumps(config))
    assert config["train_batch_size"] == 3 * 4 * 2
    assert (config["bf16"]["enabled"], config["fp16"]["enabled"], config["gradient_clipping"]) == (True, False, 0.5)
    zero_settings = config["zero_optimization"]
    assert zero_settings.keys() <= ZERO_KEYS
    assert zero_settings["stage"] == (2 if "2" in kind else 3)
    assert ("offload_optimizer" in zero_settings) == kind.endswith("_offload")
    assert ("offload_param" in zero_settings) == (kind == "zero3_offload")


@pytest.mark.parametrize("kind", ZERO)
def test_accelerate_reads_the_zero_config(kind):
    from accelerate.utils import DeepSpeedPlugin

    plugin = DeepSpeedPlugin(hf_ds_config=zero(kind))
    assert plugin.zero_stage == (2 if "2" in kind else 3)
    config = plugin.hf_ds_config
    assert config.is_zero3() == (plugin.zero_stage == 3)
    assert config.is_offload() == kind.endswith("_offload")
    assert plugin.get_value("gradient_accumulation_steps") == 4
    assert "auto" not in json.dumps(config.config)


# -- refused


@pytest.fixture
def checked(monkeypatch):
    """A function that checks a recipe as in a launched process, with deepspeed."""
    monkeypatch.setitem(sys.modules, "deepspeed", ModuleType("deepspeed"))
    sys.modules["deepspeed"].__spec__ = object()

    def check(parallel, processes=2, device=CUDA, launched=True, **recipe):
        for name, value in (("LOCAL_RANK", "0"), ("WORLD_SIZE", str(processes))):
            monkeypatch.setenv(name, value) if launched else monkeypatch.delenv(name, raising=False)
        content = {"model": "tiny", "context": {"target": 512}, "training": {"steps": 1, **recipe.pop("training", {})}}
        check_parallel(parse_recipe({**content, **recipe, "parallel": parallel}, "test"), device)

    return check


def refused(check, *words):
    with pytest.raises(RecipeError) as caught:
        check()
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_can_be_had(checked):
    for kind in ("ddp", "fsdp2", *ZERO):
        checked(kind)
    checked("fsdp2", device=CPU)
    for kind in ("ddp", "zero2_offload", "zero3_offload"):
        checked(kind, processes=1)
    for kind in ("ddp", "zero2", "zero2_offload"):
        checked(kind, quantize="nf4")


def test_one_process_has_nothing_to_shard(checked):
    for kind in ("fsdp2", "zero2", "zero3"):
        refused(lambda kind=kind: checked(kind, processes=1), f"parallel={kind}", "there is one", "torchrun")
        refused(lambda kind=kind: checked(kind, launched=False), f"parallel={kind}", "torchrun")
    refused(lambda: checked("zero2_offload", launched=False), "needs a launcher", "--nproc-per-node 1")


def test_deepspeed_and_its_device(checked, monkeypatch):
    refused(lambda: checked("zero2", device=CPU), "needs an accelerator", "fsdp2")
    monkeypatch.delitem(sys.modules, "deepspeed")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused(lambda: checked("zero2"), "needs the package deepspeed", "pip install")


def test_combinations_that_can_not_be_sharded(checked):
    for kind in ("fsdp2", "zero3", "zero3_offload"):
        refused(lambda kind=kind: checked(kind, quantize="nf4"), "4-bit", "parallel=zero2", "quantize=null")
    refused(lambda: checked("fsdp2", training={"optimizer": "adamw_8bit"}), "adamw_8bit", "training.optimizer=adamw")
    refused(lambda: checked("zero2", adapter={"kind": "ia3"}), "ia3", "parallel=ddp")


def test_two_who_would_shard(checked, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    refused(lambda: checked("fsdp2"), "ACCELERATE_USE_FSDP", "recipe decides")
    refused(lambda: checked("ddp"), "ACCELERATE_USE_FSDP")
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    checked("zero2")
    refused(lambda: checked("ddp"), "ACCELERATE_USE_DEEPSPEED")


def test_a_model_without_layers(tmp_path):
    from lengthen.errors import ModelError

    model = torch.nn.Linear(2, 2)
    with pytest.raises(ModelError, match="does not say what its layers are"):
        shard(torch.nn.Sequential(model), model, CPU)
