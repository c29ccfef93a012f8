"""A share of an adapter: the base's weights at 0, the run's at 1, what lies between at a half, served or loaded."""

import json

import pytest
import torch
from safetensors.torch import load_file

import lengthen
from command_line import succeed
from lengthen.adapters.load import load_apart
from lengthen.adapters.vllm import export_for_vllm
from lengthen.errors import ModelError
from lengthen.serving.engine import Engine
from lengthen.serving.engine.adapter_weights import read_adapter
from lengthen.serving.engine.base_model import LoadedBase

EVERYTHING = {"rank": 4, "embeddings": True, "norms": True}


@pytest.fixture(scope="module", params=["untied", "tied"])
def trained(request, make_run, make_base):
    base = make_base(f"scaled-{request.param}", tie_word_embeddings=request.param == "tied")
    return base, make_run(base, f"scaled-{request.param}", EVERYTHING)


def weights(model, tmp_path, name, **options):
    lengthen.export(model, tmp_path / name, "float32", **options)
    return load_file(tmp_path / name / "model.safetensors")


def test_at_0_it_is_the_base_s_weights_and_at_1_the_run_s(trained, tmp_path):
    base, run = trained
    own, at_0, at_1, whole = (
        weights(base, tmp_path, "base"),
        weights(run, tmp_path, "at-0", adapter_scale=0.0),
        weights(run, tmp_path, "at-1", adapter_scale=1.0),
        weights(run, tmp_path, "run"),
    )
    assert all(torch.equal(at_0[name], own[name]) for name in own)
    assert all(torch.equal(at_1[name], whole[name]) for name in own)
    changed = [name for name in own if not torch.equal(own[name], whole[name])]
    assert any("norm" in name for name in changed)
    assert any("embed" in name for name in changed)
    assert any("q_proj" in name for name in changed)
    halfway = weights(run, tmp_path, "half", adapter_scale=0.5)
    for name in changed:
        torch.testing.assert_close(halfway[name], (own[name] + whole[name]) / 2, atol=1e-6, rtol=1e-5)


def test_the_positions_stay_the_run_s(trained):
    _, run = trained
    loaded, scaled = (lengthen.load(run, "float32", adapter_scale=scale)[0] for scale in (1.0, 0.0))
    assert scaled.config.rope_parameters == loaded.config.rope_parameters
    assert scaled.config.max_position_embeddings == 128


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_at_0_it_computes_as_its_base_scaled_untrained(trained, dtype):
    base, run = trained
    ids = torch.arange(1, 41)[None]
    scaled = lengthen.load(run, dtype, adapter_scale=0.0)[0]
    untrained = lengthen.load(base, dtype, method="yarn", target=128)[0]
    with torch.no_grad():
        assert torch.equal(scaled(ids).logits, untrained(ids).logits)


def test_it_is_served_as_it_is_loaded(trained):
    base, run = trained
    apart = load_apart(run, "float32", None, torch.device("cpu"))
    served = LoadedBase.of(apart)
    found = read_adapter(run / "adapter", served, 0.5)
    model = lengthen.load(run, "float32", adapter_scale=0.5)[0].merge_and_unload()
    loaded = dict(model.named_parameters())
    plain = dict(lengthen.load(base, "float32")[0].named_parameters())
    for name, norm in found.norms.items():
        assert torch.equal(norm.weight, loaded[f"{name}.weight"])
    for name, matrices in found.linear.items():
        merged = plain[f"{name}.weight"] + matrices.scale * matrices.b @ matrices.a
        torch.testing.assert_close(merged, loaded[f"{name}.weight"], atol=1e-6, rtol=1e-5)
    rows = found.embeddings.values if found.embeddings.tokens is None else None
    assert rows is None or torch.equal(rows, loaded["model.embed_tokens.weight"])
    assert found.norms
    engine = Engine(served, apart.tokenizer, adapter_scale=0.5)
    _, again = engine.registry.read(run / "adapter")
    name = next(iter(again.linear))
    assert (
        again.linear[name].scale
        == found.linear[name].scale
        == 0.5 * read_adapter(run / "adapter", served).linear[name].scale
    )


def test_the_commands_take_the_share(trained, tmp_path):
    _, run = trained
    lengthen.export(run, tmp_path / "half", "float32", adapter_scale=0.5)
    drawn = ("--temperature", 1.5, "--seed", 3, "--max-new-tokens", 24)  # the likeliest is a space for all of them
    commands = {
        "generate": ("--prompt", "abc def ", *drawn),
        "chat": ("--question", "Which?", "--template", "llama2", *drawn),
        "eval passkey": ("--lengths", 300, "--depths", 0.5, "--trials", 2, "--no-generate", "--beyond"),
    }
    for command, more in commands.items():
        found = []
        for model in ((run, "--adapter-scale", 0.5), (tmp_path / "half",), (run,)):
            out = tmp_path / "result.json"
            succeed(*command.split(), *model, *more, "--dtype", "float32", "--json", out)
            found.append(json.loads(out.read_text(encoding="utf-8")))
        if command == "eval passkey":
            ours, merged, whole = (content["results"][0]["nats"] for content in found)
            assert ours == pytest.approx(merged, abs=1e-4)
            assert abs(ours - whole) > 1e-3
            assert [content["adapter_scale"] for content in found] == [0.5, 1.0, 1.0]
        else:
            ours, merged, whole = (content.get("text") or content["results"][0]["text"] for content in found)
            assert ours == merged != whole


def test_vllm_gets_the_share(trained, tmp_path):
    _, run = trained
    settings = []
    for scale in (1.0, 0.25):
        written = export_for_vllm(run, tmp_path / str(scale), "float32", adapter_scale=scale)
        settings.append(json.loads((written.adapter / "adapter_config.json").read_text(encoding="utf-8")))
    assert settings[1]["lora_alpha"] == settings[0]["lora_alpha"] / 4


def test_what_can_not_be_scaled_is_refused(make_base, make_run):
    base = make_base("not-scaled")
    for scale in (-0.1, 1.5, float("nan")):
        with pytest.raises(ModelError, match="from 0"):
            lengthen.load(base, adapter_scale=scale)
    with pytest.raises(ModelError, match="no adapter"):
        lengthen.load(base, adapter_scale=0.5)
    run = make_run(base, "dora", {"rank": 4, "variant": "dora"})
    with pytest.raises(ModelError, match="DoRA"):
        lengthen.load(run, adapter_scale=0.5)
    assert lengthen.load(run, adapter_scale=1.0)
