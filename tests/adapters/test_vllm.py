"""What is exported for vLLM meets vLLM's documented rules, read as vLLM reads it, and computes what the run does."""

import json
import math
import shlex
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import lengthen
from lengthen.adapters.vllm import MAX_RANKS, export_for_vllm, serve_command
from lengthen.errors import ModelError, OutputError
from upstream_warnings import prefix_tuning_warns

TEXT = "abc def " * 12
RECIPES = {
    "embeddings and norms": {"rank": 4, "embeddings": True},
    "only LoRA": {"rank": 3, "embeddings": False, "norms": False, "targets": "all"},
    "rslora": {"rank": 4, "variant": "rslora"},
    "pissa": {"rank": 4, "variant": "pissa"},
}


@pytest.fixture(scope="module")
def ids(tokenizer):
    return torch.tensor([tokenizer(TEXT)["input_ids"]])


@pytest.fixture(scope="module", params=[*RECIPES, "tied"])
def exported(request, base, make_base, make_run, ids, tmp_path_factory):
    """A run, its logits, and its export."""
    start = make_base("tied", tie_word_embeddings=True) if request.param == "tied" else base
    run = make_run(start, "run", RECIPES.get(request.param))
    model, _ = lengthen.load(str(run), "float32")
    with torch.no_grad():
        logits = model(ids).logits
    return logits, export_for_vllm(str(run), tmp_path_factory.mktemp("vllm") / "out", "float32")


def read_as_vllm(adapter, linear, max_rank):
    """The update of each layer by vLLM's rules: vllm/lora/peft_helper.py, lora_model.py and utils.py (0.11)."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    rank, alpha, _targets = (config[key] for key in ("r", "lora_alpha", "target_modules"))  # required there
    assert not config.get("modules_to_save")
    assert not config.get("use_dora")
    assert config.get("bias", "none") == "none"
    assert rank <= max_rank
    scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    halves = {"A": {}, "B": {}}
    for name, tensor in load_file(adapter / "adapter_model.safetensors").items():
        parts = name.split(".")
        assert parts[:2] == ["base_model", "model"]
        assert parts[-1] == "weight"
        kind = parts[-2].removeprefix("lora_")
        layer = ".".join(parts[2:-2])
        assert layer in linear
        halves[kind][layer] = tensor
    assert halves["A"].keys() == halves["B"].keys()
    assert all(tensor.shape[0] == rank for tensor in halves["A"].values())
    return {layer: scale * halves["B"][layer] @ halves["A"][layer] for layer in halves["A"]}


def test_base_and_adapter_read_as_vllm_does_are_the_run(exported, ids):
    logits, export = exported
    model = AutoModelForCausalLM.from_pretrained(export.base)
    head = model.get_output_embeddings()
    linear = {name for name, each in model.named_modules() if isinstance(each, nn.Linear) and each is not head}
    command = shlex.split(export.command)
    updates = read_as_vllm(export.adapter, linear, int(command[command.index("--max-lora-rank") + 1]))
    with torch.no_grad():
        assert (model(ids).logits - logits).abs().max() > 1e-2, "the adapter is not in the base already"
        for layer, update in updates.items():
            model.get_parameter(f"{layer}.weight").add_(update)
        torch.testing.assert_close(model(ids).logits, logits, atol=1e-4, rtol=0)


def test_base_and_adapter_in_peft_are_the_run(exported, ids):
    logits, export = exported
    plain = AutoModelForCausalLM.from_pretrained(export.base)
    with torch.no_grad():
        torch.testing.assert_close(
            PeftModel.from_pretrained(plain, export.adapter)(ids).logits, logits, atol=1e-4, rtol=0
        )
        ours, _ = lengthen.load(str(export.base), "float32", adapter=export.adapter)
        torch.testing.assert_close(ours(ids).logits, logits, atol=1e-4, rtol=0)


def test_the_command_names_what_was_written(exported):
    _, export = exported
    program, verb, base, *options = shlex.split(export.command)
    assert (program, verb, base) == ("vllm", "serve", str(export.base))
    assert "--enable-lora" in options
    rank = int(options[options.index("--max-lora-rank") + 1])
    assert rank in MAX_RANKS
    assert options[options.index("--max-model-len") + 1] == "128"
    name, _, path = options[options.index("--lora-modules") + 1].partition("=")
    assert name
    assert Path(path) == export.adapter
    config = json.loads((export.base / "config.json").read_text())
    assert config["max_position_embeddings"] == 128
    assert config["rope_parameters"]["factor"] == 4
    assert AutoTokenizer.from_pretrained(export.base).model_max_length == 128


@pytest.mark.parametrize(("rank", "maximum"), [(1, 1), (2, 8), (8, 8), (9, 16), (64, 64), (300, 320), (512, 512)])
def test_the_smallest_maximum_that_holds_the_rank(rank, maximum):
    command = serve_command(Path("a folder"), "name", rank, 8192)
    assert f"--max-lora-rank {maximum} " in command
    assert shlex.split(command)[2] == "a folder/base"


REFUSED = {
    "dora": ({"variant": "dora"}, "it is DoRA"),
    "prefix": ({"kind": "prefix_tuning", "options": {"num_virtual_tokens": 4}}, "of kind prefix_tuning"),
    "full": ({"kind": "full"}, "has no adapter"),
    "loha": ({"kind": "loha", "options": {"target_modules": ["q_proj"]}}, "of kind loha"),
}


@prefix_tuning_warns
@pytest.mark.parametrize("kind", REFUSED)
def test_what_vllm_does_not_take_is_refused(kind, base, make_run, tmp_path):
    recipe, message = REFUSED[kind]
    run = make_run(base, kind, recipe, "full", {"packing": "concatenate"})
    with pytest.raises(ModelError, match=message):
        export_for_vllm(str(run), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


CHANGED = {
    "rank": ({"rank_pattern": {"q_proj": 2}}, "its rank differs between layers"),
    "alpha": ({"alpha_pattern": {"q_proj": 32}}, "its alpha differs between layers"),
    "embeddings": ({"target_modules": ["q_proj", "embed_tokens"]}, "LoRA on the embeddings"),
    "large": ({"r": 600}, "its rank 600 is above 512"),
    "biases": ({"bias": "all"}, "it trains biases"),
}


@pytest.mark.parametrize("kind", CHANGED)
def test_adapters_of_others_that_vllm_would_compute_differently(kind, base, tmp_path):
    from peft import LoraConfig, get_peft_model

    settings, message = CHANGED[kind]
    config = LoraConfig(**{"r": 4, "target_modules": ["q_proj", "k_proj"], "task_type": "CAUSAL_LM", **settings})
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match=message):
        export_for_vllm(str(base), tmp_path / "out", adapter=tmp_path / "adapter")
    assert not (tmp_path / "out").exists()


def test_a_place_with_content(run):
    with pytest.raises(OutputError, match="has content already"):
        export_for_vllm(str(run), run)


def test_the_export_command(run, tmp_path, lengthen_cli):
    call = partial(lengthen_cli, "export", run, tmp_path / "out")
    code, _, err = call("--for", "triton")
    assert code == 2
    assert "choose vllm" in err
    code, _, err = call("--for", "vllm", "--data", "python-stdlib:validation")
    assert code == 2
    assert "merges only" in err
    assert list(tmp_path.iterdir()) == []
    code, out, _ = call("--for", "vllm", "--json", str(tmp_path / "report.json"))
    assert code == 0
    *_, last = out.strip().splitlines()
    assert last.startswith("vllm serve ")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["command"] == last
    assert Path(report["adapter"], "adapter_model.safetensors").is_file()
