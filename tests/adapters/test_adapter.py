"""What is trained, to the name and to the number; in which precision; and that a saved adapter is the trained one."""

import pytest
import torch
from peft import PeftType, PromptLearningConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, MixtralConfig, Phi3Config, Qwen3Config

import lengthen
from lengthen.adapters.build import add_adapter, count_trainable
from lengthen.adapters.export import merge
from lengthen.adapters.save import save_adapter
from lengthen.context import extend
from lengthen.errors import ModelError, RecipeError
from lengthen.models.fingerprint import weight_hashes
from lengthen.models.load import load_base, load_config
from lengthen.models.resolve import resolve_model
from lengthen.recipe import PROMPT_KINDS, AdapterRecipe, load_recipe
from lengthen.run_folder import RunFolder
from upstream_warnings import prefix_tuning_warns

pytestmark = pytest.mark.invariants

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 32, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=False),
    "tied": LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=True),
    "neox": GPTNeoXConfig(**SIZES, tie_word_embeddings=False),
    "qwen3": Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=8, tie_word_embeddings=False),
    "mixtral": MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=4),
    "phi3": Phi3Config(**SIZES, num_key_value_heads=2, tie_word_embeddings=False),
}
IDS = torch.arange(20)[None]


def build(name="llama", dtype=torch.float32, **recipe):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]).to(dtype)
    return add_adapter(model, AdapterRecipe(**{"rank": 4, "alpha": 16, "embeddings": True, **recipe}))


def trained(model):
    """Names of the trained parameters, without peft's prefix and adapter name."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return {name.removeprefix("base_model.model.").replace(".default", "") for name in names}


def lora(stem, *layers):
    return {f"{stem}.{i}.{layer}.lora_{ab}.weight" for i in range(2) for layer in layers for ab in "AB"}


def saved(*modules, parts=("weight",)):
    return {f"{module}.modules_to_save.{part}" for module in modules for part in parts}


def per_layer(stem, *modules):
    return [f"{stem}.{i}.{module}" for i in range(2) for module in modules]


LLAMA_NORMS = [*per_layer("model.layers", "input_layernorm", "post_attention_layernorm"), "model.norm"]
LLAMA_ATTENTION = [f"self_attn.{letter}_proj" for letter in "qkvo"]
LLAMA_MLP = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", lora("model.layers", *LLAMA_ATTENTION) | saved("model.embed_tokens", *LLAMA_NORMS)),
        ("qwen3", lora("model.layers", *LLAMA_ATTENTION) | saved("model.embed_tokens", *LLAMA_NORMS)),
        (
            "phi3",
            lora("model.layers", "self_attn.qkv_proj", "self_attn.o_proj") | saved("model.embed_tokens", *LLAMA_NORMS),
        ),
        (
            "neox",
            lora("gpt_neox.layers", "attention.query_key_value", "attention.dense")
            | saved("gpt_neox.embed_in")
            | saved(
                *per_layer("gpt_neox.layers", "input_layernorm", "post_attention_layernorm"),
                "gpt_neox.final_layer_norm",
                parts=("weight", "bias"),
            ),
        ),
    ],
)
def test_the_trainable_set(name, expected):
    assert trained(build(name)) == expected


def test_q_and_k_norms_only_on_request():
    qk = saved(*per_layer("model.layers", "self_attn.q_norm", "self_attn.k_norm"))
    assert trained(build("qwen3", norms="with_qk")) - trained(build("qwen3")) == qk
    assert trained(build("llama", norms="with_qk")) == trained(build("llama"))


def test_without_embeddings_and_norms():
    attention = lora("model.layers", *LLAMA_ATTENTION)
    assert trained(build(embeddings=False, norms=False)) == attention
    assert trained(build(norms=False)) == attention | saved("model.embed_tokens")
    assert trained(build(embeddings=False)) == attention | saved(*LLAMA_NORMS)


def test_all_linear_layers_but_the_head():
    expected = lora("model.layers", *LLAMA_ATTENTION, *LLAMA_MLP)
    assert trained(build(targets="all", embeddings=False, norms=False)) == expected
    neox = lora(
        "gpt_neox.layers",
        *("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
    )
    assert trained(build("neox", targets="all", embeddings=False, norms=False)) == neox


def test_experts_are_linear_layers_too():
    model = build("mixtral", targets="all", embeddings=False, norms=False)
    weights = {name: p for name, p in model.named_parameters() if "lora_B" in name and "experts" in name}
    assert len(weights) == 2 * 2
    for weight in weights.values():
        torch.nn.init.normal_(weight, std=0.1)
    plain = build("mixtral", targets="all").eval()(IDS).logits
    with_experts = model.eval()(IDS).logits
    assert not torch.allclose(with_experts, plain, atol=1e-3)
    torch.testing.assert_close(merge(model)(IDS).logits, with_experts)
    for wrong in ({"dropout": 0.1}, {"variant": "dora"}):
        with pytest.raises(ModelError, match="has experts"):
            build("mixtral", targets="all", **wrong)


def test_named_layers():
    only = {"embeddings": False, "norms": False}
    expected = lora("model.layers", "self_attn.q_proj", "mlp.up_proj")
    assert trained(build(targets=["q_proj", "up_proj"], **only)) == expected
    one = {name for name in lora("model.layers", "self_attn.q_proj") if ".1." in name}
    assert trained(build(targets=["model.layers.1.self_attn.q_proj"], **only)) == one
    assert trained(build("neox", targets=["attention.dense"], **only)) == lora("gpt_neox.layers", "attention.dense")


def test_an_unknown_layer_name_lists_the_names():
    with pytest.raises(ModelError, match=r"no linear layer is called 'qproj'; there are down_proj, .*q_proj"):
        build(targets=["q_proj", "qproj"])
    with pytest.raises(ModelError, match="no linear layer is called 'lm_head'"):
        build(targets=["lm_head"])


def test_counts_by_kind():
    # q, o: 4 x 32 + 32 x 4; k, v: 4 x 32 + 16 x 4; two layers.
    adapter, embeddings, norms = 2 * (2 * 256 + 2 * 192), 64 * 32, 5 * 32
    count = count_trainable(build())
    assert (count.adapter, count.embeddings, count.norms, count.other) == (adapter, embeddings, norms, 0)
    assert count.trainable == adapter + embeddings + norms
    base = AutoModelForCausalLM.from_config(CONFIGS["llama"])
    assert count.total == adapter + sum(parameter.numel() for parameter in base.parameters())
    assert f"{count.trainable:,} of {count.total:,}" in str(count)
    tied = count_trainable(build("tied"))
    assert (tied.embeddings, tied.total) == (embeddings, count.total - embeddings)
    full = count_trainable(build(kind="full"))
    assert full.trainable == full.total == count.total - adapter
    assert (full.embeddings, full.norms) == (2 * embeddings, norms)


def test_tied_embeddings_stay_one_tensor(make_base, tmp_path):
    base = make_base("tied", tie_word_embeddings=True)
    model, save, _ = extended(base)

    def weights(model):
        return model.get_input_embeddings().weight, model.get_output_embeddings().weight

    assert weights(model)[0] is weights(model)[1]
    assert weights(model)[0].requires_grad
    step(model)
    assert weights(model)[0] is weights(model)[1]
    loaded, _ = lengthen.load(str(base), "float32", save(tmp_path / "adapter"))
    assert weights(loaded)[0] is weights(loaded)[1]
    torch.testing.assert_close(weights(loaded)[0], weights(model)[0])
    expected = loaded(IDS).logits
    merged = merge(loaded)
    assert weights(merged)[0] is weights(merged)[1]
    torch.testing.assert_close(merged(IDS).logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_float32_masters_over_a_bfloat16_base(name):
    model = build(name, torch.bfloat16, targets="all", norms="with_qk")
    for parameter in model.parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16)
    seen = set()
    for module in model.get_base_model().get_decoder().layers:
        module.register_forward_hook(lambda _m, _i, output: seen.add(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):  # as in a run
        assert model(IDS).logits.dtype == torch.bfloat16
    assert seen == {torch.bfloat16}, "nothing promotes the residual stream"


def test_at_the_papers_learning_rate_norms_move_over_a_bfloat16_base(make_base, make_run):
    base = make_base("bf16", dtype=torch.bfloat16)
    run = make_run(base, dtype="bfloat16", steps=10, learning_rate=2e-5)
    assert len(RunFolder(run).read_metrics()) == 10
    # Loaded in bfloat16 the masters would be rounded back.
    tensors = lengthen.load(str(run), "float32")[0].state_dict()
    norms = {name: tensor for name, tensor in tensors.items() if "norm" in name and "modules_to_save" in name}
    assert len(norms) == 5
    elements = torch.cat([tensor.flatten() for tensor in norms.values()])
    assert (elements != 1.0).float().mean() >= 0.99
    assert (elements.bfloat16() == 1.0).float().mean() > 0.99, "in bfloat16 they would not have moved"


# -- a saved adapter is the trained one


def extended(base, **recipe):
    """A base with positions scaled and an adapter, a function that saves it, and its fingerprint."""
    source = resolve_model(str(base))
    config = extend(load_config(source), 64, "yarn")
    model = load_base(source, config, torch.float32, device=torch.device("cpu"))
    record = {"id": source.id, "model": str(base), **weight_hashes(model), "context": 32}
    torch.manual_seed(0)
    model = add_adapter(model, AdapterRecipe(**{"rank": 4, "alpha": 16, "embeddings": True, **recipe}))

    def save(folder):
        save_adapter(model, folder, config, record)
        return folder

    return model, save, record


def step(model):
    """Two large steps on random tokens, the first of which only moves the B of a LoRA."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    ids = torch.randint(0, 64, (1, 40), generator=torch.Generator().manual_seed(1))
    for _ in range(2):
        logits = model(ids).logits[0]
        cross_entropy(logits[:-1], ids[0, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("variant", ["lora", "rslora", "dora", "pissa"])
def test_every_variant_loads_back_and_merges(base, tmp_path, variant):
    model, save, _ = extended(base, variant=variant)
    before = model.eval()(IDS).logits
    step(model.train())
    expected = model.eval()(IDS).logits
    assert (expected - before).abs().max() > 0.1
    loaded, _ = lengthen.load(str(base), "float32", save(tmp_path / "adapter"))
    torch.testing.assert_close(loaded(IDS).logits, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(merge(loaded)(IDS).logits, expected, atol=1e-4, rtol=0)


def test_pissa_starts_at_the_base(base):
    model, _, _ = extended(base, variant="pissa")
    plain, _, _ = extended(base, variant="lora")
    torch.testing.assert_close(model.eval()(IDS).logits, plain.eval()(IDS).logits, atol=1e-4, rtol=0)


def test_the_variants_are_what_they_say():
    def scaling(model):
        return model.get_base_model().model.layers[0].self_attn.q_proj.scaling["default"]

    assert scaling(build(rank=16, alpha=16)) == 1
    assert scaling(build(rank=16, alpha=16, variant="rslora")) == 4
    assert any("lora_magnitude_vector" in name for name in trained(build(variant="dora")))
    q_proj = build(variant="pissa").get_base_model().model.layers[0].self_attn.q_proj
    assert q_proj.lora_B["default"].weight.abs().sum() > 0


# -- other methods of peft


def test_other_methods_by_name(base, tmp_path):
    model, save, _ = extended(base, kind="ia3")
    # k and v of 2 x 16, and the input of the MLP's down projection, 48; two layers.
    assert count_trainable(model).trainable == 2 * (16 + 16 + 48)
    step(model)
    loaded, _ = lengthen.load(str(base), "float32", save(tmp_path / "adapter"))
    torch.testing.assert_close(loaded(IDS).logits, model.eval()(IDS).logits, atol=1e-4, rtol=0)


@prefix_tuning_warns
@pytest.mark.parametrize(
    ("kind", "options", "attention"),
    [("ia3", {}, "s2"), ("prefix_tuning", {"num_virtual_tokens": 4}, "full")],
)
def test_a_run_with_another_method(base, make_run, kind, options, attention):
    packing = {"packing": "concatenate"} if attention == "full" else {}
    run = make_run(base, kind, {"kind": kind, "options": options}, attention, packing)
    loaded, _ = lengthen.load(str(run), "float32")
    assert loaded.active_peft_config.peft_type == kind.upper()
    scaled, _ = lengthen.load(str(base), "float32", method="yarn", target=128)
    assert (loaded(IDS).logits - scaled(IDS).logits).abs().max() > 1e-3


def test_methods_with_virtual_tokens_need_full_attention_over_one_stream():
    ours = ["adapter={kind: prefix_tuning, options: {num_virtual_tokens: 4}}"]
    for missing in ([], ["attention.kind=full"], ["data.packing=concatenate"]):
        with pytest.raises(RecipeError, match=r"attention\.kind=full, data\.packing=concatenate"):
            load_recipe("tiny-2k", [*ours, *missing])
    load_recipe("tiny-2k", [*ours, "attention.kind=full", "data.packing=concatenate"])
    made = {
        kind.value.lower()
        for kind in PeftType
        if issubclass(PEFT_TYPE_TO_CONFIG_MAPPING.get(kind, object), PromptLearningConfig)
    }
    assert set(PROMPT_KINDS) == made


def test_unknown_methods_and_options_are_refused():
    with pytest.raises(RecipeError, match=r"adapter\.kind: unknown 'lorra'; choose lora, full or .*ia3"):
        build(kind="lorra")
    with pytest.raises(RecipeError, match=r"adapter\.options for ia3: .*'bogus'"):
        build(kind="ia3", options={"bogus": 1})
    with pytest.raises(RecipeError, match=r"adapter\.options for ia3: .*nothing"):
        build(kind="ia3", options={"target_modules": ["nothing"], "feedforward_modules": []})
    with pytest.raises(RecipeError, match=r"adapter\.options for prefix_tuning"):
        build(kind="prefix_tuning")
    with pytest.raises(RecipeError, match="trains nothing"):
        build(kind="trainable_tokens")


@pytest.mark.parametrize("recipe", [{}, {"targets": "all", "variant": "rslora"}, {"variant": "dora"}])
def test_inputs_that_are_not_cast_give_the_same_bits(recipe):
    """Under autocast; peft's cast to float32 and autocast's cast back change nothing."""
    losses, gradients, dtypes = [], [], []
    for autocast in (False, True):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIGS["llama"]).to(torch.bfloat16)
        model = add_adapter(model, AdapterRecipe(**{"rank": 4, "alpha": 16, "embeddings": True, **recipe}), autocast)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zero at the start, which would hide lora_A's gradients
                torch.nn.init.normal_(parameter, std=0.02)
            if name.endswith("layers.0.self_attn.q_proj.lora_A.default.weight"):
                model.get_submodule(name.removesuffix(".weight")).register_forward_hook(
                    lambda _module, inputs, _output: dtypes.append(inputs[0].dtype)
                )
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        losses.append(loss)
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert dtypes[0] == torch.float32
    assert (dtypes[-1] == torch.bfloat16) == (recipe.get("variant") != "dora")
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=0)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)
