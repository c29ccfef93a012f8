"""The quickstart: what it measures and writes; its goals are a slow test, since they need the whole training."""

import json

import pytest
import torch
from safetensors import safe_open

from command_line import succeed
from lengthen.data.stdlib import stdlib_documents
from lengthen.models.resolve import resolve_model


def test_train_and_validation_files_are_apart_and_without_tests():
    train, validation = (stdlib_documents(split) for split in ("train", "validation"))
    assert not set(train) & set(validation)
    assert 0.05 < len(validation) / (len(train) + len(validation)) < 0.25
    assert not [path for path in train + validation if {"test", "tests", "site-packages"} & set(path.parts)]


def test_the_shipped_base_is_small_bfloat16_and_untied():
    file = f"{resolve_model('tiny').location}/model.safetensors"
    with safe_open(file, "pt") as weights:
        names = weights.keys()
        assert all(weights.get_tensor(name).dtype == torch.bfloat16 for name in names)
        assert sum(weights.get_tensor(name).nbytes for name in names) <= 12_000_000
        assert "lm_head.weight" in names


LENGTHS = ["256", "512", "1024", "2048"]


def quickstart(folder, *overrides):
    done = succeed("quickstart", *overrides, "--out", folder / "run", "--json", folder / "numbers.json")
    return json.loads((folder / "numbers.json").read_text()), done


def test_one_step_measures_base_and_run_and_prints_a_table(tmp_path):
    result, done = quickstart(tmp_path, "training.steps=1")
    assert {"seconds", "documents", "base", "sliding", "extended", "by_position", "lookup", "run"} <= set(result)
    for found in result["lookup"].values():
        assert list(found) == LENGTHS
        assert all(0 <= share <= 1 for share in found.values())
    # Within its context the base finds; beyond it nothing.
    assert result["lookup"]["base"]["256"] >= 0.9
    assert result["lookup"]["base"]["2048"] <= 0.05
    assert list(result["sliding"]) == LENGTHS
    assert result["base"] == {"256": result["sliding"]["256"]}
    assert "look-ups found: base (256 tokens)" in done.stdout
    assert "perplexity: extended to 2,048" in done.stdout
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.slow
def test_goals(tmp_path):
    result, _ = quickstart(tmp_path)
    assert all(share >= 0.9 for share in result["lookup"]["extended"].values())
    # One percent above it (docs/results/quickstart.md); settings that are below forget how to copy digits.
    assert result["extended"]["2048"] <= 1.01 * result["sliding"]["2048"]
