"""The context that a base states: configs as their makers publish them, and what decides where a config is open."""

import json

import pytest
from transformers import AutoConfig, LlamaConfig

import lengthen
from lengthen.context import base_context, extend, settle_context, stated_context
from lengthen.errors import ContextError
from lengthen.models.load import load_config
from lengthen.models.resolve import resolve_model

LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def llama(maximum, rope=None, **more):
    return LlamaConfig(
        vocab_size=8, hidden_size=32, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=maximum, rope_parameters=rope, **more,
    )  # fmt: skip


def linear(maximum, factor, **more):
    return llama(maximum, {"rope_type": "linear", "rope_theta": 1e4, "factor": factor}, **more)


def yarn(maximum, factor, original):
    rope = {"rope_type": "yarn", "rope_theta": 1e6, "factor": factor, "original_max_position_embeddings": original}
    return llama(maximum, rope)


@pytest.mark.parametrize(
    ("config", "context"),
    [
        # Llama 3.1 and 3.2: the factor is 8 or 32, the context 16 times the original maximum in both.
        (llama(131072, LLAMA3 | {"factor": 8.0, "original_max_position_embeddings": 8192}), 131072),
        (llama(131072, LLAMA3 | {"factor": 32.0, "original_max_position_embeddings": 8192}), 131072),
        (linear(4096, 4.0), 16384),  # vicuna-v1.5-16k, without its max_sequence_length
        (linear(4096, 8.0), 32768),  # LongLoRA's merges to 32k
        (linear(131072, 8.0), 131072),  # Gemma 3's, from 4B on
        (yarn(32768, 4.0, 32768), 131072),  # Qwen2.5 with the YaRN of its model card
        (yarn(40960, 4.0, 32768), 131072),  # Qwen3 with that of its own: its maximum has room for an answer
        (yarn(32768, 16.0, 8192), 131072),  # Yarn-Mistral-7b-128k
        (yarn(131072, 32.0, 4096), 131072),  # gpt-oss
        (yarn(163840, 40.0, 4096), 163840),  # DeepSeek V3
        (yarn(65536, 8.0, 8192), 65536),  # OLMo 3
    ],
)
def test_published_kinds(config, context):
    assert base_context(config) == context
    kind = config.rope_parameters["rope_type"]
    twice = extend(config, 2 * context, kind)
    assert twice.rope_parameters["factor"] == 2 * config.rope_parameters["factor"]
    assert base_context(twice) == 2 * context
    again = extend(twice, 4 * context, kind)
    assert again.rope_parameters["factor"] == 4 * config.rope_parameters["factor"]


OPEN = {
    "a linear factor beside a maximum that may be scaled (deepseek-coder)": (linear(16384, 4.0), (16384, 65536)),
    "a tiny one": (linear(256, 4.0), (256, 1024)),
    "YaRN whose maximum is below the original one": (yarn(64, 32.0, 4096), (64, 131072)),
    "llama3 whose maximum is the original one": (
        llama(8192, LLAMA3 | {"factor": 8.0, "original_max_position_embeddings": 8192}),
        (8192, 65536),
    ),
}


@pytest.mark.parametrize("case", OPEN)
def test_where_a_config_leaves_it_open_nothing_is_guessed(case):
    config, (low, high) = OPEN[case]
    for ask in (base_context, lambda config: extend(config, 10**6, config.rope_parameters["rope_type"])):
        with pytest.raises(ContextError, match=rf"{low}.* or {high}.*context\.base.*`base_context`"):
            ask(config)
    for context in (low, high):
        assert stated_context(config, context).source == "stated by the user"
        assert stated_context(config, statements=[(context, "the tokenizer")]).tokens == context
    with pytest.raises(ContextError):  # a statement that fits neither, and two that contradict each other
        stated_context(config, statements=[(777, "the tokenizer")])
    with pytest.raises(ContextError):
        stated_context(config, statements=[(low, "one"), (high, "another")])


@pytest.mark.parametrize("case", list(OPEN)[:2])
@pytest.mark.parametrize("reading", [0, 1])
def test_a_settled_config_states_its_context_and_rotates_as_before(case, reading, tmp_path):
    config, contexts = OPEN[case]
    context = contexts[reading]
    settled = settle_context(LlamaConfig(**config.to_dict()), context)
    settled.save_pretrained(tmp_path)
    settled = AutoConfig.from_pretrained(tmp_path)
    assert base_context(settled) == settled.max_position_embeddings == context
    assert settled.rope_parameters == config.rope_parameters
    kind = config.rope_parameters["rope_type"]
    assert extend(settled, 2 * context, kind).rope_parameters["factor"] == 2 * config.rope_parameters["factor"]


@pytest.mark.parametrize("given", [40960, 65536, 131072])
def test_what_the_user_states_of_a_scaled_base_stays(given):
    settled = settle_context(yarn(40960, 4.0, 32768), given)
    assert base_context(settled) == base_context(LlamaConfig(**settled.to_dict())) == given
    assert extend(settled, 2 * given, "yarn").rope_parameters["factor"] == 8


def published(base, tmp_path, config=(), tokenizer=()):
    """The test base under another config and tokenizer config."""
    folder = tmp_path / "published"
    model, words = lengthen.load(str(base))
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    for name, changes in (("config.json", config), ("tokenizer_config.json", tokenizer)):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, **dict(changes)}))
    return folder


LINEAR = {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 4.0}, "max_position_embeddings": 32}


def test_the_folder_decides_and_what_is_loaded_says_it(base, tmp_path):
    folder = published(base, tmp_path, LINEAR, {"model_max_length": 128})
    assert base_context(load_config(resolve_model(str(folder)))) == 128
    assert base_context(lengthen.load(str(folder))[0].config) == 128
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ContextError, match=r"32 .* or 128"):
        base_context(load_config(resolve_model(str(folder))))
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"max_sequence_length": 128}))  # as vicuna's
    assert base_context(load_config(resolve_model(str(folder)))) == 128


def test_a_run_and_its_export_know_the_stated_context(base, tmp_path, make_run, documents):
    folder = published(base, tmp_path, LINEAR)
    with pytest.raises(ContextError, match=r"context\.base"):
        make_run(folder, name="open", context={"target": 256, "method": "linear"})
    run = make_run(folder, name="stated", context={"target": 256, "method": "linear", "base": 128})
    assert json.loads((run / "adapter" / "base.json").read_text())["context"] == 128
    model, _ = lengthen.load(str(run))
    assert base_context(model.config) == 256
    assert model.config.rope_parameters["factor"] == 8
    out = lengthen.export(run, tmp_path / "out")
    assert base_context(lengthen.load(str(out))[0].config) == 256
    # Without training: the option of the commands that load.
    model, _ = lengthen.load(str(folder), method="linear", target=256, base_context=128)
    assert model.config.rope_parameters["factor"] == 8


def test_longrope_under_its_old_name(base, tmp_path):
    lists = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    scaling = {"rope_parameters": None, "rope_scaling": {"type": "su", **lists}, "max_position_embeddings": 128}
    for kind in ("llama", "phi3"):
        original = {"original_max_position_embeddings": 32, "model_type": kind, "architectures": None}
        config = load_config(resolve_model(str(published(base, tmp_path, scaling | original))))
        assert config.rope_parameters["rope_type"] == "longrope"
        assert config.rope_parameters["original_max_position_embeddings"] == 32
        assert base_context(config) == 128
