"""Multimodal bases: the text decoder is adapted, and what stands beside it is kept."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

import lengthen
from command_line import succeed
from gemma3_files import write_gemma3
from lengthen.adapters.build import add_adapter
from lengthen.adapters.load import load_apart
from lengthen.adapters.save import save_adapter
from lengthen.doctor import examine_model
from lengthen.errors import ModelError
from lengthen.models.fingerprint import weight_hashes
from lengthen.models.load import keeps_towers, load_config, towers_of
from lengthen.recipe import AdapterRecipe

pytestmark = pytest.mark.invariants


@pytest.fixture
def multimodal(base, tmp_path):
    folder = write_gemma3(tmp_path / "base", base)
    (folder / "preprocessor_config.json").write_text("{}")
    return folder


def test_only_the_decoder_is_adapted_and_an_export_keeps_the_rest(multimodal, tmp_path):
    apart = load_apart(multimodal, "float32", None, torch.device("cpu"))
    record = {"id": "multimodal", "model": str(multimodal), "context": 128, **weight_hashes(apart.model)}
    model = add_adapter(apart.model, AdapterRecipe())
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert not [name for name in trained if "vision" in name or "projector" in name]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.1 if name in trained else 0)
    save_adapter(
        model, tmp_path / "adapter", apart.model.config, {key: value for key, value in record.items() if value}
    )

    out, told = tmp_path / "out", tmp_path / "told.json"
    arguments = ["export", multimodal, out, "--adapter", tmp_path / "adapter", "--dtype", "float32", "--json", told]
    result = succeed(*arguments)
    assert "the text decoder has what was trained; vision kept as in the base" in result.output
    assert json.loads(told.read_text())["towers"] == towers_of(load_config(apart.source)) == ["vision"]
    before, after = load_file(multimodal / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if "vision" in name or "projector" in name} <= same
    assert len(same) < len(before)
    assert (out / "preprocessor_config.json").is_file()


TEXT = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 0,
    "pad_token_id": 0,
}  # fmt: skip
VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize("targets", ["attention", "all"])
@pytest.mark.parametrize(("kind", "towers"), [("gemma3", {"vision"}), ("gemma4", {"vision", "audio"})])
def test_nothing_is_trained_in_towers_of_any_kind(kind, towers, targets):
    if kind not in CONFIG_MAPPING:
        pytest.skip(f"transformers has no {kind} yet")
    config = AutoConfig.for_model(kind, **{f"{tower}_config": {} for tower in towers})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    adapted = add_adapter(model, AdapterRecipe(targets=targets))
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert any("language_model" in name for name in trained)
    assert not [name for name in trained if any(tower in name for tower in towers)]
    assert set(towers_of(config)) == towers


@pytest.mark.parametrize(("kind", "kept"), [("gemma3", True), ("llama4", False)])
def test_towers_are_kept_where_they_are_loaded(kind, kept):
    config = AutoConfig.for_model(kind, text_config=TEXT, vision_config=VISION)
    assert towers_of(config) == ["vision"]
    assert keeps_towers(config) == kept


@pytest.mark.parametrize("text", ["llama", "mistral"])
def test_a_base_whose_text_decoder_can_not_be_had_is_refused_in_one_line(text, base, tmp_path):
    vision = {**VISION, "model_type": "clip_vision_model", "image_size": 28, "patch_size": 14}
    config = AutoConfig.for_model("llava", text_config={**TEXT, "model_type": text}, vision_config=vision)
    AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no text model that transformers can build alone"):
        lengthen.load(str(tmp_path))
    (towers,) = [found for found in examine_model(str(tmp_path)) if found.subject == "towers"]
    assert towers.is_problem
    assert "no text model" in towers.text
