"""Which layers have windows and which rotate positions: what we read in configs, against the models' own code."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lengthen.context import attention_layers, base_context, extend, scaled_layers
from lengthen.errors import ContextError
from rope_probe import FLAT, probe

# Every architecture of these is probed: windows, layers without RoPE, RoPE by layer type, and ordinary ones.
FAMILIES = [
    "afmoe", "cohere", "cohere2", "cohere2_moe", "cwm", "deepseek_v3", "exaone4", "exaone_moe", "falcon_h1", "gemma2",
    "gemma3", "gemma3_text", "glm4", "gpt_neox", "gpt_oss", "granite", "jamba", "lfm2", "llama", "llama4_text",
    "minimax", "mistral", "mixtral", "modernbert-decoder", "nemotron_h", "olmo2", "olmo3", "olmo_hybrid", "phi3",
    "qwen2", "qwen3", "qwen3_5_text", "qwen3_moe", "qwen3_next", "recurrent_gemma", "smollm3", "stablelm", "starcoder2",
    "vaultgemma", "zamba2",
]  # fmt: skip
SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 8, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64, "sliding_window": 16, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def small(kind, **more):
    return AutoConfig.for_model(kind, **(SMALL | more))


def check_against_code(config):
    found = probe(config)
    assert found
    text = config.get_text_config(decoder=True)
    text.max_position_embeddings = 10**9  # some defaults have windows that are no limit
    nested = text.nested_rope_parameter_keys(text.rope_parameters) if getattr(text, "rope_parameters", None) else []
    layers = attention_layers(config)
    assert len(layers) == len(found)
    for layer, code in zip(layers, found, strict=True):
        if layer.kind != "chunked_attention":  # whose window is in the mask alone
            assert (layer.window is not None) == code.windowed, code
        assert (layer.rope is not None) == bool(code.rope), code
        if layer.rope is not None:
            assert code.rope == {layer.kind if nested else FLAT}
            assert layer.rope is (text.rope_parameters[layer.kind] if nested else text.rope_parameters)


@pytest.mark.parametrize("kind", FAMILIES)
def test_layers_are_what_the_modeling_code_does(kind):
    check_against_code(AutoConfig.for_model(kind))


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 4}),
        ("qwen3", {"use_sliding_window": True, "max_window_layers": 0}),
        ("exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 8}),
        ("mistral", {"sliding_window": None}),
        ("phi3", {"sliding_window": 16}),
        ("starcoder2", {"sliding_window": 16}),
        ("granitemoehybrid", {"position_embedding_type": "rope", "layer_types": ["mamba", "attention"] * 4}),
        ("granitemoehybrid", {"position_embedding_type": "nope", "layer_types": ["mamba", "attention"] * 4}),
        ("llama4_text", {"no_rope_layers": [1, 1, 0, 1] * 2}),
        ("smollm3", {"no_rope_layers": [1, 0] * 4}),
    ],
)
def test_layers_follow_the_options_of_a_config(kind, more):
    check_against_code(AutoConfig.for_model(kind, **({"num_hidden_layers": 8} | more)))


# RoPE that no config describes, attention twice in a layer, cross attention to images, decoders of speech.
OTHERS = {"codegen", "diffllama", "dory", "gptj", "mllama", "moshi"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(FAMILIES) - OTHERS))
def test_layers_of_everything_that_transformers_has(kind):
    try:
        config = AutoConfig.for_model(kind)
        found = probe(config)
        attention_layers(config)
    except Exception as error:
        pytest.skip(f"not with its default config, on tensors without data: {type(error).__name__}")
    if not any(layer.rope for layer in found):
        pytest.skip("no RoPE")
    check_against_code(config)


def changed_layers(base, extended):
    """Of each attention layer, whether it gives other outputs for the same inputs but for the positions."""
    ids = torch.arange(3, 63)[None]
    models, seen = [], []
    for config in (base, extended):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        inputs = {}
        for name, module in model.named_modules():
            if hasattr(module, "is_causal"):
                module.register_forward_hook(
                    lambda _module, args, kwargs, out, name=name, inputs=inputs: inputs.update(
                        {name: (args, kwargs, out)}
                    ),
                    with_kwargs=True,
                )
        with torch.no_grad():
            model(ids, use_cache=False)
        models.append(dict(model.named_modules()))
        seen.append(dict(inputs))
    models[1][""].load_state_dict(models[0][""].state_dict())
    changed = []
    for name, (args, kwargs, out) in seen[0].items():
        own = {key: seen[1][name][1][key] for key in ("position_embeddings",) if key in kwargs}
        with torch.no_grad():
            again = models[1][name](*args, **(kwargs | own))
        changed.append(not torch.allclose(again[0], out[0], atol=1e-6))
    return changed


@pytest.mark.parametrize("kind", ["olmo3", "gemma3_text", "modernbert-decoder"])
def test_windows_stay_and_whole_context_layers_are_scaled(kind):
    base = small(kind)
    windows = [layer.window is not None for layer in attention_layers(base)]
    assert True in windows
    assert False in windows
    assert changed_layers(base, extend(base, 256, "linear")) == [not window for window in windows]


def test_layers_without_rope_stay():
    base = small("smollm3", no_rope_layers=[1, 1, 1, 0] * 2)
    assert changed_layers(base, extend(base, 256, "linear")) == [True, True, True, False] * 2


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("cohere2", {}),
        ("exaone4", {"sliding_window_pattern": 4}),
        ("afmoe", {}),
        ("exaone_moe", {}),
        ("llama4_text", {"attention_chunk_size": 16}),
    ],
)
def test_with_rope_in_window_layers_only_nothing_is_left_to_scale(kind, more):
    base = small(kind, **more)
    for method in ("linear", "yarn", "ntk", "llama3"):
        with pytest.raises(ContextError, match=r"RoPE in its window layers only.*context\.method=none"):
            extend(base, 256, method)
    trained = extend(base, 256, "none")
    assert base_context(trained) == 256
    assert not any(changed_layers(base, trained))


@pytest.mark.parametrize("kind", ["mistral", "phi3", "starcoder2", "ministral", "recurrent_gemma"])
def test_where_every_layer_has_a_window_no_layer_can_use_more(kind):
    base = small(kind, **({"layer_types": ["sliding_attention"] * 8} if kind == "ministral" else {}))
    with pytest.raises(ContextError, match=r"every attention layer .* window"):
        extend(base, 256, "linear")
    assert base_context(extend(base, 256, "none")) == 256


@pytest.mark.parametrize(("kind", "window"), [("mistral", 64), ("phi3", 100), ("starcoder2", 64)])
@pytest.mark.parametrize("method", ["ntk", "none"])
def test_windows_that_hold_the_whole_context_hold_the_longer_one(kind, window, method):
    base = small(kind, sliding_window=window)
    assert all(layer.window is None for layer in attention_layers(base))
    for context in (90, 256):
        extended = extend(base, context, method)
        assert all(layer.window is None for layer in attention_layers(extended))
        assert extended.sliding_window >= context
    assert base.sliding_window == window


def test_shared_parameters_are_scaled_for_all_and_said():
    base = small("qwen2", use_sliding_window=True, max_window_layers=4)
    with pytest.warns(UserWarning, match="4 window layers of qwen2 share"):
        extended = extend(base, 256, "linear")
    assert all(changed_layers(base, extended))
    scaled, sharing = scaled_layers(base)
    assert (len(scaled), len(sharing)) == (4, 4)


@pytest.mark.parametrize("kind", ["jamba", "nemotron_h", "granitemoehybrid", "zamba2"])
def test_hybrids_without_positions_train_longer_as_they_are(kind):
    base = AutoConfig.for_model(kind)
    context = base_context(base)
    with pytest.raises(ContextError, match=r"nothing to scale.*context\.method=none"):
        extend(base, 2 * context, "yarn")
    assert base_context(extend(base, 2 * context, "none")) == 2 * context


@pytest.mark.parametrize("kind", ["gpt2", "opt", "xglm"])
def test_positions_that_are_embeddings_can_not_be_extended(kind):
    base = AutoConfig.for_model(kind)
    for method in ("linear", "none"):
        with pytest.raises(ContextError, match="has no RoPE"):
            extend(base, 10 * base_context(base), method)


@pytest.mark.parametrize(("method", "works"), [("linear", False), ("yarn", False), ("llama3", False), ("ntk", True)])
def test_what_an_architecture_does_not_take_is_refused_with_what_it_takes(method, works):
    base = small("phi3", sliding_window=None)
    if works:
        assert base_context(extend(base, 256, method)) == 256
        return
    with pytest.raises(
        ContextError, match=rf"phi3 .* by {method} .* takes context\.method=ntk or theta or longrope or none"
    ):
        extend(base, 256, method)
