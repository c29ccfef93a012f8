"""Adapters as other trainers leave them: their tokenizer, template and added tokens beside the weights."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import lengthen
from lengthen.adapters.longlora import import_published
from lengthen.adapters.tokenizer import tokenizer_beside
from lengthen.doctor.model import examine_model
from lengthen.errors import ModelError

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"


def tuned(base, folder, added=2, template=TEMPLATE, with_tokenizer=True, safe=True, **settings):
    """A LoRA adapter over a base whose vocabulary was extended first, saved as TRL and unsloth do."""
    torch.manual_seed(1)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    if added:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<|more|>"][:added]})
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    tokenizer.chat_template = template
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, **settings)
    peft_model = get_peft_model(model, config)
    for parameter in peft_model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    peft_model.save_pretrained(folder, safe_serialization=safe)
    if with_tokenizer:
        tokenizer.save_pretrained(folder)
    return peft_model.eval(), tokenizer


def logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits


@pytest.mark.parametrize("modules", [None, ["embed_tokens", "lm_head"]])
@pytest.mark.parametrize("added", [1, 2, 3])
def test_added_rows_are_loaded_with_their_tokenizer_and_exported(added, modules, base, tmp_path):
    theirs, tokenizer = tuned(base, tmp_path / "adapter", added, modules_to_save=modules)
    model, ours = lengthen.load(str(base), dtype="float32", adapter=tmp_path / "adapter")
    assert len(ours) == len(tokenizer) == 257 + added
    assert ours.chat_template == TEMPLATE
    ids = ours("abc<|im_start|>def")["input_ids"]
    assert 257 in ids
    torch.testing.assert_close(logits(model, ids), logits(theirs, ids))

    out = lengthen.export(base, tmp_path / "out", "float32", adapter=tmp_path / "adapter")
    exported, written = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert written("abc<|im_start|>def")["input_ids"] == ids
    assert written.chat_template == TEMPLATE
    assert exported.config.vocab_size == 257 + added
    torch.testing.assert_close(logits(exported, ids), logits(theirs, ids), atol=1e-5, rtol=1e-5)


def test_added_rows_in_bin_files(base, tmp_path):
    theirs, _ = tuned(base, tmp_path / "adapter", safe=False, modules_to_save=["embed_tokens", "lm_head"])
    assert (tmp_path / "adapter" / "adapter_model.bin").is_file()
    model, ours = lengthen.load(str(base), dtype="float32", adapter=tmp_path / "adapter")
    ids = ours("abc<|im_start|>def<|im_end|>")["input_ids"]
    torch.testing.assert_close(logits(model, ids), logits(theirs, ids))
    said = {(each.subject, each.text) for each in examine_model(str(base), tmp_path / "adapter")}
    assert ("adapter", "brings 259 embedding rows; its base has 257") in said


def test_a_template_and_a_tokenizer_without_new_tokens(base, tmp_path):
    tuned(base, tmp_path / "adapter", added=0)
    assert lengthen.load(str(base), adapter=tmp_path / "adapter")[1].chat_template == TEMPLATE
    only = tmp_path / "only"
    tuned(base, only, added=0, with_tokenizer=False)
    assert tokenizer_beside(str(base), only).chat_template is None
    (only / "chat_template.jinja").write_text(TEMPLATE)
    assert tokenizer_beside(str(base), only).chat_template == TEMPLATE


def test_import_keeps_added_rows_with_the_tokenizer_that_knows_them(base, tmp_path):
    _, tokenizer = tuned(base, tmp_path / "adapter", 2, modules_to_save=["embed_tokens", "lm_head"])
    imported = import_published(tmp_path / "adapter", tmp_path / "run", 64, str(base))
    assert imported.dropped_rows == 0
    model, ours = lengthen.load(str(tmp_path / "run"), dtype="float32")
    assert len(ours) == len(tokenizer)
    assert model.get_input_embeddings().weight.shape[0] == 259
    out = lengthen.export(tmp_path / "run", tmp_path / "out", "float32")
    assert AutoModelForCausalLM.from_pretrained(out).config.vocab_size == 259
    assert len(AutoTokenizer.from_pretrained(out)) == 259
    assert json.loads((out / "config.json").read_text())["max_position_embeddings"] == 64


def test_a_base_with_more_rows_than_the_adapter_is_another(base, make_base, tmp_path):
    tuned(base, tmp_path / "adapter", 1, modules_to_save=["embed_tokens", "lm_head"])
    with pytest.raises(ModelError, match="258 embedding rows, and its base 300"):
        lengthen.load(str(make_base("rows", vocab_size=300)), adapter=tmp_path / "adapter")
