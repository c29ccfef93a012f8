"""What the campaign found, each by itself: the smallest input of the kind that was not refused as it should be."""

import json
import shutil

import pytest
import torch
import yaml
from disk import read_tree, write_recipe
from safetensors.torch import load_file, save_file

from lengthen.files import write_text
from lengthen.run_folder import RunFolder


@pytest.fixture
def refused(forks, tmp_path):
    """A function that runs a command, which has to end with one line that has these parts."""

    def run(arguments, *parts, **options):
        ended = forks.run(*arguments, folder=tmp_path, LENGTHEN_CACHE=str(tmp_path / "cache"), timeout=30, **options)
        assert ended.is_refusal, ended.err
        assert not ended.late
        for part in parts:
            assert str(part) in ended.err
        return ended

    return run


@pytest.mark.parametrize("content", ['{"model_type": "llama", "rope_scaling": "x"}', "[1]", '"x"', "[" * 10**5, "{}"])
def test_configs_of_other_forms(refused, base, tmp_path, content):
    folder = shutil.copytree(base, tmp_path / "base")
    (folder / "config.json").write_text(content)
    refused(["doctor", folder, "--quiet"])
    refused(["generate", folder, "--prompt", "a", "--quiet"])


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("a: " + "[" * 5000, "YAML"),
        ("seed: 2001-99-99", "YAML"),
        (f"seed: {'1' * 5000}", "YAML"),
        ("a: &a [x]\n" + "".join(f"{b}: &{b} [{f'*{a}, ' * 9}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
         + "model: *i", "model"),
    ],
    ids=["deep", "no date", "a long number", "aliases"],
)  # fmt: skip
def test_recipes_that_are_no_yaml(refused, tmp_path, content, part):
    (tmp_path / "recipe.yaml").write_text(content)
    ended = refused(["plan", tmp_path / "recipe.yaml", "--quiet"], part)
    assert len(ended.err) < 20_000


def test_results_nested_too_deep(refused, run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    (folder / "evals").mkdir(exist_ok=True)
    (folder / "evals" / "passkey-1.json").write_text("[" * 10**5)
    refused(["report", folder, "--quiet"], "passkey-1.json", "nested too deep")


def test_a_token_with_a_huge_id(refused, base, tmp_path):
    folder = shutil.copytree(base, tmp_path / "base")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["a"] = 2**31
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (tmp_path / "text.txt").write_text("b c d")
    arguments = ["data", "tokenize", tmp_path / "text.txt", "--model", folder, "--out", tmp_path / "out.bin"]
    refused(arguments, "'a'", 2**31)


def test_a_name_that_is_too_long(refused, base, tmp_path):
    name = "x" * 300 + ".txt"
    refused(["data", "tokenize", name, "--model", base, "--out", tmp_path / "out.bin"], name, "too long")
    refused(["doctor", f"./{name}"], name)


def test_a_longer_run_over_a_damaged_checkpoint_keeps_its_adapter(refused, forks, base, documents, tmp_path):
    recipe = write_recipe(tmp_path / "recipe.yaml", base, documents, tmp_path / "out", training={"steps": 2})
    assert forks.run("train", recipe, "--quiet").code == 0
    content = yaml.safe_load(recipe.read_text())
    recipe.write_text(yaml.safe_dump({**content, "training": {**content["training"], "steps": 4}}))
    (checkpoint,) = (tmp_path / "out" / "checkpoints").iterdir()
    whole = (checkpoint / "optimizer.pt").read_bytes()
    (checkpoint / "optimizer.pt").write_bytes(whole[:-100])
    before = read_tree(tmp_path / "out")
    refused(["train", recipe, "--resume", "--quiet"], checkpoint, "is damaged", "from the one before")
    assert read_tree(tmp_path / "out") == before
    (checkpoint / "optimizer.pt").write_bytes(whole)
    (tmp_path / "out" / "checkpoints" / "checkpoint-old").mkdir()  # a name that is no step
    assert forks.run("train", recipe, "--resume", "--quiet").code == 0


def test_a_run_killed_before_its_validation_is_validated(forks, base, documents, tmp_path):
    recipe = write_recipe(tmp_path / "recipe.yaml", base, documents, tmp_path / "out")
    assert forks.run("train", recipe, "--quiet").code == 0
    measured = read_tree(tmp_path / "out")
    (tmp_path / "out" / "evals" / "validation.json").unlink()
    assert forks.run("train", recipe, "--resume", "--quiet").code == 0
    assert read_tree(tmp_path / "out") == measured


def test_two_results_of_one_second(tmp_path):
    run = RunFolder(tmp_path)
    for _ in range(5):
        write_text(run.results_file("passkey"), "{}")
    assert len(list(run.evals.iterdir())) == 5


@pytest.mark.parametrize("damage", ["metrics", "metadata", "tensors"])
def test_a_longer_run_from_something_damaged_moves_nothing(refused, run, tmp_path, damage):
    folder = RunFolder(shutil.copytree(run, tmp_path / "run"))
    recipe = yaml.safe_load(folder.recipe.read_text())
    recipe |= {"out": str(folder.path)}
    folder.recipe.write_text(yaml.safe_dump(recipe))
    recipe["training"]["steps"] += 2
    (tmp_path / "longer.yaml").write_text(yaml.safe_dump(recipe))
    if damage == "metrics":
        folder.metrics.write_text("x\n" + folder.metrics.read_text())
    elif damage == "metadata":
        folder.metadata.write_text("[" * 10**5)
    else:
        file = max(folder.checkpoints.iterdir()) / "trainable.safetensors"
        tensors = load_file(file)
        tensors[min(tensors)] = tensors[min(tensors)][:1].contiguous()
        save_file(tensors, file)
    before = read_tree(folder.path)
    refused(["train", tmp_path / "longer.yaml", "--resume", "--quiet"])
    assert read_tree(folder.path) == before


def test_an_adapter_of_huge_weights(refused, run, tmp_path):
    folder = RunFolder(shutil.copytree(run, tmp_path / "run"))
    file = folder.adapter / "adapter_model.safetensors"
    save_file({name: torch.full_like(tensor, 3e38) for name, tensor in load_file(file).items()}, file)
    refused(["export", folder.path, tmp_path / "out", "--quiet"], "can't be merged", "NaN")
    assert not (tmp_path / "out").exists()
