"""A whole run on a random base: what it writes, what it refuses, and that it can be stopped and taken up again."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lengthen.adapters.load import load
from lengthen.attention import backends
from lengthen.errors import DataError, Interrupted, LengthenError, ModelError, OutputError, RecipeError
from lengthen.recipe import load_recipe, parse_recipe
from lengthen.run_folder import RunFolder
from lengthen.training.optim import lr_multiplier
from lengthen.training.run import train

pytestmark = pytest.mark.invariants

KEYS = {"step", "loss", "learning_rate", "grad_norm", "tokens_per_second", "mfu", "seconds",
        "peak_memory_bytes"}  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LENGTHEN_CACHE", str(tmp_path / "cache"))


def settings(base, documents, out, **training):
    """A recipe as nested dicts: 32 -> 128 tokens, float32, with dropout so that random state matters."""
    return {
        "model": str(base),
        "out": str(out),
        "context": {"target": 128, "method": "yarn"},
        "adapter": {"dropout": 0.1, "embeddings": True},
        "data": {"train": [str(documents)]},
        "training": {
            "steps": 4,
            "learning_rate": 1e-3,
            "schedule": "constant",
            "warmup_steps": 1,
            "dtype": "float32",
            "save_every": 2,
            **training,
        },
    }


def run(base, documents, out, **training):
    return train(parse_recipe(settings(base, documents, out, **training), "test"))


def losses(folder):
    return [record["loss"] for record in RunFolder(Path(folder)).read_metrics()]


@pytest.fixture(scope="module")
def finished(base, documents, tmp_path_factory):
    return run(base, documents, tmp_path_factory.mktemp("runs") / "whole", steps=6)


def test_run_folder_is_whole(finished):
    names = {path.name for path in finished.iterdir()}
    assert {"recipe.yaml", "config.json", "tokenizer.json", "metrics.jsonl", "adapter", "checkpoints"} <= names
    config = json.loads((finished / "config.json").read_text())
    assert config["max_position_embeddings"] == 128
    assert config["rope_parameters"]["rope_type"] == "yarn"
    assert sorted(path.name for path in (finished / "checkpoints").iterdir()) == ["checkpoint-4", "checkpoint-6"]
    records = RunFolder(finished).read_metrics()
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert all(set(record) == KEYS for record in records)
    assert records[0]["loss"] > records[-1]["loss"]
    assert all(t.dtype == torch.float32 for t in load_file(finished / "adapter" / "adapter_model.safetensors").values())
    targets = json.loads((finished / "adapter" / "adapter_config.json").read_text())["target_modules"]
    assert targets == sorted(targets)  # the same bytes from every process


def test_base_weights_are_unchanged(finished, base):
    trained, _ = load(str(finished), "float32")
    original = AutoModelForCausalLM.from_pretrained(base)
    frozen = {
        name.removeprefix("base_model.model.").replace(".base_layer", "").replace(".original_module", ""): tensor
        for name, tensor in trained.state_dict().items()
        if "lora_" not in name and "modules_to_save" not in name
    }
    assert frozen.keys() == original.state_dict().keys()
    for name, tensor in original.state_dict().items():
        assert torch.equal(frozen[name], tensor), name


def test_norms_move_over_a_bfloat16_base(make_base, documents, tmp_path):
    folder = run(
        make_base("bf16", torch.bfloat16), documents, tmp_path / "run", steps=10, learning_rate=2e-5, dtype="bfloat16"
    )
    tensors = load_file(folder / "adapter" / "adapter_model.safetensors")
    norms = torch.cat([tensor for name, tensor in tensors.items() if "norm" in name])
    assert len(norms) == 5 * 32
    assert (norms != 1).float().mean() >= 0.99


def test_full_and_lora_and_concatenate_learn(base, documents, tmp_path):
    content = settings(base, documents, tmp_path / "full", steps=6)
    content["adapter"] = {"kind": "full"}
    content["data"]["packing"] = "concatenate"
    folder = train(parse_recipe(content, "test"))
    assert losses(folder)[-1] < losses(folder)[0]
    assert (folder / "model" / "model.safetensors").is_file()
    loaded, _ = load(str(folder), "float32")
    assert loaded.config.max_position_embeddings == 128


def test_s2_equals_full_attention_where_groups_hold_whole_documents(base, documents, tmp_path):
    trajectories = []
    for kind in ({"kind": "s2", "group_size": 256}, {"kind": "full"}):
        content = settings(base, documents, tmp_path / kind["kind"])
        content["attention"] = kind
        trajectories.append(losses(train(parse_recipe(content, "test"))))
    assert trajectories[0] == pytest.approx(trajectories[1], rel=1e-5)


def test_a_backend_computes_full_attention_too(base, documents, tmp_path, monkeypatch):
    trajectories, calls = [], []
    kernel = backends.s2_sdpa
    monkeypatch.setattr(backends, "s2_sdpa", lambda *inputs: calls.append(inputs) or kernel(*inputs))
    for backend in ("auto", "sdpa"):
        content = settings(base, documents, tmp_path / backend)
        content["attention"] = {"kind": "full", "backend": backend}
        content["data"]["packing"] = "concatenate"
        trajectories.append(losses(train(parse_recipe(content, "test"))))
        assert bool(calls) == (backend == "sdpa")
    assert trajectories[0] == pytest.approx(trajectories[1], rel=1e-5)


@pytest.mark.parametrize("kind", [False, "keep_attention"])
def test_checkpointing_changes_nothing(base, documents, tmp_path, finished, kind):
    content = settings(base, documents, tmp_path / "plain", steps=6)
    content["memory"] = {"activation_checkpointing": kind}
    assert losses(train(parse_recipe(content, "test"))) == pytest.approx(losses(finished), rel=1e-5)


def test_accumulation_equals_a_larger_batch(base, documents, tmp_path):
    trajectories = []
    for name, batch in (("accumulated", {"accumulation": 2}), ("larger", {"batch_size": 2})):
        content = settings(base, documents, tmp_path / name, **batch)
        content["adapter"]["dropout"] = 0.0
        trajectories.append(losses(train(parse_recipe(content, "test"))))
    assert trajectories[0] == pytest.approx(trajectories[1], rel=1e-5)


def test_training_at_the_bases_own_context(base, documents, tmp_path):
    content = settings(base, documents, tmp_path / "run", learning_rate=1e-2) | {
        "context": {"target": 32, "method": "none"},
        "attention": {"kind": "full"},
    }
    folder = train(parse_recipe(content, "test"))
    assert losses(folder)[-1] < losses(folder)[0]
    before, after = (load(str(model))[0].config for model in (base, folder))
    assert after.rope_parameters == before.rope_parameters
    assert after.max_position_embeddings == before.max_position_embeddings == 32


def test_refusals(base, documents, tmp_path, finished):
    for wrong, message in (
        ({"pattern": "plian"}, "did you mean 'plain'"),
        ({"backend": "flash_attention_2"}, "CUDA"),
        ({"kind": "full", "backend": "flash_attention_2"}, "CUDA"),
    ):
        content = {**settings(tmp_path / "no-base", documents, tmp_path / "early"), "attention": wrong}
        with pytest.raises(LengthenError, match=message):
            train(parse_recipe(content, "test"))
    content = settings(base, documents, tmp_path / "short")
    content["data"] |= {"sequence_length": 32}
    with pytest.raises(DataError, match="no training token lies beyond"):
        train(parse_recipe(content, "test"))
    assert not (tmp_path / "short").exists()
    before = sorted(path.name for path in finished.iterdir())
    with pytest.raises(OutputError, match="`resume`"):
        run(base, documents, finished)
    assert sorted(path.name for path in finished.iterdir()) == before
    with pytest.raises(RecipeError, match=r"different: training\.learning_rate\).* Only .*training\.steps"):
        train(parse_recipe(settings(base, documents, finished, steps=6, learning_rate=1e-5), "test"), resume=True)
    with pytest.raises(RecipeError, match=r"training\.steps 6, and can only go on with more, not with 5"):
        train(parse_recipe(settings(base, documents, finished, steps=5), "test"), resume=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(OutputError, match="other content"):
        run(base, documents, tmp_path / "other")


def test_a_head_that_is_not_known_is_refused(base, documents, tmp_path):
    shutil.copytree(base, tmp_path / "strange")
    config = json.loads((base / "config.json").read_text())
    # HyperCLOVA X has Llama's weights, but multiplies its logits.
    config |= {"model_type": "hyperclovax", "architectures": ["HyperCLOVAXForCausalLM"]}
    config |= {"use_post_norm": False, "logits_scaling": 3.0}
    (tmp_path / "strange" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="output head"):
        run(tmp_path / "strange", documents, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_no_step_of_a_schedule_is_lost():
    shares = {
        kind: [lr_multiplier(kind, step, 10, 3) for step in range(1, 11)] for kind in ("constant", "linear", "cosine")
    }
    assert shares["constant"] == [pytest.approx(x) for x in (1 / 3, 2 / 3, *[1] * 8)]
    assert shares["linear"][2:] == [pytest.approx(1 - i / 8) for i in range(8)]
    for values in shares.values():
        assert min(values) > 0
        assert values[:3] == [pytest.approx(x) for x in (1 / 3, 2 / 3, 1)]
        assert values[2:] == sorted(values[2:], reverse=True)
    assert lr_multiplier("linear", 1, 4, 0) == pytest.approx(0.8)
    for steps, warmup in itertools.product(range(1, 5), range(6)):
        assert all(0 <= lr_multiplier("cosine", step, steps, warmup) <= 1 for step in range(1, steps + 2))


DRIVER = """
import os, signal, sys
from pathlib import Path
from lengthen.recipe import load_recipe
from lengthen.training import checkpoint, loop, run

where, when = sys.argv[2], int(sys.argv[3])
forward_backward, save_optimizer = loop.Loop._forward_backward, checkpoint._save_optimizer
def die_in_step(self, step):
    if where == "step" and step == when + 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return forward_backward(self, step)
def die_in_save(folder, *arguments):
    save_optimizer(folder, *arguments)  # weights and optimizer are written, the random states and the step are not
    if where == "save" and (folder.parent / f"checkpoint-{when - 2}").exists() == (when > 2):
        os.kill(os.getpid(), signal.SIGKILL)
loop.Loop._forward_backward, checkpoint._save_optimizer = die_in_step, die_in_save
run.train(load_recipe(sys.argv[1]), resume="--resume" in sys.argv)
"""


def write_recipe(path, content):
    path.write_text(parse_recipe(content, "test").to_yaml())
    return path


def start(*arguments, **more):
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "OMP_WAIT_POLICY": "passive"}
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


@pytest.mark.parametrize(("where", "when"), [("step", 3), ("save", 4), ("save", 2)])
def test_killed_run_follows_the_uninterrupted_trajectory(base, documents, tmp_path, finished, where, when):
    recipe = write_recipe(tmp_path / "recipe.yaml", settings(base, documents, tmp_path / "run", steps=6))
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    process = start(driver, recipe, where, when)
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    if where == "save":
        assert not (tmp_path / "run" / "checkpoints" / f"checkpoint-{when}").exists()
    process = start(driver, recipe, "nowhere", 0, "--resume")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert losses(tmp_path / "run") == losses(finished)
    ours, whole = (
        load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (tmp_path / "run", finished)
    )
    for name, tensor in whole.items():
        assert torch.equal(ours[name], tensor), name


def test_killed_after_the_last_step_only_the_adapter_is_written_again(base, documents, tmp_path):
    folder = run(base, documents, tmp_path / "run")
    adapter = (folder / "adapter" / "adapter_model.safetensors").read_bytes()
    before = losses(folder)
    shutil.rmtree(folder / "adapter")
    train(parse_recipe(settings(base, documents, folder), "test"), resume=True)
    assert (folder / "adapter" / "adapter_model.safetensors").read_bytes() == adapter
    assert losses(folder) == before


def test_a_run_goes_on_for_more_steps_and_is_what_a_longer_one_is(base, documents, tmp_path, finished):
    folder = run(base, documents, tmp_path / "run", steps=4)
    adapter = (folder / "adapter" / "adapter_model.safetensors").read_bytes()
    longer = settings(base, documents, folder, steps=6, save_every=1, log_every=2)
    train(parse_recipe(longer, "test"), resume=True)
    ours, whole = (load_file(each / "adapter" / "adapter_model.safetensors") for each in (folder, finished))
    for name, tensor in whole.items():
        assert torch.equal(ours[name], tensor), name
    assert [record["step"] for record in RunFolder(folder).read_metrics()] == [1, 2, 3, 4, 6]
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["checkpoint-5", "checkpoint-6"]
    assert load_recipe(folder / "recipe.yaml").training.steps == 6
    # What it had come to before is still there; and now it is finished.
    assert (folder / "adapter-4" / "adapter_model.safetensors").read_bytes() == adapter
    before = (folder / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    train(parse_recipe(longer, "test"), resume=True)
    assert (folder / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns == before


def test_a_stop_in_the_last_step_stops_too_and_goes_on_to_the_same_end(base, documents, tmp_path):
    recipe = parse_recipe(settings(base, documents, tmp_path / "run", steps=2), "test")
    answers = iter([False, True])
    with pytest.raises(Interrupted, match="stopped after step 2, with a checkpoint"):
        train(recipe, stop=lambda: next(answers))
    assert not RunFolder(tmp_path / "run").is_finished
    train(recipe, resume=True)
    whole = run(base, documents, tmp_path / "whole", steps=2)
    ours, theirs = (load_file(each / "adapter" / "adapter_model.safetensors") for each in (tmp_path / "run", whole))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_with_a_checkpoint_and_resumes(base, documents, tmp_path, number):
    recipe = write_recipe(
        tmp_path / "recipe.yaml", settings(base, documents, tmp_path / "run", steps=400, save_every=400)
    )
    command = ["-m", "lengthen.cli", "train", str(recipe), "--quiet"]
    process = start(*command)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.time() + 300
    while not (metrics.is_file() and metrics.stat().st_size) and time.time() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 128 + number, errors
    assert "go on with --resume" in errors
    assert "Traceback" not in errors
    stopped = RunFolder(tmp_path / "run").read_metrics()[-1]["step"]
    assert (tmp_path / "run" / "checkpoints" / f"checkpoint-{stopped}").is_dir()
