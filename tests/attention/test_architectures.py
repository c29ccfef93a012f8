"""S2 in every architecture it is claimed for, and docs/architectures.md, which is made from what is found here.

python tests/attention/test_architectures.py    # writes docs/architectures.md
"""

import re
import warnings
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version
from s2_reference import reference
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from lengthen.attention import check_s2, keeps_documents_apart, set_group_size
from lengthen.errors import LengthenError

pytestmark = pytest.mark.invariants

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "architectures.md"
LENGTH, GROUP = 30, 8

COMMON = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "sliding_window": 16,
    "attention_dropout": 0.0, "hidden_dropout": 0.0, "residual_dropout": 0.0, "router_jitter_noise": 0.0,
    "input_jitter_noise": 0.0, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4,
    "num_experts_per_tok": 2, "num_experts_per_token": 2, "moe_intermediate_size": 16, "moe_topk": 2, "moe_k": 2,
    "shared_expert_intermediate_size": 16, "shared_intermediate_size": 16, "n_group": 1, "topk_group": 1,
    "n_shared_experts": 1, "first_k_dense_replace": 1,
}  # fmt: skip
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 6}
LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8
}  # fmt: skip

PLAIN = """
    afmoe apertus arcee bitnet cohere cohere2 cohere2_moe cwm diffllama ernie4_5 ernie4_5_moe exaone4 exaone_moe
    flex_olmo gemma glm glm4 glm4_moe gpt_neox granite granitemoe granitemoeshared helium hyperclovax jetmoe llama
    minimax_m2 modernbert-decoder nanochat olmo olmo2 olmo3 olmoe persimmon phi qwen2 qwen2_moe qwen3
    qwen3_moe seed_oss smollm3 solar_open stablelm
"""
REFUSED = "doge falcon gemma2 gpt_oss jamba minimax recurrent_gemma vaultgemma"
# Model types with what their configs need beside COMMON.
TYPES: dict[str, dict] = {
    **{name: {} for name in (PLAIN + REFUSED).split()},
    # Windows in all layers would leave S2 nothing to do.
    **{name: {"sliding_window": None} for name in ("ministral3", "mistral", "mixtral", "phi3", "phimoe", "starcoder2")},
    **{name: {**LATENT, "head_dim": 4, "num_key_value_heads": 4} for name in ("deepseek_v3", "glm4_moe_lite")},
    **dict.fromkeys(("qwen3_5_text", "qwen3_next"), LINEAR),
    **{name: {"rotary_dim": 4} for name in ("codegen", "gptj")},
    "gemma3_text": {"num_hidden_layers": 6},
    "llama4_text": {"attention_chunk_size": 16},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "minimax": {"layer_types": ["linear_attention", "full_attention"] * 2},
}


def build(model_type):
    """A tiny model with random weights; keys that a config doesn't know are left out."""
    config_class = CONFIG_MAPPING[model_type]
    known = {*config_class().to_dict(), *getattr(config_class, "attribute_map", {})}
    wanted = {key: value for key, value in (COMMON | TYPES[model_type]).items() if key in known}
    torch.manual_seed(0)
    config = config_class(**wanted, **SPECIAL)
    return AutoModelForCausalLM.from_config(config, attn_implementation="s2", dtype=torch.float32)


def with_reference(model):
    """The same model computing its groups by the slow reference."""

    def backend(q, k, v, documents, groups, scaling, dropout):
        return reference(q, k, v, documents, groups, scaling)

    for module in model.modules():
        if hasattr(module, "s2_backend"):
            module.s2_backend = backend
    return model


def logits(model, **inputs):
    return model(use_cache=False, **inputs).logits


def loss_and_gradients(model, ids):
    loss = torch.nn.functional.cross_entropy(logits(model, input_ids=ids)[0, :-1], ids[0, 1:])
    parameters = [p for p in model.parameters() if p.requires_grad]
    return loss, [g for g in torch.autograd.grad(loss, parameters, allow_unused=True) if g is not None]


def close(a, b):
    return a.shape == b.shape and torch.allclose(a, b, atol=2e-5, rtol=2e-4)


def equals_reference(model_type, ids):
    ours, theirs = build(model_type).train(), build(model_type).train()
    for model in (ours, theirs):
        set_group_size(model, GROUP, sinks=1)
    (loss, gradients), (expected, others) = (loss_and_gradients(model, ids) for model in (ours, with_reference(theirs)))
    return close(loss, expected) and all(close(g, o) for g, o in zip(gradients, others, strict=True))


def sees_no_future(model, ids):
    changed = ids.clone()
    changed[:, 17:] = (changed[:, 17:] + 7) % 60 + 3
    return torch.equal(logits(model, input_ids=ids)[:, :17], logits(model, input_ids=changed)[:, :17])


def packs(model, ids):
    positions = torch.cat([torch.arange(13), torch.arange(LENGTH - 13)])[None]
    changed = ids.clone()
    changed[:, :13] = (changed[:, :13] + 7) % 60 + 3
    packed, other = (logits(model, input_ids=x, position_ids=positions)[:, 13:] for x in (ids, changed))
    return close(packed, other) and close(packed, logits(model, input_ids=ids[:, 13:]))


def ignores_padding(model, ids):
    alone = logits(model, input_ids=ids[:, :20])
    for span in (slice(0, 20), slice(10, 30)):
        padded, mask = torch.zeros_like(ids), torch.zeros_like(ids)
        padded[:, span], mask[:, span] = ids[:, :20], 1
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        if not close(logits(model, input_ids=padded, attention_mask=mask, position_ids=positions)[:, span], alone):
            return False
    return True


def learns(model, ids):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(2):
        loss = torch.nn.functional.cross_entropy(logits(model, input_ids=ids)[0, :-1], ids[0, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[1] < losses[0]


@cache
def found(model_type):
    """("supported" | "partly" | "refused", why or which layers)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = build(model_type)
            set_group_size(model, GROUP)
            used, layers = check_s2(model)
        except LengthenError as error:
            return "refused", str(error).split("; set ")[0]
        except KeyError as error:  # what load_base turns into a refusal
            if error.args != ("s2",):
                raise
            return "refused", "picks its attention from a table of its own"
        ids = torch.randint(3, 60, (1, LENGTH), generator=torch.Generator().manual_seed(1))
        model.train()
        with torch.no_grad():
            causal, apart, padding = sees_no_future(model, ids), packs(model, ids), ignores_padding(model, ids)
        assert keeps_documents_apart(model) == apart or older_than_the_page(), model_type
        must = {"future": causal, "reference": equals_reference(model_type, ids), "learning": learns(model, ids)}
        assert all(must.values()), (model_type, must)
    of = model.config.num_hidden_layers
    where = "S2 in all layers" if used == of else f"S2 in {used} of {of} layers"
    lacks = [name for name, holds in (("packing", apart), ("padding", padding)) if not holds]
    if lacks:
        return "partly", f"{where}; no {' and no '.join(lacks)}"
    return "supported", where + ("" if used == layers else "; windows in the others stay as they are")


def older_than_the_page():
    """Architectures come and are mended with each release of transformers."""
    made_with = re.search(r"transformers (\S+);", DOCUMENT.read_text(encoding="utf-8"))[1]
    return Version(transformers.__version__) < Version(made_with)


def page():
    """What docs/architectures.md says."""
    lines = [
        "# Architectures",
        "",
        "Which decoders S2 works in, found on tiny models with random weights. Made by",
        f"`python tests/attention/test_architectures.py` with transformers {transformers.__version__}; do not edit.",
        "",
        "- *Supported*: loss and gradients equal the reference mask, no logit depends on a later token, packed",
        "  documents do not see each other, padding changes nothing, and a training step lowers the loss.",
        "- *Partly*: as above, but documents that are packed together see each other, or padding is seen, in layers",
        "  that are not S2's. Training refuses to pack several documents there.",
        "- *Refused*: training stops before its first step with this reason; `attention.kind=full` may work.",
        "",
        "| model type | S2 | |",
        "|---|---|---|",
    ]
    lines += [f"| `{name}` | {status} | {why} |" for name in sorted(TYPES) for status, why in [found(name)]]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("model_type", sorted(TYPES))
def test_architecture(model_type):
    status, why = found(model_type)
    assert (status == "refused") == (model_type in REFUSED.split()) or older_than_the_page(), why


def test_the_page_says_what_was_found():
    if older_than_the_page():
        pytest.skip("the page was made with a newer transformers")
    made, written = (
        [line for line in text.splitlines() if "transformers" not in line]
        for text in (page(), DOCUMENT.read_text(encoding="utf-8"))
    )
    assert made == written


if __name__ == "__main__":
    DOCUMENT.write_text(page(), encoding="utf-8")
