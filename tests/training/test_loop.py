"""The loop by itself: which batches a step has, what its operations are, and runs that diverge."""

import math

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, SeedableRandomSampler
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.utils.data import BatchSampler
from torch.utils.flop_counter import FlopCounterMode

import lengthen
from lengthen.adapters.build import add_adapter
from lengthen.data.blocks import Block
from lengthen.errors import DivergedError
from lengthen.models.load import load_base, load_config
from lengthen.models.resolve import resolve_model
from lengthen.planning.flops import model_flops
from lengthen.planning.measure import model_shape
from lengthen.recipe import TrainingRecipe, parse_recipe
from lengthen.run_folder import RunFolder
from lengthen.training import loop
from lengthen.training.batches import Batches
from lengthen.training.checkpoint import last_checkpoint
from lengthen.training.loop import Loop
from lengthen.training.objective import CausalLMObjective
from lengthen.training.optim import trained_parameters
from lengthen.training.run import train
from lengthen.training.setup import note_idle_devices
from lengthen.training.token_weights import PrefixWeights


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LENGTHEN_CACHE", str(tmp_path / "cache"))


SIZES = st.integers(1, 4)


@given(blocks=st.integers(1, 30), batch_size=SIZES, accumulation=SIZES, processes=SIZES, seed=st.integers(0, 5))
def test_the_order_is_that_of_accelerates_loaders(blocks, batch_size, accumulation, processes, seed):
    """All processes, two epochs, each step asked for by its number alone and from the last to the first."""
    training = TrainingRecipe(epochs=2, batch_size=batch_size, accumulation=accumulation)
    everything = range(blocks)
    for process in range(processes):
        expected = []
        for epoch in range(2):
            sampler = SeedableRandomSampler(everything, data_seed=seed)
            sampler.set_epoch(epoch)
            batches = BatchSampler(sampler, batch_size, drop_last=False)
            if processes > 1:
                batches = BatchSamplerShard(batches, processes, process)
            listed = list(batches)
            expected += [listed[i : i + accumulation] for i in range(0, len(listed), accumulation)]
        ours = Batches(everything, training, seed, process, processes)
        assert ours.steps == len(expected)
        assert [ours.of_step(step) for step in range(ours.steps, 0, -1)] == expected[::-1]


def test_a_mixtures_order_is_its_own():
    class Mixed(list):
        in_order = True

    training = TrainingRecipe(steps=3, batch_size=1, accumulation=2)
    blocks = Mixed(range(12))
    steps = [[Batches(blocks, training, 7, process, 2).of_step(step) for process in range(2)] for step in (1, 2, 3)]
    assert steps == [[[[0], [2]], [[1], [3]]], [[[4], [6]], [[5], [7]]], [[[8], [10]], [[9], [11]]]]


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_operations_of_a_step_are_what_torch_counts(base, kind):
    """Without recomputation; attention as torch counts it, which is all pairs and not the causal half."""
    recipe = parse_recipe(
        {"model": str(base), "context": {"target": 128}, "training": {"steps": 1}, "attention": {"kind": "full"},
         "adapter": {"kind": kind}}, "test",
    )  # fmt: skip
    source = resolve_model(str(base))
    config = load_config(source)
    model = add_adapter(load_base(source, config, torch.float32), recipe.adapter)
    objective = CausalLMObjective(model).train()
    ids = torch.randint(0, 257, (1, 64))
    with FlopCounterMode(display=False) as counter:
        objective(input_ids=ids, labels=ids, position_ids=torch.arange(64)[None]).backward()
    shape = model_shape(config, recipe.adapter)
    ours = model_flops(shape, recipe, [64])
    attention = 12 * shape.layer_count * shape.layers[0].query * 64 * (64 + 1) / 2
    counted = sum(
        count
        for operator, count in counter.get_flop_counts()["Global"].items()
        if "attention" not in str(operator)
    )  # fmt: skip
    # The first layer's inputs need no gradient where embeddings are frozen; here they are trained.
    assert ours - attention == pytest.approx(counted, rel=0.02)


def recipe_of(base, documents, out, **training):
    content = {
        "model": str(base),
        "out": str(out),
        "context": {"target": 128, "method": "yarn"},
        "data": {"train": [str(documents)]},
        "training": {"steps": 6, "warmup_steps": 0, "dtype": "float32", "save_every": 1, **training},
    }
    return parse_recipe(content, "test")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_that_diverges_stops_and_keeps_what_is_finite(base, documents, tmp_path, dtype):
    run = tmp_path / "run"
    with pytest.raises(DivergedError, match=r"diverged: in step \d .* lower training\.learning_rate") as caught:
        train(recipe_of(base, documents, run, learning_rate=1e30, dtype=dtype))
    assert "\n" not in str(caught.value)
    steps = [record["step"] for record in RunFolder(run).read_metrics()]
    assert 1 <= len(steps) < 6
    assert all(math.isfinite(record["loss"]) for record in RunFolder(run).read_metrics())
    assert not (run / "adapter").exists()
    last = last_checkpoint(RunFolder(run))
    assert last.name == f"checkpoint-{steps[-1]}"
    assert last.name in str(caught.value)
    for checkpoint in (run / "checkpoints").iterdir():
        assert all(tensor.isfinite().all() for tensor in load_file(checkpoint / "trainable.safetensors").values())


@pytest.fixture
def scaled_losses(monkeypatch):
    """A function that has runs scale their losses by this at first, as float16 on a GPU does."""
    build = loop._accelerator

    def begin_with(scale):
        def accelerator(recipe, dtype):
            made = build(recipe, dtype)
            made.scaler, made.native_amp = torch.amp.GradScaler("cpu", init_scale=scale), True
            made.state._mixed_precision = "fp16"
            return made

        monkeypatch.setattr(loop, "_accelerator", accelerator)

    return begin_with


def test_gradients_that_overflow_by_the_scale_skip_the_step(base, documents, tmp_path, scaled_losses):
    def trained(name, scale, steps):
        scaled_losses(scale)
        run = train(recipe_of(base, documents, tmp_path / name, steps=steps))
        weights = load_file(run / "adapter" / "adapter_model.safetensors")
        assert all(tensor.isfinite().all() for tensor in weights.values())
        norms = [record["grad_norm"] for record in RunFolder(run).read_metrics()]
        return norms, [tensor for name, tensor in weights.items() if "lora_B" in name]

    norms, matrices = trained("skipped", 2.0**40, 2)
    assert not any(map(math.isfinite, norms))
    assert not any(tensor.any() for tensor in matrices), "no step was taken"
    norms, matrices = trained("lowered", 2.0**20, 12)
    assert not math.isfinite(norms[0])
    assert any(map(math.isfinite, norms))
    assert all(tensor.any() for tensor in matrices)


def test_gradients_that_overflow_below_the_least_scale_are_a_divergence(base, documents, tmp_path, scaled_losses):
    scaled_losses(0.5)
    with pytest.raises(DivergedError, match=r"in step \d the (loss|gradient norm) is (nan|inf)"):
        train(recipe_of(base, documents, tmp_path / "run", learning_rate=1e30))


def test_weights_that_are_not_finite_are_never_written(base, documents, tmp_path, monkeypatch):
    """Whatever made them so after a step whose loss and gradients were finite."""
    update = Loop._update

    def break_in_the_second_step(self, step, loss):
        norm = update(self, step, loss)
        if step == 2:
            trained_parameters(self.objective).popitem()[1].data.view(-1)[3] = math.nan
        return norm

    monkeypatch.setattr(Loop, "_update", break_in_the_second_step)
    with pytest.raises(DivergedError, match=r"after step 2, .* is not finite; lower training\.learning_rate"):
        train(recipe_of(base, documents, tmp_path / "run", steps=2))
    assert last_checkpoint(RunFolder(tmp_path / "run")).name == "checkpoint-1"
    assert not (tmp_path / "run" / "adapter").exists()


def test_the_loss_of_a_step_is_the_weighted_mean_over_its_batches(base, documents, tmp_path, monkeypatch):
    """Two sequences a step, by accumulation or in one batch; only the later half of each counts, three times."""
    from lengthen.training import run as run_module

    generator = np.random.default_rng(0)
    blocks = [
        Block(generator.integers(0, 257, length), (length,), loss_weights=np.repeat([0, 3], [length // 2, length // 2]))
        for length in (64, 100, 80, 128)
    ]
    monkeypatch.setattr(run_module, "build_data", lambda setup: blocks)
    losses = []
    for name, settings in (("accumulated", {"accumulation": 2}), ("batch", {"batch_size": 2})):
        run = train(recipe_of(base, documents, tmp_path / name, steps=2, **settings))
        losses.append([record["loss"] for record in RunFolder(run).read_metrics()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    masked = [
        Block(block.input_ids, block.segments, trained=block.loss_weights > 0)
        for block in blocks
    ]  # fmt: skip
    monkeypatch.setattr(run_module, "build_data", lambda setup: masked)
    run = train(recipe_of(base, documents, tmp_path / "masked", steps=2, accumulation=2))
    assert losses[0] == pytest.approx([record["loss"] for record in RunFolder(run).read_metrics()], rel=1e-5)


def test_the_steps_are_those_of_a_plain_loop(base, documents, tmp_path, monkeypatch):
    """AdamW over all weights, two sequences a step by accumulation, warm-up and decay, clipping that clips."""
    from lengthen.training import run as run_module

    generator = np.random.default_rng(0)
    ids = [generator.integers(1, 257, length) for length in (64, 100, 80, 128, 30, 90, 120, 70)]
    monkeypatch.setattr(run_module, "build_data", lambda setup: [Block(each, (len(each),)) for each in ids])
    rate, decay, norm = 1e-3, 0.1, 0.5
    settings = {"steps": 4, "warmup_steps": 2, "accumulation": 2, "max_grad_norm": norm, "weight_decay": decay}
    recipe = recipe_of(base, documents, tmp_path / "run", learning_rate=rate, schedule="linear", **settings)
    content = recipe.model_dump() | {"attention": {"kind": "full"}, "adapter": {"kind": "full"}}
    run = train(parse_recipe(content, "test"))

    model = lengthen.load(base, "float32", method="yarn", target=128)[0].train().requires_grad_()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    matrices, norms = ([p for p in model.parameters() if (p.ndim > 1) == wanted] for wanted in (True, False))
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": decay}, {"params": norms, "weight_decay": 0.0}],
                                  betas=(0.9, 0.95))  # fmt: skip
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0)).tolist()
    norms_before = []
    for step, share in enumerate((1 / 2, 1, 2 / 3, 1 / 3)):
        batches = [torch.from_numpy(ids[index])[None] for index in order[2 * step : 2 * step + 2]]
        targets = sum(batch.shape[1] - 1 for batch in batches)
        for batch in batches:
            logits = model(batch).logits[0, :-1]
            (torch.nn.functional.cross_entropy(logits, batch[0, 1:], reduction="sum") / targets).backward()
        norms_before.append(torch.nn.utils.clip_grad_norm_(model.parameters(), norm).item())
        for group in optimizer.param_groups:
            group["lr"] = rate * share
        optimizer.step()
        optimizer.zero_grad()
    assert min(norms_before) > norm
    records = RunFolder(run).read_metrics()
    assert [record["grad_norm"] for record in records] == pytest.approx(norms_before, rel=1e-4)
    trained = dict(lengthen.load(run, "float32")[0].named_parameters())
    assert max((weight - before[name]).abs().max() for name, weight in trained.items()) > rate
    for name, weight in model.named_parameters():
        torch.testing.assert_close(trained[name], weight, atol=1e-5, rtol=0)


def test_one_of_several_devices_without_a_launcher(base, documents, tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with caplog.at_level("INFO", logger="lengthen"):
        note_idle_devices(torch.device("cuda"))
        note_idle_devices(torch.device("cpu"))
    said = caplog.messages
    assert len(said) == 1
    assert "one of 4 GPUs" in said[0]
    assert "torchrun --nproc-per-node 4" in said[0]


def test_weights_are_the_inverse_frequency_of_prefixes():
    blocks = [Block(np.arange(10), (2, 8)), Block(np.arange(6), (4, 2), loss_weights=np.full(6, 0.5, np.float32))]
    weights = PrefixWeights(blocks)
    # Of 4 documents all have a first and second token, 2 a third and fourth, one more.
    document = [1, 1, 2, 2, 4, 4, 4, 4]
    assert weights.apply(blocks[0]).loss_weights.tolist() == [1, 1, *document]
    assert weights.apply(blocks[1]).loss_weights.tolist() == [0.5, 0.5, 1, 1, 0.5, 0.5]
    assert blocks[0].loss_weights is None
    assert PrefixWeights([Block(np.arange(3), (1,) * 3)] * 3 + [Block(np.arange(9), (9,))]).largest == 5
    # A document longer than all that were counted has the weight of the longest.
    assert weights.apply(Block(np.arange(20), (20,))).loss_weights[-1] == 4


def test_token_weights_reach_the_loss(base, documents, tmp_path):
    """With documents of several lengths the loss is another one, and the run learns it."""
    plain, exact = (
        [record["loss"] for record in RunFolder(train(recipe_of(base, documents, tmp_path / kind, learning_rate=1e-2,
         token_weights=kind))).read_metrics()] for kind in ("none", "exact")
    )  # fmt: skip
    assert exact[0] != plain[0]
    assert exact[-1] < exact[0]
