"""What a plan knows of its base: found out once, then without torch, and anew when what it follows from changes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import Qwen2Config

import lengthen.planning
from lengthen.planning import plan
from lengthen.planning.base import base_facts
from lengthen.planning.devices import this_device
from lengthen.recipe import load_recipe, parse_recipe

WITHOUT_TORCH = """
import json, sys
from lengthen.planning import plan
from lengthen.recipe import load_recipe
print(json.dumps(plan(load_recipe(sys.argv[1]), sys.argv[2]).to_json()))
assert not {"torch", "transformers"} & sys.modules.keys()
"""


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("LENGTHEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "lengthen" / "bases"


@pytest.fixture
def recipe(make_base):
    content = {"model": str(make_base("planned")), "context": {"target": 128}, "training": {"steps": 1}}
    return parse_recipe(content, "mine")


@pytest.fixture
def forbid_examination(monkeypatch):
    return lambda: monkeypatch.setitem(sys.modules, "lengthen.planning.examine", None)


@pytest.mark.parametrize(("name", "device"), [("llama2-7b-8k", "v100-32gb"), ("llama2-7b-8k", "cpu")])
def test_a_second_plan_is_the_same_without_torch(name, device):
    expected = plan(load_recipe(name), device).to_json()
    command = [sys.executable, "-c", WITHOUT_TORCH, name, device]
    again = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert json.loads(again.stdout) == json.loads(json.dumps(expected))


def test_what_was_found_out_is_read(recipe, forbid_examination):
    found = base_facts(recipe)
    forbid_examination()
    assert base_facts(recipe) == found
    for section, change in (("adapter", {"rank": 3}), ("context", {"target": 256})):
        changed = getattr(recipe, section).model_copy(update=change)
        with pytest.raises(ImportError):
            base_facts(recipe.model_copy(update={section: changed}))


def test_another_config_is_another_base(recipe):
    found = base_facts(recipe)
    file = Path(recipe.model) / "config.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    before = content["num_hidden_layers"]
    file.write_text(json.dumps(content | {"num_hidden_layers": before + 1}), encoding="utf-8")
    try:
        assert base_facts(recipe).shape.layer_count == found.shape.layer_count + 1
    finally:
        file.write_text(json.dumps(content), encoding="utf-8")


def test_a_damaged_file_is_found_out_again(recipe, cache):
    found = base_facts(recipe)
    for file in cache.iterdir():
        file.write_text("{}", encoding="utf-8")
    assert base_facts(recipe) == found


def test_warnings_come_each_time(forbid_examination):
    config = Qwen2Config(
        vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=32, use_sliding_window=True, sliding_window=16, max_window_layers=2,
    )  # fmt: skip
    content = {"model": "someone/elsewhere", "base_config": config.to_dict(), "context": {"target": 128}}
    recipe = parse_recipe({**content, "training": {"steps": 1}}, "mine")
    for _ in range(2):
        with pytest.warns(UserWarning, match="2 window layers of qwen2 share"):
            plan(recipe, "a100-80gb")
        forbid_examination()


def test_this_machine_is_what_torch_says():
    import torch

    from lengthen.models.devices import default_device

    assert (this_device().kind == "cpu") == (default_device().type == "cpu")
    cpu = torch.cpu
    assert lengthen.planning.find_device("cpu").bf16 == (
        cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported()
    )
