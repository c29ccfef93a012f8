"""Folders in LongLoRA's and LongQLoRA's formats become runs with the logits of the published merge, or are refused."""

import json
import math

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM

import lengthen
from lengthen.adapters.longlora import import_published
from lengthen.errors import ContextError, ModelError, OutputError
from lengthen.recipe import load_recipe

CONTEXT = 96  # three times the base's, so the factor is 3
RANK, ALPHA = 4, 16
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL_LINEAR = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
IDS = torch.arange(90)[None] % 250 + 1
EMBEDDINGS = "model.embed_tokens.weight"


def random(*shape, scale=0.2):
    return torch.randn(shape) * scale


def write_folder(folder, base, targets=ATTENTION, trained=("embed", "norm"), added=1, dtype=torch.float16, **settings):
    """An adapter folder as the published scripts write it, with random values.

    Key names and config are those of LongLoRA's get_trainable_weights.py under peft 0.4; `added` rows are the tokens
    that LongLoRA adds to the base.
    """
    folder.mkdir(parents=True)
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(1)
    lora, extra = {}, {}
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in targets:
            stem = f"base_model.model.{name}"
            lora[f"{stem}.lora_A.weight"] = random(RANK, module.in_features).to(dtype)
            lora[f"{stem}.lora_B.weight"] = random(module.out_features, RANK).to(dtype)
    for name, parameter in model.named_parameters():
        if any(part in name for part in trained):
            value = parameter.detach() + random(*parameter.shape, scale=0.1)
            if added and parameter.shape[0] == model.config.vocab_size:
                value = torch.cat([value, value.mean(0, keepdim=True).expand(added, -1)])
            extra[name] = value.to(dtype)
    config = {
        "auto_mapping": None, "base_model_name_or_path": str(base), "bias": "none", "fan_in_fan_out": False,
        "inference_mode": True, "init_lora_weights": True, "layers_pattern": None, "layers_to_transform": None,
        "lora_alpha": ALPHA, "lora_dropout": 0, "modules_to_save": None, "peft_type": "LORA", "r": RANK,
        "revision": None, "target_modules": list(targets), "task_type": "CAUSAL_LM", **settings,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    torch.save(lora, folder / "adapter_model.bin")
    if extra:
        torch.save(extra, folder / "trainable_params.bin")
    return folder


def merged_by_hand(folder, base):
    """The published merge: positions scaled, trained tensors over the base's, W + (alpha / r) BA; the base's tokens."""
    config = AutoConfig.from_pretrained(base)
    context = config.max_position_embeddings
    config.rope_parameters["rope_type"] = "linear"
    config.rope_parameters["factor"] = float(math.ceil(CONTEXT / context))
    model = AutoModelForCausalLM.from_pretrained(base, config=config)
    rows = config.vocab_size
    extra = folder / "trainable_params.bin"
    with torch.no_grad():
        for name, value in torch.load(extra).items() if extra.is_file() else ():
            parameter = model.get_parameter(name)
            parameter.copy_(value[:rows] if value.shape[0] > rows else value)
        lora = torch.load(folder / "adapter_model.bin")
        for key in lora:
            if key.endswith(".lora_A.weight"):
                stem = key.removesuffix(".lora_A.weight")
                update = lora[f"{stem}.lora_B.weight"].float() @ lora[key].float() * (ALPHA / RANK)
                model.get_parameter(stem.removeprefix("base_model.model.") + ".weight").add_(update)
        return model(IDS).logits


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@pytest.fixture(scope="module")
def tied(make_base):
    return make_base("tied", tie_word_embeddings=True)


@pytest.fixture(scope="module")
def neox(tokenizer, tmp_path_factory):
    """LongLoRA's second architecture: norms with biases, and a head that its "embed" catches too."""
    folder = tmp_path_factory.mktemp("models") / "neox"
    config = GPTNeoXConfig(
        vocab_size=257, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=32,
    )  # fmt: skip
    torch.manual_seed(0)
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


FOLDERS = {
    "longlora": {},
    "longlora, nothing added": {"added": 0},
    "longqlora": {"targets": ALL_LINEAR, "trained": (), "lora_dropout": 0.05},
    "longqlora, all trained": {"targets": ALL_LINEAR, "trained": ("embed", "norm", "lm_head"), "added": 0},
    "bfloat16": {"dtype": torch.bfloat16},
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_an_imported_run_has_the_logits_of_the_published_merge(kind, base, tmp_path):
    folder = write_folder(tmp_path / "published", base, **FOLDERS[kind])
    imported = import_published(folder, tmp_path / "run", CONTEXT)
    expected = merged_by_hand(folder, base)
    model, tokenizer = lengthen.load(str(imported.run), "float32")
    torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=0)
    assert imported.dropped_rows == (kind in ("longlora", "bfloat16"))
    assert model.config.max_position_embeddings == tokenizer.model_max_length == CONTEXT
    plain, _ = lengthen.load(str(base), "float32", method="linear", target=CONTEXT)
    assert (logits(plain) - expected).abs().max() > 0.1, "the adapter does something"


@pytest.mark.parametrize("name", ["tied", "neox"])
def test_other_bases(name, tied, neox, tmp_path):
    base, targets = {"tied": (tied, ATTENTION), "neox": (neox, ["query_key_value", "dense"])}[name]
    folder = write_folder(tmp_path / "published", base, targets)
    imported = import_published(folder, tmp_path / "run", CONTEXT)
    model, _ = lengthen.load(str(imported.run), "float32")
    torch.testing.assert_close(logits(model), merged_by_hand(folder, base), atol=1e-4, rtol=0)


def test_what_is_written_is_an_ordinary_run(base, tmp_path):
    folder = write_folder(tmp_path / "published", base)
    run = import_published(folder, tmp_path / "run", CONTEXT).run
    expected = merged_by_hand(folder, base)
    # Without lengthen, by the two lines of the adapter's README.
    plain = AutoModelForCausalLM.from_pretrained(base, config=AutoConfig.from_pretrained(run))
    torch.testing.assert_close(logits(PeftModel.from_pretrained(plain, run / "adapter")), expected, atol=1e-4, rtol=0)
    out = lengthen.export(str(run), tmp_path / "merged", "float32")
    merged = AutoModelForCausalLM.from_pretrained(out)
    assert merged.config.vocab_size == 257
    torch.testing.assert_close(logits(merged), expected, atol=1e-4, rtol=0)
    recipe = load_recipe(run / "recipe.yaml")
    assert (recipe.context.target, recipe.context.method) == (CONTEXT, "linear")
    assert (recipe.adapter.rank, recipe.adapter.alpha, recipe.adapter.targets) == (RANK, ALPHA, sorted(ATTENTION))
    assert recipe.adapter.embeddings
    assert recipe.adapter.norms
    about = json.loads((run / "run.json").read_text())
    record = json.loads((run / "adapter" / "base.json").read_text())
    assert about["base"] == record
    assert record["id"] == base.name
    assert len(record["weight_hash"]) == 64
    assert about["trainable"]["adapter"] == 2 * RANK * (2 * (32 + 32) + 2 * (32 + 16))  # q and o, k and v
    assert about["trainable"]["embeddings"] == 257 * 32
    assert about["trainable"]["norms"] == 5 * 32


def test_a_run_refuses_another_base(base, make_base, tmp_path):
    import_published(write_folder(tmp_path / "published", base), tmp_path / "run", CONTEXT)
    other = make_base("other", seed=7)
    with pytest.raises(ModelError, match="the weights of other are others"):
        lengthen.load(str(other), adapter=tmp_path / "run" / "adapter")


def test_a_peft_that_saved_embeddings_itself(base, tmp_path):
    """Newer peft puts the resized embeddings and head into its own file beside the second one."""
    folder = write_folder(tmp_path / "published", base)
    lora, extra = (torch.load(folder / name) for name in ("adapter_model.bin", "trainable_params.bin"))
    expected = merged_by_hand(folder, base)
    lora[f"base_model.model.{EMBEDDINGS}"] = extra[EMBEDDINGS]
    head = AutoModelForCausalLM.from_pretrained(base).lm_head.weight.detach()
    lora["base_model.model.lm_head.weight"] = torch.cat([head, head.mean(0, keepdim=True)])
    torch.save(lora, folder / "adapter_model.bin")
    run = import_published(folder, tmp_path / "run", CONTEXT).run
    torch.testing.assert_close(logits(lengthen.load(str(run), "float32")[0]), expected, atol=1e-4, rtol=0)
    lora[f"base_model.model.{EMBEDDINGS}"] = extra[EMBEDDINGS] + 1
    torch.save(lora, folder / "adapter_model.bin")
    with pytest.raises(ModelError, match="with other values"):
        import_published(folder, tmp_path / "second", CONTEXT)


class Unsafe:
    def __reduce__(self):
        return (print, ("this must never run",))


def break_folder(folder, how, base):
    lora, extra = (torch.load(folder / name) for name in ("adapter_model.bin", "trainable_params.bin"))
    first = next(iter(lora))
    config = json.loads((folder / "adapter_config.json").read_text())
    if how in ("no config", "no weights"):
        (folder / {"no config": "adapter_config.json", "no weights": "adapter_model.bin"}[how]).unlink()
    elif how == "config is not JSON":
        (folder / "adapter_config.json").write_text("{")
    elif how == "damaged":
        path = folder / "adapter_model.bin"
        path.write_bytes(path.read_bytes()[:1000])
    elif how == "code":
        torch.save({"a": Unsafe()}, folder / "trainable_params.bin")
    elif how == "not a state dict":
        torch.save([torch.zeros(1)], folder / "trainable_params.bin")
    elif how == "empty":
        torch.save({}, folder / "adapter_model.bin")
    elif how == "unknown module":
        torch.save({**extra, "model.layers.0.q_norm.weight": torch.ones(8)}, folder / "trainable_params.bin")
    elif how == "unknown tensor":
        torch.save({**extra, "model.norm.bias": torch.ones(32)}, folder / "trainable_params.bin")
    elif how == "missing":
        torch.save({key: value for key, value in lora.items() if key != first}, folder / "adapter_model.bin")
    elif how == "another shape":
        torch.save({**lora, first: lora[first][:, :-1].clone()}, folder / "adapter_model.bin")
    elif how == "another factor":
        (folder / "config.json").write_text(json.dumps({"rope_scaling": {"type": "linear", "factor": 8.0}}))
    else:
        changes = {
            "another kind": {"peft_type": "PREFIX_TUNING"},
            "no rank": {"r": None},
            "no base": {"base_model_name_or_path": None},
            "a path of elsewhere": {"base_model_name_or_path": "/dataset/models/Llama-2-7b-hf"},
            "targets of elsewhere": {"target_modules": ["c_attn"]},
        }
        (folder / "adapter_config.json").write_text(json.dumps({**config, **changes[how]}))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no config", "has no adapter_config.json"),
        ("no weights", "neither adapter_model.safetensors nor adapter_model.bin"),
        ("config is not JSON", "can't be read as JSON"),
        ("damaged", "are damaged"),
        ("code", "could run any code"),
        ("not a state dict", "is not a state dict"),
        ("empty", "holds no LoRA weights"),
        ("unknown module", "has no model.layers.0.q_norm"),
        ("unknown tensor", "1 tensors have no place in it, the first model.norm.bias"),
        ("missing", "1 tensors are missing, the first model.layers.0.self_attn.q_proj.lora_A.weight"),
        ("another shape", r"q_proj.lora_A.weight is \(4, 31\) and should be \(4, 32\)"),
        ("another factor", "scales positions by 8, a context of 96 tokens by 3"),
        ("another kind", "is of kind PREFIX_TUNING"),
        ("no rank", "lacks r or target_modules"),
        ("no base", "does not name its base; give it as `base`"),
        ("a path of elsewhere", "which is not here; give it as `base`"),
        ("targets of elsewhere", "does not fit"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_written(how, message, base, tmp_path, capfd):
    folder = write_folder(tmp_path / "published", base)
    break_folder(folder, how, base)
    with pytest.raises(ModelError, match=message):
        import_published(folder, tmp_path / "run", CONTEXT)
    assert [path.name for path in tmp_path.iterdir()] == ["published"]
    assert "never run" not in capfd.readouterr().out


def test_a_place_with_content_and_a_context_that_is_none(base, tmp_path):
    folder = write_folder(tmp_path / "published", base)
    with pytest.raises(OutputError, match="has content already"):
        import_published(folder, folder, CONTEXT)
    with pytest.raises(ContextError, match="choose a larger target"):
        import_published(folder, tmp_path / "run", 32)


def test_the_command(base, tmp_path, lengthen_cli):
    folder = write_folder(tmp_path / "published", base, base_model_name_or_path="/elsewhere/llama")
    arguments = ["import", str(folder), str(tmp_path / "run"), "--context", str(CONTEXT)]
    code, _, err = lengthen_cli(*arguments)
    assert code == 2
    assert "--base" in err
    report = tmp_path / "report.json"
    code, said, warned = lengthen_cli(*arguments, "--base", base, "--json", report)
    assert code == 0
    assert "renamed" not in warned
    assert "embeddings 8,224" in said
    assert "[PAD]" in said
    content = json.loads(report.read_text())
    assert content["run"] == str(tmp_path / "run")
    assert content["dropped_rows"] == 1
    model, _ = lengthen.load(str(tmp_path / "run"), "float32")
    torch.testing.assert_close(logits(model), merged_by_hand(folder, base), atol=1e-4, rtol=0)
