"""From a run to an ordinary folder, and a run without lengthen: the same logits, and nothing else touched."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import lengthen
from lengthen.errors import ModelError, OutputError
from upstream_warnings import prefix_tuning_warns

pytestmark = pytest.mark.invariants

TEXT = "abc def " * 12


def tree(folder):
    """Every file of a folder with a hash of its content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def ids(tokenizer):
    ids = torch.tensor([tokenizer(TEXT)["input_ids"]])
    assert ids.shape[1] > 32, "beyond the base's context"
    return ids


@pytest.fixture(scope="module")
def tied(make_base):
    return make_base("tied", tie_word_embeddings=True)


@pytest.fixture(scope="module", params=["untied", "tied"])
def bases(request, base, tied):
    return {"untied": base, "tied": tied}[request.param]


@pytest.fixture(scope="module")
def before(bases):
    return tree(bases)


@pytest.fixture(scope="module")
def runs(bases, before, make_run):
    return make_run(bases, bases.name)


@pytest.fixture(scope="module")
def run_logits(runs, ids):
    model, _ = lengthen.load(str(runs), "float32")
    with torch.no_grad():
        return model(ids).logits


@pytest.fixture(scope="module")
def exported(runs, tmp_path_factory):
    return lengthen.export(str(runs), tmp_path_factory.mktemp("exports") / "out", "float32")


def test_the_run_changed_the_model(bases, run_logits, ids):
    scaled, _ = lengthen.load(str(bases), "float32", method="yarn", target=128)
    assert (run_logits - scaled(ids).logits).abs().max() > 0.1


def test_a_float32_export_has_the_run_s_logits(exported, run_logits, ids):
    plain = AutoModelForCausalLM.from_pretrained(exported)
    assert plain.dtype == torch.float32
    torch.testing.assert_close(plain(ids).logits, run_logits, atol=1e-4, rtol=0)


def test_an_export_brings_positions_and_tokenizer(exported, tokenizer):
    config = AutoConfig.from_pretrained(exported)
    assert config.max_position_embeddings == 128
    assert config.rope_parameters["rope_type"] == "yarn"
    assert config.rope_parameters["factor"] == 4
    assert config.rope_parameters["original_max_position_embeddings"] == 32
    theirs = AutoTokenizer.from_pretrained(exported)
    assert theirs.model_max_length == 128
    assert theirs(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]


def test_an_export_is_an_ordinary_folder(exported, bases):
    tensors = load_file(exported / "model.safetensors")
    assert tensors.keys() == load_file(bases / "model.safetensors").keys()
    files = {path.name for path in exported.iterdir()}
    assert not [name for name in files if "adapter" in name or name.endswith((".bin", ".py"))]
    model = AutoModelForCausalLM.from_pretrained(exported)
    is_tied = bases.name == "tied"
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == is_tied
    assert ("lm_head.weight" in tensors) != is_tied
    loaded, _ = lengthen.load(str(exported))
    assert loaded.config.max_position_embeddings == 128


def test_a_bfloat16_export_is_half_the_size(runs, exported, run_logits, ids, tmp_path):
    half = lengthen.export(str(runs), tmp_path / "half")
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (half, exported)]
    assert sizes[0] == pytest.approx(sizes[1] / 2, rel=0.1)
    model = AutoModelForCausalLM.from_pretrained(half)
    assert model.dtype == torch.bfloat16
    # Merged in float32 and rounded once.
    for name, tensor in load_file(exported / "model.safetensors").items():
        assert torch.equal(model.get_parameter(name), tensor.bfloat16())


WITHOUT_LENGTHEN = """
import sys
sys.modules["lengthen"] = None
BASE, RUN, OUT, *ids = sys.argv[1:]
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained(BASE, config=AutoConfig.from_pretrained(RUN))
model = PeftModel.from_pretrained(base, RUN + "/adapter")
assert not any(name.startswith("lengthen.") for name in sys.modules)
torch.save(model(torch.tensor([[int(i) for i in ids]])).logits.detach(), OUT)
"""


def test_two_lines_load_a_run_without_lengthen(bases, runs, run_logits, ids, tmp_path):
    code = [line for line in WITHOUT_LENGTHEN.splitlines() if "from_pretrained" in line]
    readme = (runs / "adapter" / "README.md").read_text(encoding="utf-8")
    assert all(line in readme for line in code), "the adapter's README says so"
    arguments = [str(bases), str(runs), str(tmp_path / "logits.pt"), *map(str, ids[0].tolist())]
    subprocess.run([sys.executable, "-c", WITHOUT_LENGTHEN, *arguments], check=True, capture_output=True)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), run_logits, atol=1e-4, rtol=0)


def test_a_run_leaves_its_base_alone(bases, before, runs, exported):
    assert tree(bases) == before
    original = load_file(bases / "model.safetensors")
    model, _ = lengthen.load(str(runs), "float32")
    named = dict(model.named_parameters(remove_duplicate=False))
    compared = 0
    for name, tensor in original.items():
        stem, part = name.rsplit(".", 1)
        candidates = [f"base_model.model.{stem}.{inner}{part}" for inner in ("", "base_layer.", "original_module.")]
        (found,) = [each for each in candidates if each in named]
        assert torch.equal(named[found], tensor)
        assert not named[found].requires_grad
        compared += 1
    assert compared == len(original)


def test_a_run_names_its_base(bases, runs):
    record = json.loads((runs / "adapter" / "base.json").read_text(encoding="utf-8"))
    assert record["id"] == bases.name
    assert len(record["weight_hash"]) == 64
    assert record["context"] == 32


def test_export_of_base_and_adapter_equals_export_of_the_run(bases, runs, exported, tmp_path):
    out = lengthen.export(str(bases), tmp_path / "out", "float32", str(runs / "adapter"))
    ours, theirs = load_file(out / "model.safetensors"), load_file(exported / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert AutoConfig.from_pretrained(out).rope_parameters == AutoConfig.from_pretrained(exported).rope_parameters
    assert AutoTokenizer.from_pretrained(out).model_max_length == 128


def test_a_place_with_content_is_left_untouched(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    content = tree(tmp_path)
    for out in (tmp_path / "out", tmp_path / "file", tmp_path / "file" / "below", run):
        with pytest.raises(OutputError, match=str(out)):
            lengthen.export(str(run), out)
    assert tree(tmp_path) == content


@prefix_tuning_warns
def test_what_can_not_be_exported_leaves_nothing_behind(base, make_run, tmp_path):
    recipe = {"kind": "prefix_tuning", "options": {"num_virtual_tokens": 4}}
    run = make_run(base, "prefix", recipe, "full", {"packing": "concatenate"})
    with pytest.raises(ModelError, match="a prefix_tuning adapter can't be merged"):
        lengthen.export(str(run), tmp_path / "out")
    with pytest.raises(ModelError, match="float8"):
        lengthen.export(str(run), tmp_path / "out", "float8")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_fine(run, tmp_path):
    assert lengthen.export(str(run), tmp_path) == tmp_path
    assert (tmp_path / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["base", "tied"])
def test_a_fully_trained_run_is_a_model_and_exports(name, base, tied, make_run, ids, tmp_path):
    start = {"base": base, "tied": tied}[name]
    run = make_run(start, "full", {"kind": "full"}, learning_rate=0.005)
    model, tokenizer = lengthen.load(str(run), "float32")
    scaled, _ = lengthen.load(str(start), "float32", method="yarn", target=128)
    changed = [not torch.equal(a, b) for a, b in zip(model.parameters(), scaled.parameters(), strict=True)]
    assert all(changed)
    assert tokenizer.model_max_length == 128
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == (name == "tied")
    out = lengthen.export(str(run), tmp_path / "out", "float32")
    plain = AutoModelForCausalLM.from_pretrained(out)
    assert plain.config.max_position_embeddings == 128
    torch.testing.assert_close(plain(ids).logits, model(ids).logits, atol=1e-5, rtol=0)
