"""`lengthen plan` through the real command line."""

import json
from functools import partial

import pytest
from transformers import GPT2Config


@pytest.fixture
def run(lengthen_cli):
    return partial(lengthen_cli, "plan")


def test_a_recipe_that_fits(run, tmp_path):
    code, out, _ = run("llama2-7b-8k-qlora", "--device", "v100-32gb", "--json", tmp_path / "plan.json")
    assert code == 0
    assert out.startswith("fits: ")
    assert "at 30% of the peak" in out
    content = json.loads((tmp_path / "plan.json").read_text())
    assert content["fits"] is True
    assert sum(content["breakdown"].values()) == content["peak_bytes"] < content["device_bytes"]
    assert content["max_context"] > 8192
    assert content["seconds_per_step"] > 0


def test_a_recipe_that_does_not_fit_says_what_to_change(run):
    code, out, _ = run("llama2-13b-32k", "--device", "v100-32gb", "--devices", 8)
    assert code == 0
    assert out.startswith("does not fit: ")
    assert "it would fit with\n  parallel=zero3\n" in out


def test_only_the_longest_context(run):
    code, out, _ = run("llama2-7b-8k", "--device", "a100-80gb", "--max-context")
    assert code == 0
    assert int(out) % 1024 == 0
    assert run("llama2-7b-8k", "--device", "a100-80gb", "--quiet")[1] == ""


def test_skip_wise_sequences_set_no_limit_to_the_context(run):
    skip_wise = ["data.skip_wise=true", "data.sequence_length=2048", "attention.kind=full"]
    command = ["llama2-7b-8k", *skip_wise, "--device"]
    assert "longest context that fits: any, " in run(*command, "a100-80gb")[1]
    assert run(*command, "a100-80gb", "--max-context")[1] == "any\n"
    code, out, _ = run(*command, "t4-16gb")
    assert code == 0
    assert out.startswith("does not fit: ")
    assert "longest context that fits: 0 tokens\n" in out


def test_this_machine_and_an_efficiency(run):
    code, out, _ = run("tiny-2k", "--efficiency", "0.25")
    assert code == 0
    assert "at 25% of the peak" in out


def test_what_shards_send(run, tmp_path):
    shared = ["llama3.1-8b-256k", "parallel.sequence=8", "training.accumulation=1"]
    code, out, _ = run(*shared, "--device", "h100-80gb", "--devices", 8, "--json", tmp_path / "plan.json")
    assert code == 0
    sent = json.loads((tmp_path / "plan.json").read_text())["sequence_traffic_bytes"]
    # 8 key/value heads of 128 in 32 layers and 16 bits: of half of them half a group, and of all a sink. A process in
    # the middle sends it twice, the layers being recomputed, and gradients once.
    half_group, sink = 32 * 2 * 4 * 128 * 2 * 16384, 32 * 2 * 8 * 128 * 2
    assert sent == {"neighbors": 3 * half_group, "sinks": sink, "heads": 0, "total": 3 * half_group + sink}
    assert f"sent: {sent['total'] / 1e9:.3g} GB a step to the devices that share a sequence (neighbors" in out


def test_another_model_is_not_planned_with_the_recipes_config(run, make_base, tmp_path):
    run("llama2-7b-8k", f"model={make_base('other')}", "--device", "a100-80gb", "--json", tmp_path / "plan.json")
    assert json.loads((tmp_path / "plan.json").read_text())["parameters"] < 1e6


def test_input_that_can_not_be_used_is_one_line(run, make_base, tmp_path):
    (tmp_path / "gpt2").mkdir()
    GPT2Config(n_embd=32, n_layer=1, n_head=2).save_pretrained(tmp_path / "gpt2")
    (tmp_path / "gpt2" / "model.safetensors").write_bytes(b"")
    refused = {
        ("llama2-7b-8k", "--device", "a100"): "a100-40gb, a100-80gb",
        ("llama2-7b-8k", "--devices", "0"): "--devices 0 is too low",
        ("llama2-7b-8k", "--device", "b200", "--efficiency", "0"): "--efficiency 0 is no share",
        ("llama2-7b-8k", "--device", "b200", "base_config="): "base_config",
        (
            "llama3.1-8b-256k",
            "parallel.sequence=64",
            "attention.kind=full",
            "--devices",
            "64",
        ): "32 query and 8 key/value",
        ("llama2-7b-8k", "--device", "b200", f"model={tmp_path / 'gpt2'}"): "gpt2 has no RoPE",
        ("llama2-7b-8k", "--device", "b200", f"model={tmp_path / 'none'}"): "does not exist",
        ("llama2-7b-9k",): "llama2-7b-8k",
    }
    for arguments, part in refused.items():
        code, out, err = run(*arguments)
        assert (code, out) == (2, ""), arguments
        assert part in err
        assert len(err.splitlines()) == 1
