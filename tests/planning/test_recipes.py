"""Every shipped recipe trains: a dry run on a tiny model of its architecture."""

import json

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

import lengthen
from lengthen.planning.examine import config_of
from lengthen.recipe import load_recipe, parse_recipe, shipped_recipes

CONTEXT, TARGET = 32, 128
SIZES = {"vocab_size": 257, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 16,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT, "bos_token_id": 0,
         "eos_token_id": 0, "pad_token_id": 0}  # fmt: skip


def shrunken(recipe):
    """The base's config with few and small layers, its position scaling in proportion."""
    fields = config_of(recipe).to_dict()
    shrink = CONTEXT / fields["max_position_embeddings"]
    rope = dict(fields["rope_parameters"])
    if "original_max_position_embeddings" in rope:
        rope["original_max_position_embeddings"] = int(rope["original_max_position_embeddings"] * shrink)
    kept = {
        key: value for key, value in fields.items() if key not in ("layer_types", "original_max_position_embeddings")
    }
    return AutoConfig.for_model(**(kept | SIZES | {"rope_parameters": rope}))


@pytest.mark.parametrize("name", [name for name in shipped_recipes() if name != "tiny-2k"])
def test_a_dry_run(name, tokenizer, documents, tmp_path, monkeypatch):
    monkeypatch.setenv("LENGTHEN_CACHE", str(tmp_path / "cache"))
    shipped = load_recipe(name)
    assert shipped.base_config is not None
    config = shrunken(shipped)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    content = shipped.model_dump()
    # Questions about facts need some room.
    target = 4 * TARGET if shipped.data.beside else TARGET
    content["context"]["target"] = target
    content["data"]["sequence_length"] = shipped.data.sequence_length and target // 2
    content["attention"]["group_size"] = None
    content["data"] |= {"train": [str(documents)], "min_tokens": 1}
    if shipped.data.kind == "instruct":
        said = {"system": "Be brief.", "user": "Read.\n" + "word " * 30 + "\nWhich word?", "assistant": "word"}
        messages = [{"role": role, "content": text} for role, text in said.items()]
        (tmp_path / "questions.json").write_text(json.dumps([{"messages": messages}] * 3))
        content["data"]["train"] = [str(tmp_path / "questions.json")]
    if content["training"]["epochs"]:
        content["training"]["epochs"] = None
    content["training"] |= {"steps": 2, "accumulation": 1, "dtype": "float32"}
    if content["memory"]["mlp_tile"]:
        content["memory"]["mlp_tile"] = TARGET // 4
    # What one process on a CPU can't have.
    content["training"]["optimizer"], content["parallel"] = "adamw", "ddp"
    run = lengthen.train(parse_recipe({**content, "model": str(tmp_path / "base"), "out": str(tmp_path / "run")}, name))
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    scaled = AutoConfig.from_pretrained(run)
    assert scaled.max_position_embeddings == target
    assert scaled.rope_parameters["rope_type"] == shipped.context.method
    assert (run / ("model" if shipped.adapter.kind == "full" else "adapter")).is_dir()


@pytest.mark.parametrize("name", shipped_recipes())
def test_its_base_is_extended_as_it_says(name):
    recipe = load_recipe(name)
    config = config_of(recipe)
    assert config.max_position_embeddings < recipe.context.target
    if recipe.model.startswith("meta-llama/Llama-2"):
        size = recipe.model.split("-")[3]
        assert name.startswith((f"llama2-{size}", f"longalpaca-{size}"))
        assert config.max_position_embeddings == 4096
