"""Weights that are infinite or NaN, or would be in the dtype they are written in, are never written nor used."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import lengthen
from lengthen.adapters.finite import check_weights
from lengthen.adapters.multi import load_several
from lengthen.adapters.vllm import export_for_vllm
from lengthen.decoding.generate import generate
from lengthen.doctor import examine_model
from lengthen.errors import ModelError
from lengthen.report import write_report


def changed(folder, name, value):
    tensors = load_file(folder / "model.safetensors")
    tensors[name].view(-1)[0] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_names_what_is_wrong():
    good = {"a": torch.ones(3), "ids": torch.ones(2, dtype=torch.int64), "empty": torch.empty(0)}
    check_weights(good.items())
    check_weights([("a", torch.tensor([65504.0]))], torch.float16)
    for value in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(ModelError, match="1 tensor can't be written, b: infinite or NaN"):
            check_weights([*good.items(), ("b", torch.tensor([1.0, value]))])
    with pytest.raises(ModelError, match=r"b \(7e\+04\): beyond the range of float16"):
        check_weights([*good.items(), ("b", torch.tensor([-7e4]))], torch.float16)
    with pytest.raises(ModelError, match="and 2 more"):
        check_weights([(str(index), torch.tensor([float("nan")])) for index in range(5)])


@pytest.mark.parametrize("name", ["model.layers.0.mlp.down_proj.weight", "lm_head.weight"])
def test_an_export_beyond_a_dtype_is_refused_and_leaves_nothing(name, make_base, tmp_path):
    folder = changed(make_base("large"), name, 1e5)
    with pytest.raises(ModelError, match=name):
        lengthen.export(folder, tmp_path / "out", "float16")
    assert not (tmp_path / "out").exists()
    lengthen.export(folder, tmp_path / "out", "bfloat16")


def test_a_base_with_nan_is_neither_exported_nor_continued(tmp_path, make_base):
    folder = changed(make_base("nan"), "model.norm.weight", float("nan"))
    with pytest.raises(ModelError, match=r"model\.norm\.weight: infinite or NaN"):
        lengthen.export(folder, tmp_path / "out")
    model, tokenizer = lengthen.load(str(folder))
    for temperature in (0.0, 1.0):
        with pytest.raises(ModelError, match=r"logits are not numbers \(dtype torch\.\w+\)"):
            generate(model, tokenizer, "abc", 2, temperature, 0, lambda _text: None)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["lora_B", "input_layernorm"])
def test_an_adapter_that_is_not_finite_is_used_nowhere(part, value, base, run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "diverged")
    file = folder / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if part in name)
    tensors[name].view(-1)[-1] = value
    save_file(tensors, file, metadata={"format": "pt"})
    uses = (
        lambda: lengthen.load(str(folder)),
        lambda: lengthen.load(str(base), adapter=folder / "adapter"),
        lambda: lengthen.export(folder, tmp_path / "out"),
        lambda: write_report(folder),
        lambda: load_several(str(base), {"good": run / "adapter", "bad": folder / "adapter"}),
    )
    for use in uses:
        with pytest.raises(ModelError, match=rf"adapter .* infinite or NaN \(.*{part}.*\); its training has diverged"):
            use()
    assert not (tmp_path / "out").exists()
    findings = examine_model(str(folder))
    assert any(finding.is_problem and "infinite or NaN" in finding.text for finding in findings)


def test_no_file_of_an_export_keeps_the_old_length(make_base, tmp_path, make_run):
    from transformers import AutoModelForCausalLM

    folder = make_base("lengths", max_sequence_length=32)
    (folder / "generation_config.json").write_text(json.dumps({"max_length": 32, "eos_token_id": 0}))
    out = lengthen.export(make_run(folder, name="lengths"), tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["max_sequence_length"] == 128
    assert json.loads((out / "tokenizer_config.json").read_text())["model_max_length"] == 128
    assert "max_length" not in json.loads((out / "generation_config.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(out)
    grown = model.generate(torch.randint(1, 257, (1, 60)), max_new_tokens=4, do_sample=False)
    assert grown.shape[1] > 60
    shorter = make_base("limits")
    (shorter / "generation_config.json").write_text(json.dumps({"max_new_tokens": 7, "eos_token_id": 0}))
    out = lengthen.export(make_run(shorter, name="limits"), tmp_path / "kept")
    assert json.loads((out / "generation_config.json").read_text())["max_new_tokens"] == 7


@pytest.mark.parametrize("way", ["full", "vllm"])
def test_no_file_of_a_full_run_or_an_export_for_vllm_keeps_it(way, make_base, tmp_path, make_run):
    folder = make_base("lengths", model_max_length=32)
    (folder / "generation_config.json").write_text(json.dumps({"max_length": 32, "top_k": 5, "do_sample": True}))
    run = make_run(folder, name=way, adapter={"kind": "full"} if way == "full" else None)
    out = run / "model" if way == "full" else export_for_vllm(run, tmp_path / "out").base
    assert json.loads((out / "config.json").read_text())["model_max_length"] == 128
    generation = json.loads((out / "generation_config.json").read_text())
    assert "max_length" not in generation
    assert generation["top_k"] == 5
