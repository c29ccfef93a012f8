"""4-bit bases: what is quantized, training over it, and what comes out."""

import importlib.util
import json
import shutil
from functools import partial

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import lengthen
from lengthen import quantization
from lengthen.adapters.build import add_adapter, count_trainable
from lengthen.adapters.export import export
from lengthen.attention import set_group_size
from lengthen.errors import ModelError, RecipeError
from lengthen.models.fingerprint import weight_hashes
from lengthen.models.load import load_base, load_config
from lengthen.models.resolve import resolve_model
from lengthen.recipe import AdapterRecipe, parse_recipe
from lengthen.run_folder import RunFolder
from lengthen.training.objective import CausalLMObjective
from lengthen.training.optim import check_optimizer, page_states

pytestmark = pytest.mark.invariants

CPU = torch.device("cpu")
SIZES = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}


@pytest.fixture(scope="module")
def base(make_base):
    return make_base("wide", **SIZES)


@pytest.fixture(scope="module")
def run(base, make_nf4_run):
    return make_nf4_run(base)


@pytest.fixture(scope="module")
def make_nf4_run(documents, tmp_path_factory):
    def make(base, name="nf4", data=None, **training):
        recipe = {
            "model": str(base),
            "out": str(tmp_path_factory.mktemp("runs") / name),
            "context": {"target": 128},
            "quantize": "nf4",
            "adapter": {"rank": 4, "targets": "all"},
            "data": data or {"train": [str(documents)]},
            "training": {"steps": 4, "learning_rate": 0.01, "warmup_steps": 0, "dtype": "float32", **training},
        }
        return lengthen.train(parse_recipe(recipe, name))

    return make


def load_nf4(folder, dtype=torch.float32, attention="sdpa"):
    source = resolve_model(str(folder))
    return load_base(source, load_config(source), dtype, attention, CPU, nf4=True)


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def test_linear_layers_are_quantized_and_nothing_else(base):
    model = load_nf4(base)
    packed = {name for name, p in model.named_parameters() if type(p).__name__ == "Params4bit"}
    blocks = ["q", "k", "v", "o", "gate", "up", "down"]
    expected = [f"{'self_attn' if len(block) == 1 else 'mlp'}.{block}_proj.weight" for block in blocks]
    assert packed == {f"model.layers.{layer}.{name}" for layer in (0, 1) for name in expected}
    assert quantization.count_quantized(model).startswith("14 of 15 linear layers")
    kept = {name: p for name, p in model.named_parameters() if name not in packed}
    assert all(p.dtype == torch.float32 for p in kept.values())


def test_layers_whose_sizes_do_not_fit_stay(make_base):
    model = load_nf4(make_base("narrow", hidden_size=64, intermediate_size=96, head_dim=16))
    assert quantization.is_quantized(model)
    assert type(model.model.layers[0].mlp.down_proj.weight).__name__ == "Parameter"  # 96 inputs: not whole blocks


def test_quantizing_while_loading_and_afterwards_give_the_same(base):
    ids = torch.randint(0, 257, (1, 20))
    loaded = load_nf4(base)
    source = resolve_model(str(base))
    afterwards = quantization.quantize(
        load_base(source, load_config(source), torch.float32, device=CPU), torch.float32, CPU
    )
    quantization.prepare_for_training(afterwards)
    assert torch.equal(logits(loaded, ids), logits(afterwards, ids))
    assert torch.equal(logits(quantization.dequantize(afterwards), ids), logits(loaded, ids))


def test_bases_stored_in_other_dtypes_are_quantized_from_what_is_stored(make_base):
    ids = torch.randint(0, 257, (1, 20))
    folder = make_base("half", dtype=torch.bfloat16, **SIZES)
    in_float32, in_bfloat16 = load_nf4(folder), load_nf4(folder, torch.bfloat16)
    weights = [m.model.layers[0].mlp.up_proj.weight.data for m in (in_float32, in_bfloat16)]
    assert torch.equal(*weights)
    assert logits(in_bfloat16, ids).dtype == torch.bfloat16
    assert weight_hashes(in_float32) == weight_hashes(in_bfloat16)


def test_evaluation_between_steps_changes_no_step(base):
    def losses(evaluate):
        torch.manual_seed(0)
        objective = CausalLMObjective(add_adapter(load_nf4(base, torch.bfloat16), AdapterRecipe(rank=4, targets="all")))
        optimizer = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=1e-2)
        ids = torch.randint(0, 257, (1, 40), generator=torch.Generator().manual_seed(1))
        found = []
        for _ in range(4):
            objective.train()
            with torch.autocast("cpu", torch.bfloat16):
                loss = objective(input_ids=ids, labels=ids)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.item())
            if evaluate:
                objective.eval()
                with torch.no_grad():
                    objective(input_ids=ids, labels=ids)
        return found

    without = losses(evaluate=False)
    assert losses(evaluate=True) == without
    assert without[-1] < without[0]


def test_s2_over_a_quantized_base_is_that_over_its_dequantized_weights(base):
    ids = torch.randint(0, 257, (1, 40))
    model = load_nf4(base, attention="s2").train()
    set_group_size(model, 8)
    ours = logits(model, ids)
    torch.testing.assert_close(ours, logits(quantization.dequantize(model), ids))
    assert not torch.allclose(ours, logits(model.eval(), ids), atol=1e-4)


def test_lora_is_on_all_quantized_layers(base):
    model = add_adapter(load_nf4(base), AdapterRecipe(rank=4, targets="all", embeddings=False, norms=False))
    names = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if "lora_A" in name}
    assert len(names) == 14
    count = count_trainable(model)
    assert count.embeddings == count.norms == 0
    assert count.total - count.trainable == sum(
        p.numel() for p in AutoModelForCausalLM.from_pretrained(base).parameters()
    )


def test_a_run_learns_and_loads_as_trained(run, base):
    losses = [line["loss"] for line in RunFolder(run).read_metrics()]
    assert losses[-1] < losses[0]
    record = json.loads((run / "adapter" / "base.json").read_text())
    assert (record["quantize"], record["weight_hash"]) == ("nf4", None)
    model, _ = lengthen.load(run, "float32")
    assert quantization.is_quantized(model)
    plain, _ = lengthen.load(run, "float32", quantize="none")
    assert not quantization.is_quantized(plain)
    # The adapter is an ordinary one, for either base.
    beside, _ = lengthen.load(base, "float32", adapter=run / "adapter", quantize="nf4")
    ids = torch.randint(0, 257, (1, 50))
    assert torch.equal(logits(beside, ids), logits(model, ids))


def test_a_resumed_run_takes_the_same_steps(base, make_nf4_run):
    whole = make_nf4_run(base, "whole", save_every=2)
    half = whole.parent / "half"
    shutil.copytree(whole, half)
    shutil.rmtree(half / "adapter")
    shutil.rmtree(half / "checkpoints" / "checkpoint-4")
    lengthen.train(lengthen.load_recipe(half / "recipe.yaml", [f"out={half}"]), resume=True)
    assert [line["loss"] for line in RunFolder(half).read_metrics()] == [
        line["loss"] for line in RunFolder(whole).read_metrics()
    ]
    ours, theirs = (load_file(run / "adapter" / "adapter_model.safetensors") for run in (half, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_adapters_own_lines_load_it_over_four_bits(run, base):
    readme = (run / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "over the base in 4 bits, as it was trained" in readme
    names = {"BASE": str(base), "RUN": str(run)}
    exec(readme.split("```python\n")[1].split("```")[0], names)
    ids = torch.randint(0, 257, (1, 50))
    trained, _ = lengthen.load(run, "float32")
    # In training mode, for bitsandbytes has a path for evaluation on CPU that rounds to bfloat16.
    torch.testing.assert_close(logits(names["model"].train(), ids), logits(trained, ids), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_a_gguf_base_is_quantized(smollm2):
    model = load_nf4(smollm2, torch.bfloat16)
    assert quantization.count_quantized(model).startswith("210 of 211 linear layers")
    plain = load_base(resolve_model(smollm2), model.config, torch.bfloat16, device=CPU)
    ids = torch.arange(100, 140)[None]
    ours, theirs = (logits(each, ids).float().log_softmax(-1) for each in (model, plain))
    assert 0 < (theirs.exp() * (theirs - ours)).sum(-1).mean() < 0.5  # nats of divergence: the same model, a little off


def test_exports_into_both_bases(run, tmp_path):
    ids = torch.randint(0, 257, (1, 50))
    trained, _ = lengthen.load(run, "float32")
    export(run, tmp_path / "exact", "float32", merge_into="dequantized")
    exact = AutoModelForCausalLM.from_pretrained(tmp_path / "exact")
    torch.testing.assert_close(logits(exact, ids), logits(trained, ids), atol=1e-4, rtol=0)
    export(run, tmp_path / "original", "float32")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "original")
    over_original, _ = lengthen.load(run, "float32", quantize="none")
    assert isinstance(over_original, PeftModel)
    torch.testing.assert_close(logits(merged, ids), logits(over_original, ids), atol=1e-4, rtol=0)
    assert not torch.allclose(logits(merged, ids), logits(exact, ids), atol=1e-3)


@pytest.fixture
def exported(lengthen_cli):
    """A function that exports in float32; returns exit code, standard output and error."""
    return partial(lengthen_cli, "export", "--dtype", "float32")


def test_an_export_measures_what_the_merge_costs(run, base, tmp_path, exported):
    found = {}
    for kind in ("original", "dequantized"):
        code, out, _ = exported(run, tmp_path / kind, "--merge-into", kind, "--json", tmp_path / f"{kind}.json")
        assert code == 0
        assert f"merged into the {kind} base" in out
        found[kind] = json.loads((tmp_path / f"{kind}.json").read_text())["perplexity"]
    assert found["dequantized"]["merged"] == pytest.approx(found["dequantized"]["trained"], rel=1e-3)
    assert found["original"]["trained"] == found["dequantized"]["trained"] != found["original"]["merged"]
    assert 0 < found["original"]["tokens"] <= 4 * 127
    # A base and its adapter have no documents of their own.
    code, out, _ = exported(base, tmp_path / "apart", "--adapter", run / "adapter")
    assert code == 0
    assert "not measured, no documents were named; name documents with --data" in out
    code, _, err = exported(run, tmp_path / "nothing", "--data", tmp_path / "nowhere.txt")
    assert code == 2
    assert "nowhere.txt" in err
    assert not (tmp_path / "nothing").exists()


def test_an_export_measures_on_instructions(base, make_nf4_run, tmp_path, exported):
    records = [{"instruction": f"What is {i}?", "output": "It is one. " * (i % 2 + 1)} for i in range(6)]
    source = tmp_path / "records.json"
    source.write_text(json.dumps(records))
    data = {"train": [str(source)], "kind": "instruct", "template": "llama2"}
    run = make_nf4_run(base, "instruct", data, steps=1)
    code, out, _ = exported(run, tmp_path / "merged")
    assert code == 0
    assert "perplexity as trained (4-bit base) " in out
    source.unlink()
    code, out, _ = exported(run, tmp_path / "again")
    assert code == 0
    assert "not measured, " in out
    assert "records.json" in out
    assert (tmp_path / "again" / "model.safetensors").is_file()


def test_what_was_not_trained_in_four_bits_is_not_dequantized(base, make_run, tmp_path):
    for model in (make_run(base, "sixteen"), base):
        with pytest.raises(ModelError, match="was not trained over a 4-bit base"):
            export(model, tmp_path / "out", merge_into="dequantized")
    assert not (tmp_path / "out").exists()


def test_the_adapter_of_another_base_is_refused(run, make_base):
    other = make_base("other", seed=1, **SIZES)
    for how in ("nf4", "none"):
        with pytest.raises(ModelError, match="weights of other are others"):
            lengthen.load(other, "float32", adapter=run / "adapter", quantize=how)


def test_what_can_not_be_quantized_is_refused(base, monkeypatch, tmp_path):
    config = load_config(resolve_model(str(base)))
    config.quantization_config = {"quant_method": "gptq"}
    with pytest.raises(ModelError, match=r"quantized weights \(gptq\)"):
        quantization.check_nf4(config, CPU)
    with pytest.raises(ModelError, match="no 4-bit kernels for meta"):
        quantization.check_nf4(load_config(resolve_model(str(base))), torch.device("meta"))
    with pytest.raises(ModelError, match="unknown quantize=int3"):
        lengthen.load(base, quantize="int3")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'lengthen\[nf4\]'"):
        quantization.check_nf4(load_config(resolve_model(str(base))), CPU)
    with pytest.raises(RecipeError, match=r"pip install 'lengthen\[nf4\]'"):
        check_optimizer("adamw_8bit", CPU)


@pytest.mark.parametrize("adapter", [{"kind": "full"}, {"variant": "pissa"}])
def test_adapters_that_change_the_base_itself_are_refused(base, adapter):
    recipe = {"model": str(base), "context": {"target": 128}, "quantize": "nf4", "training": {"steps": 1}}
    with pytest.raises(RecipeError, match="not quantized"):
        parse_recipe({**recipe, "adapter": adapter}, "x")


def test_optimizers(base, make_nf4_run):
    with pytest.raises(RecipeError, match="take adamw_8bit"):
        check_optimizer("paged_adamw_8bit", CPU)
    run = make_nf4_run(base, "8bit", optimizer="adamw_8bit")
    losses = [line["loss"] for line in RunFolder(run).read_metrics()]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_loaded_states_of_a_paged_optimizer_are_paged(device):
    from bitsandbytes.optim import PagedAdamW32bit

    def optimizer():
        weight = torch.nn.Parameter(torch.ones(400, 400, device=device))
        return weight, PagedAdamW32bit([weight])

    weight, before = optimizer()
    weight.grad = torch.randn_like(weight)
    before.step()
    saved = before.state[weight]
    weight, after = optimizer()
    after.load_state_dict(before.state_dict())
    page_states(after)
    for name in ("state1", "state2"):
        ours, theirs = after.state[weight][name], saved[name]
        assert torch.equal(ours.cpu(), theirs.cpu())
        assert ours.count_nonzero()
        assert device == "cpu" or ours.is_paged  # without CUDA there are no pages, and nothing must be lost
