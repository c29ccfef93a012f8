"""What other packages raise becomes one line of ours, whatever its kind; templates, quantized bases, program code."""

import json
import shutil
import subprocess
import sys
import warnings

import pytest
import torch
from transformers import AutoTokenizer

import lengthen
from lengthen.chat.session import ChatSession
from lengthen.data.instruct.templates import use_template
from lengthen.errors import DataError, LengthenError, ModelError, one_line
from lengthen.models.load import load_config
from lengthen.models.resolve import resolve_model
from lengthen.recipe import parse_recipe
from lengthen.upstream import chat_prompt, reading


@pytest.mark.parametrize("kind", [KeyError, IndexError, ZeroDivisionError, OSError, TypeError, Exception])
def test_any_exception_is_one_line(kind):
    with pytest.raises(ModelError, match=r"can't load X: .+") as caught, reading("X"):
        raise kind("first\nsecond")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, kind)


def test_what_a_model_warns_of_through_torch_fails_a_test():
    class Renamed(torch.nn.Module):
        def forward(self):
            warnings.warn("`old` is deprecated", FutureWarning, stacklevel=2)

    with pytest.raises(FutureWarning):
        Renamed()()


def test_errors_of_ours_and_interrupts_pass():
    for error in (DataError("as it is"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, reading("X"):
            raise error
        assert caught.value is error
    assert one_line(KeyError("x")) == "KeyError: 'x'"
    assert len(one_line(ValueError("x" * 1000))) < 310


@pytest.mark.parametrize(
    "change",
    [
        {"rope_scaling": {"type": "yarn"}, "rope_parameters": None},
        {"rope_scaling": "linear", "rope_parameters": None},
        {"rope_scaling": {"type": "su"}, "rope_parameters": None},
        {"num_attention_heads": "four"},
        {"hidden_size": 33},
        {"model_type": "no_such_type"},
        {"model_type": None},
        {"max_position_embeddings": None, "rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_parameters": None},
    ],
)
def test_broken_configs(change, base, tmp_path):
    folder = shutil.copytree(base, tmp_path / "broken")
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(LengthenError) as caught:
        lengthen.load(str(folder), method="linear", target=64)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"version": "1.0"}', "\x00"])
def test_broken_tokenizers(content, base, tmp_path):
    folder = shutil.copytree(base, tmp_path / "broken")
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError):
        lengthen.load(str(folder))


TEMPLATES = {
    "raises": "{{ raise_exception('no') }}",
    "adds a number": "{{ messages[0]['content'] + 1 }}",
    "divides": "{{ 1 / 0 }}",
    "is no template": "{% for %}",
    "names what is not there": "{{ nothing.at_all.here }}",
    "is several, none the default": {"rag": "x", "tool_use": "y"},
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_broken_templates(name, base):
    model, tokenizer = lengthen.load(str(base))
    tokenizer.chat_template = TEMPLATES[name]
    with pytest.raises(DataError) as caught:
        chat_prompt(tokenizer, [{"role": "user", "content": "hi"}], tokenize=False)
    assert "\n" not in str(caught.value)
    with pytest.raises(LengthenError):
        ChatSession(model, tokenizer, 32).ask("hi", 2)


def test_templates_by_name(base, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = {"rag": "x", "tool_use": "y"}
    with pytest.raises(DataError, match=r"by name \(rag, tool_use\)"):
        use_template(tokenizer, "tokenizer")
    use_template(tokenizer, "vicuna")
    tokenizer.chat_template = {"default": "{{ messages[0]['content'] }}", "rag": "x"}
    use_template(tokenizer, "tokenizer")
    assert chat_prompt(tokenizer, [{"role": "user", "content": "hi"}], tokenize=False) == "hi"


@pytest.mark.parametrize("part", ["AutoConfig", "AutoTokenizer"])
def test_program_code_of_a_base_is_not_asked_about(part, base, tmp_path):
    folder = shutil.copytree(base, tmp_path / "own")
    name = "config.json" if part == "AutoConfig" else "tokenizer_config.json"
    content = json.loads((folder / name).read_text())
    own = {"AutoConfig": "own.Config"} if part == "AutoConfig" else {"AutoTokenizer": ["own.T", None]}
    change = {"model_type": "own"} if part == "AutoConfig" else {"tokenizer_class": "OwnTokenizer"}
    (folder / name).write_text(json.dumps({**content, **change, "auto_map": own}))
    (folder / "own.py").write_text("open('/tmp/never', 'w')\n")
    command = [sys.executable, "-m", "lengthen.cli", "generate", str(folder), "--prompt", "a"]
    ended = subprocess.run(command, capture_output=True, text=True, input="y\n", check=False)
    assert ended.returncode == 2, ended.stderr
    assert "does not run" in ended.stderr
    assert "trust_remote_code" not in ended.stdout + ended.stderr


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "mxfp4"])
def test_a_base_published_in_quantized_weights_is_refused_before_training_and_export(method, base, tmp_path, documents):
    folder = shutil.copytree(base, tmp_path / "packed")
    content = json.loads((folder / "config.json").read_text())
    quantized = {"quant_method": method, "bits": 4, "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    (folder / "config.json").write_text(json.dumps({**content, "quantization_config": quantized}))
    assert load_config(resolve_model(str(folder))).max_position_embeddings == 32
    for wanted in (None, "nf4"):
        recipe = {
            "model": str(folder), "out": str(tmp_path / "run"), "context": {"target": 64}, "quantize": wanted,
            "data": {"train": [str(documents)]}, "training": {"steps": 1},
        }  # fmt: skip
        with pytest.raises(ModelError, match=rf"quantized weights \({method}\).*16-bit base"):
            lengthen.train(parse_recipe(recipe, "run"))
    with pytest.raises(ModelError, match="16-bit base"):
        lengthen.export(folder, tmp_path / "out")
