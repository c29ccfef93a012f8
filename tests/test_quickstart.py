"""The quickstart: what it measures and writes; its goals are a slow test, since they need the whole training."""

import html
import json

import pytest
import torch
from safetensors import safe_open

from lengthen.data.stdlib import stdlib_documents
from lengthen.models.resolve import resolve_model
from lengthen.quickstart import CONTEXTS, quickstart
from lengthen.report.numbers import as_perplexity


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


def test_one_step_writes_table_plot_and_json(tmp_path):
    result = quickstart(tmp_path / "run", overrides=["training.steps=1"])
    assert set(result) == {"seconds", "documents", "base", "scaled", "extended", "by_position", "run"}
    assert result["documents"] == 16
    for name in ("base", "scaled", "extended"):
        assert list(result[name]) == [str(context) for context in CONTEXTS]
    assert result["base"]["2048"] > 3 * result["base"]["256"]
    assert result["scaled"]["2048"] < result["base"]["2048"]
    assert json.loads((tmp_path / "run" / "evals" / "quickstart.json").read_text()) == result
    assert (tmp_path / "run" / "perplexity.png").read_bytes().startswith(b"\x89PNG")
    report = html.unescape((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    extended, base = (as_perplexity(result[name]["2048"]) for name in ("extended", "base"))
    assert f"Given 2,048 tokens the run's perplexity is {extended}, and the base's {base}" in report


@pytest.mark.slow
def test_goals(tmp_path):
    result = quickstart(tmp_path / "run")
    base, scaled, extended = (result[name] for name in ("base", "scaled", "extended"))
    assert extended["2048"] < base["256"]
    assert extended["2048"] <= 0.95 * scaled["2048"]
    assert extended["256"] <= 1.15 * base["256"]
