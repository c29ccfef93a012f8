"""Bad input through the real command line: one line that says what to change, exit code 2, and nothing touched."""

import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, FalconConfig, Gemma2Config, GPT2Config

from lengthen import cli
from lengthen.files import write_json

COMMANDS = [
    "", "quickstart", "extend", "train", "plan", "doctor", "export", "import", "report", "generate", "chat", "ui",
    "serve", "recipes", "eval", "eval compare", "eval perplexity", "eval passkey", "eval needle", "eval ruler",
    "eval tasks",
    "data", "data tokenize", "data inspect", "data qa"
]  # fmt: skip


def tree(folder):
    """Every file and folder below a folder, with a hash of its content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        for path in sorted(Path(folder).rglob("*"))
    }


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("LENGTHEN_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def refused(lengthen_cli):
    """Run the command line, which must refuse in one line with all of the parts."""

    def run(arguments, *parts):
        code, out, err = lengthen_cli(*arguments)
        assert code == 2, err
        assert out == ""
        lines = err.splitlines()
        assert len(lines) == 1, err
        assert lines[0].startswith("lengthen: ")
        for part in parts:
            assert str(part) in lines[0]
        return lines[0]

    return run


@pytest.fixture
def recipe(tmp_path, base, documents):
    """A recipe file for a run of a second."""
    content = {
        "model": str(base),
        "out": str(tmp_path / "run"),
        "context": {"target": 128, "method": "yarn"},
        "adapter": {"embeddings": True},
        "data": {"train": [str(documents)]},
        "training": {"steps": 1, "warmup_steps": 0, "dtype": "float32"},
        "memory": {"activation_checkpointing": False},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return tmp_path / "recipe.yaml"


@pytest.fixture
def train(recipe, tmp_path, refused):
    """Train with overrides, which must be refused; no file is made or changed, and no run is left."""

    def run(overrides, *parts):
        before = tree(tmp_path)
        before.pop("run", None)  # an empty folder is no run
        line = refused(["train", recipe, *overrides, "--quiet"], *parts)
        after = tree(tmp_path)
        after.pop("run", None)
        assert after == before
        return line

    return run


# -- recipes and bases


def test_parallel_and_loggers_that_can_not_be_had(train, monkeypatch):
    for kind in ("fsdp2", "zero2", "zero3_offload"):
        train([f"parallel={kind}"], f"parallel={kind}")
    train(["parallel=fsdp"], "parallel", "'fsdp'")
    train(["training.report_to=tensorbord"], "'tensorbord'", "'tensorboard'")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    train([], "ACCELERATE_USE_FSDP", "parallel=ddp")


def test_an_unknown_key(train):
    train(["training.stepz=3"], "'training.stepz'", "'training.steps'")
    train(["trainin.steps=3"], "'trainin'", "'training'")


def test_an_unknown_recipe(refused):
    refused(["train", "tiny-2kk"], "'tiny-2kk'", "tiny-2k", "smollm2-16k")


def test_a_target_not_above_the_context(train):
    train(["context.target=32"], "context.target is 32", "the base has 32")


SIZES = {
    "vocab_size": 257, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "bos_token_id": 0,
    "eos_token_id": 0, "max_position_embeddings": 32,
}  # fmt: skip
GEMMA = {"intermediate_size": 48, "num_key_value_heads": 1, "head_dim": 16, "layer_types": ["full_attention"]}


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        (GPT2Config(**SIZES), ["gpt2 has no RoPE"]),
        (FalconConfig(**SIZES, alibi=False), ["falcon", "'s2'", "attention.kind=full"]),
        (Gemma2Config(**SIZES, **GEMMA), ["capped attention scores", "attention.kind=full"]),
    ],
    ids=["no RoPE", "own table of attentions", "soft caps"],
)
def test_a_base_that_can_not_be_extended(refused, recipe, tokenizer, tmp_path, config, parts):
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    refused(["train", recipe, f"model={tmp_path / 'model'}", "--quiet"], *parts)


def test_a_base_that_is_not_there_or_not_whole(train, base, tmp_path):
    train([f"model={tmp_path / 'none'}"], tmp_path / "none", "does not exist")
    shutil.copytree(base, tmp_path / "bare")
    (tmp_path / "bare" / "model.safetensors").unlink()
    train([f"model={tmp_path / 'bare'}"], tmp_path / "bare", "no weights")
    (tmp_path / "bare" / "model.safetensors").write_bytes(b"garbage" * 10)
    train([f"model={tmp_path / 'bare'}"], "bare are damaged")


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickle_weights(refused, train, base, tmp_path):
    folder = shutil.copytree(base, tmp_path / "pickle")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({**tensors, "more": Malicious(tmp_path / "pwned")}, folder / "pytorch_model.bin")
    train([f"model={folder}"], "pickle", "run any code")
    refused(["generate", folder, "--prompt", "abc"], "pickle", "run any code")
    assert not (tmp_path / "pwned").exists()


def test_an_adapter_for_another_base(refused, run, make_base, tmp_path):
    other = make_base("another", seed=5)
    parts = (run / "adapter", "made for base", "another")
    refused(["generate", other, "--adapter", run / "adapter", "--prompt", "abc"], *parts)
    refused(["export", other, tmp_path / "out", "--adapter", run / "adapter"], *parts)
    assert list(tmp_path.iterdir()) == []


# -- documents


def test_documents_that_can_not_be_used(train, tmp_path):
    files = {
        "empty.txt": (b"", "is empty"),
        "binary.txt": (b"abc\0def", "is binary"),
        "latin.txt": "caf\u00e9 ".encode("latin-1"),
        "book.pdf": (b"%PDF", ".pdf"),
        "broken.jsonl": (b"{broken\n{broken\n", "broken.jsonl:1"),
        "broken.parquet": (b"PAR1 and no more", "as Parquet"),
    }
    files["latin.txt"] = (files["latin.txt"], "is not UTF-8")
    for name, (content, part) in files.items():
        (tmp_path / name).write_bytes(content)
        train([f"data.train={tmp_path / name}"], tmp_path / name, part)
    train([f"data.train={tmp_path / 'none.txt'}"], tmp_path / "none.txt", "does not exist")
    (tmp_path / "folder").mkdir()
    train([f"data.train={tmp_path / 'folder'}"], tmp_path / "folder", "no documents")
    train(["data.train=[]"], "data.train is empty")


def test_datasets_that_can_not_be_had(train, tmp_path):
    train(["data.train=hf:owner/books:train"], "hf:owner/books:train", "HF_HUB_OFFLINE")
    train(["data.train=hf:owner/books:a:b:c"], "hf:owner/books:a:b:c", "is not of the form")
    train([f"data.train=hf:{tmp_path / 'none'}"], tmp_path / "none")
    train(["data.max_documents=0"], "data.max_documents")


def test_documents_that_are_too_short(train, tmp_path):
    train(["data.min_tokens=5000"], "min_tokens 5000", "0 of 5 documents")
    (tmp_path / "short.txt").write_text("abc abc\n")
    train([f"data.train={tmp_path / 'short.txt'}"], "no training token lies beyond", "32 tokens")


def test_a_broken_line_is_left_out_and_counted(lengthen_cli, recipe, tmp_path):
    lines = [json.dumps({"text": "abc def " * 30})] * 3
    (tmp_path / "books.jsonl").write_text("\n".join([lines[0], "{broken", *lines[1:]]))
    code, out, err = lengthen_cli("train", recipe, f"data.train={tmp_path / 'books.jsonl'}")
    assert code == 0, err
    (warning,) = [line for line in err.splitlines() if line.startswith("warning:")]
    assert "left out 1 of 4 lines" in warning
    assert "books.jsonl:2" in warning
    assert "3 documents" in err
    assert out.strip() == str(tmp_path / "run")
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()


def test_token_files_that_do_not_fit(train, tmp_path):
    np.full(200, 300, dtype="<u2").tofile(tmp_path / "high.bin")
    train([f"data.train={tmp_path / 'high.bin'}"], tmp_path / "high.bin", "id 300", "257")
    (tmp_path / "odd.bin").write_bytes(bytes(401))
    train([f"data.train={tmp_path / 'odd.bin'}"], tmp_path / "odd.bin", "401 bytes")
    (tmp_path / "empty.bin").write_bytes(b"")
    train([f"data.train={tmp_path / 'empty.bin'}"], tmp_path / "empty.bin", "empty")


# -- places


def test_places_with_other_content(train, refused, documents, run, tmp_path):
    before = tree(documents), tree(run)
    (tmp_path / "file").write_text("mine")
    train([f"out={documents}"], documents, "other content")
    train([f"out={run}"], run, "--resume")
    train([f"out={tmp_path / 'file'}"], tmp_path / "file")
    train([f"out={tmp_path / 'file' / 'below'}"], tmp_path / "file" / "below")
    for out in (documents, run, tmp_path / "file", tmp_path / "file" / "below"):
        refused(["export", run, out, "--quiet"], out)
    assert (tree(documents), tree(run)) == before
    assert (tmp_path / "file").read_text() == "mine"


def test_resuming_with_another_recipe(refused, lengthen_cli, recipe, tmp_path):
    assert lengthen_cli("train", recipe, "--quiet")[0] == 0
    before = tree(tmp_path)
    refused(["train", recipe, "training.learning_rate=5e-4", "--resume", "--quiet"], tmp_path / "run", "training")
    assert tree(tmp_path) == before


@contextmanager
def full_disk(size):
    """No file can grow beyond `size` bytes, which fails as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [500, 50_000], ids=["config", "weights"])
def test_a_full_disk_while_exporting(refused, run, tmp_path, size):
    before = tree(run)
    with full_disk(size):
        line = refused(["export", run, tmp_path / "out", "--dtype", "float32"], "can't write", tmp_path / "out")
    assert "File too large" in line
    assert list(tmp_path.iterdir()) == []
    assert tree(run) == before


@pytest.mark.filterwarnings("ignore:tokenized documents are not cached")
@pytest.mark.parametrize(
    "size",
    [
        pytest.param(500, id="recipe"),
        pytest.param(2_000, id="tokenizer"),
        pytest.param(40_000, id="checkpoint"),
    ],
)
def test_a_full_disk_while_training(refused, recipe, tmp_path, size):
    import lengthen.training.run  # noqa: F401 - what imports write to the captured stderr would count

    with full_disk(size):
        refused(["train", recipe, "--quiet"], "can't write", "File too large")
    assert not list((tmp_path / "run").glob("checkpoints/checkpoint-*"))
    assert not (tmp_path / "run" / "adapter").exists()


def test_json_that_can_not_be_written(refused, tmp_path):
    (tmp_path / "file").write_text("mine")
    refused(["recipes", "--quiet", "--json", tmp_path / "file" / "out.json"], tmp_path / "file" / "out.json")
    refused(["recipes", "--quiet", "--json", tmp_path], tmp_path)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_json(tmp_path / "pipe", {"a": 1})
    assert json.loads(os.read(reader, 100)) == {"a": 1}
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()


# -- other commands


def test_generate_refuses(refused, run, tmp_path):
    refused(["generate", run], "--prompt", "--file")
    refused(["generate", run, "--prompt", "abc", "--file", "x.txt"], "--prompt", "--file")
    refused(["generate", run, "--file", tmp_path / "none.txt"], tmp_path / "none.txt")
    refused(["generate", run, "--prompt", ""], "empty")
    refused(["generate", run, "--prompt", "x" * 200], "201 tokens", "128")
    refused(["generate", run, "--prompt", "x", "--dtype", "bfloat17"], "bfloat17")
    refused(["generate", run, "--prompt", "x", "--quantize", "nf4"], "NF4")
    (tmp_path / "two.json").write_text('["one", "two"]')
    refused(["generate", run, "--file", tmp_path / "two.json"], tmp_path / "two.json", "2 documents")


def test_export_refuses(refused, base, tmp_path):
    refused(["export", tmp_path / "none", tmp_path / "out"], tmp_path / "none")
    refused(["export", base, tmp_path / "out", "--dtype", "bfloat17"], "bfloat17")
    refused(["export", base, tmp_path / "out", "--adapter", tmp_path], "adapter_config.json")
    assert list(tmp_path.iterdir()) == []


def test_recipes_refuses(refused):
    refused(["recipes", "none"], "'none'", "tiny-2k")


# -- help, and lightness


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(lengthen_cli, command):
    code, out, _ = lengthen_cli(*command.split(), "--help")
    assert code == 0
    assert "Usage" in out


def test_every_command_is_in_the_list():
    groups = {group.name: group.typer_instance for group in cli.app.registered_groups}
    names = [command.name or command.callback.__name__ for command in cli.app.registered_commands]
    for name, group in groups.items():
        names += [name, *(f"{name} {each.name or each.callback.__name__}" for each in group.registered_commands)]
    assert sorted(["", *names]) == sorted(COMMANDS)


def test_import_and_help_are_light():
    code = """
import sys
import lengthen, lengthen.cli
sys.argv = ["lengthen", "--help"]
try:
    lengthen.cli.main()
except SystemExit as exit_:
    assert not exit_.code
heavy = {"torch", "transformers", "peft", "datasets", "numpy", "pydantic"} & set(sys.modules)
assert not heavy, heavy
assert set(lengthen.__all__) <= set(dir(lengthen))
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("module", ["adapters.export", "evaluation.compare.pair", "serving.engine.adapter_weights"])
def test_nothing_of_other_packages_is_said_at_import(module):
    """Such as which kernels bitsandbytes, which peft imports, did not find for a path that lengthen turns off."""
    done = subprocess.run(
        [sys.executable, "-c", f"import lengthen.{module}"], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")
