"""Export for llama.cpp and Ollama: the lines, and, with llama.cpp's own converter, that the file computes the same."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, Qwen2Config

import lengthen
from command_line import succeed
from lengthen.adapters.llama_cpp import check_positions
from lengthen.context import extend
from lengthen.errors import ModelError
from lengthen.models.load import load_tokenizer


def export(run, out, *arguments):
    return succeed("export", run, out, *arguments).stdout.splitlines()


def test_llama_cpp_s_lines(run, tmp_path):
    out = tmp_path / "my model"
    folder, comment, convert, serve = export(run, out, "--for", "llama.cpp", "--json", tmp_path / "said.json")
    assert folder == str(out)
    assert comment.startswith("#")
    assert "yarn x 4 from 32 tokens" in comment
    gguf = str(out / "my model.gguf")
    assert shlex.split(convert) == ["python", "convert_hf_to_gguf.py", folder, "--outtype", "bf16", "--outfile", gguf]
    assert shlex.split(serve) == ["llama-server", "-m", gguf, "-c", "128"]
    assert json.loads((tmp_path / "said.json").read_text())["commands"] == [convert, serve]
    config = json.loads((out / "config.json").read_text())
    assert config["rope_parameters"]["factor"] == 4, "which the converter reads"
    assert not (out / "Modelfile").exists()


def test_ollama_s_lines_and_modelfile(run, tmp_path):
    out = tmp_path / "mine"
    *said, create, started = export(run, out, "--for", "ollama", "--dtype", "float16")
    assert (out / "Modelfile").read_text() == "FROM ./mine.gguf\nPARAMETER num_ctx 128\n"
    assert said[-5:-2] == [f"# {out / 'Modelfile'}:", "#   FROM ./mine.gguf", "#   PARAMETER num_ctx 128"]
    assert said[-2].startswith("# with llama.cpp's converter, which keeps RoPE ")
    assert said[-1].startswith("python convert_hf_to_gguf.py")
    assert create == f"ollama create mine -f {out / 'Modelfile'}"
    assert started == "ollama run mine"


def scaled(method, config=LlamaConfig, **changes):
    extended = extend(config(max_position_embeddings=256), 1024, method)
    extended.rope_parameters.update(changes)
    return extended


@pytest.mark.parametrize(
    ("config", "states"),
    [
        (scaled("linear"), "linear x 4"),
        (scaled("yarn"), "yarn x 4 from 256 tokens"),
        (scaled("yarn", Qwen2Config), "yarn x 4"),
        (scaled("llama3"), "llama3 x 4"),
        (scaled("ntk"), "RoPE base"),
        (LlamaConfig(), "RoPE base 10000"),
    ],
)
def test_what_the_file_will_state(config, states):
    assert states in check_positions(config)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (scaled("llama3", Qwen2Config), "drops llama3's scaling of positions for qwen2"),
        (scaled("yarn", attention_factor=1.5), "computes yarn without attention_factor"),
        (scaled("yarn", truncate=False), "without truncate"),
        (scaled("linear", rope_type="longrope"), "drops longrope's factors for llama"),
        (scaled("linear", rope_type="dynamic"), "does not know the scaling dynamic"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(config, problem):
    with pytest.raises(ModelError, match=problem):
        check_positions(config)


@pytest.mark.skipif("LLAMA_CPP" not in os.environ, reason="LLAMA_CPP names no checkout of llama.cpp")
@pytest.mark.parametrize("method", ["yarn", "linear", "llama3", "ntk"])
def test_the_converted_file_computes_the_same(method, make_base, make_run, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp")
    # The converter knows tokenizers by what they make of a text, so a real one is needed.
    tokenizer = load_tokenizer("smollm2-135m-instruct")
    base = make_base(f"with-{method}", vocab_size=len(tokenizer), hidden_size=64, num_attention_heads=2)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).unlink()
    tokenizer.save_pretrained(base)
    run = make_run(base, context={"target": 128, "method": method})
    out = tmp_path / "out"
    _, _, convert, serve = export(run, out, "--for", "llama.cpp", "--dtype", "float32")
    _, script, *arguments = shlex.split(convert)
    subprocess.run([sys.executable, Path(os.environ["LLAMA_CPP"]) / script, *arguments], check=True)
    file, context = shlex.split(serve)[2], int(shlex.split(serve)[4])
    ids = torch.randint(1, len(tokenizer), (100,), generator=torch.Generator().manual_seed(0)).tolist()
    settings = {"n_batch": context, "logits_all": True, "verbose": False, "n_threads": 1}
    theirs = llama_cpp.Llama(file, n_ctx=context, type_k=0, type_v=0, **settings)
    theirs.eval(ids)
    model, _ = lengthen.load(str(run), "float32")
    with torch.no_grad():
        ours = model(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(ours, torch.from_numpy(np.array(theirs.scores[: len(ids)])), atol=2e-3, rtol=0)
    unscaled, _ = lengthen.load(str(base), "float32")
    assert (unscaled(torch.tensor([ids])).logits[0] - ours).abs().max() > 0.02
