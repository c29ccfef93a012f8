"""Token ids without an embedding row: one line, in every way that a model can be used."""

import json
import shutil

import numpy as np
import pytest
from transformers import AutoTokenizer

import lengthen
from command_line import invoke
from lengthen.chat.session import ChatSession
from lengthen.decoding.generate import generate
from lengthen.errors import LengthenError, ModelError
from lengthen.recipe import parse_recipe


@pytest.fixture
def added(base, tmp_path):
    """The test base with two tokens more than rows."""
    folder = shutil.copytree(base, tmp_path / "added")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.save_pretrained(folder)
    return folder


def test_ordinary_text_is_read_as_ever(added):
    model, tokenizer = lengthen.load(str(added))
    assert generate(model, tokenizer, "abc", 2, 0.0, 0, lambda _text: None).new_tokens > 0


def test_generate_and_chat(added):
    model, tokenizer = lengthen.load(str(added))
    with pytest.raises(ModelError, match=r"'<\|im_start\|>' has id 257.* 257 tokens only"):
        generate(model, tokenizer, "a <|im_start|> b", 2, 0.0, 0, lambda _text: None)
    session = ChatSession(model, tokenizer, 512, "chatml")
    with pytest.raises(LengthenError, match=r"has id 25[78]"):
        session.ask("hi", 2)


@pytest.mark.parametrize("options", [["--kind", "instruct", "--template", "chatml"], []])
def test_data_inspect_and_tokenize(options, added, base, tmp_path):
    """With a chat template of tokens without rows, and with documents that are token ids already."""
    if options:
        (tmp_path / "data.jsonl").write_text(json.dumps({"instruction": "question", "output": "answer"}) + "\n")
        source = str(tmp_path / "data.jsonl")
    else:
        np.array([1, 2, 258, 3], dtype=np.uint16).tofile(tmp_path / "data.bin")
        source = str(tmp_path / "data.bin")
    calls = [["data", "inspect", source, *options]]
    calls += [] if options else [["data", "tokenize", source, "--out", str(tmp_path / "out.bin")]]
    for call in calls:
        result = invoke(*call, "--model", added)
        assert isinstance(result.exception, ModelError)
        assert "'<|im_end|>' has id 258, and the model has embeddings for 257 tokens only" in str(result.exception)
    assert not (tmp_path / "out.bin").exists()


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_training_stops_before_the_first_step(kind, added, tmp_path):
    lines = [{"instruction": f"question {index} " * 3, "output": "answer"} for index in range(4)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    adapter = {"rank": 2} if kind == "lora" else {"kind": "full"}
    recipe = {
        "model": str(added), "out": str(tmp_path / "run"), "context": {"target": 256},
        "attention": {"kind": "full"}, "adapter": adapter, "training": {"steps": 1},
        "data": {"kind": "instruct", "template": "chatml", "train": [str(tmp_path / "data.jsonl")]},
    }  # fmt: skip
    with pytest.raises(ModelError, match=r"'<\|im_end\|>' has id 258"):
        lengthen.train(parse_recipe(recipe, "run"))
    assert not (tmp_path / "run" / "recipe.yaml").exists()
