"""What the makers of models publish in config.json, as far as it is about positions and layers.

Each is named by the repository on the Hugging Face hub whose config.json it was taken from (2026-11); what the maker
states as its context is from the same place or its model card. Fields that matter for sizes only are left out.
"""

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def llama3(factor):
    return {"rope_type": "llama3", "factor": factor, **LLAMA3}


def linear(factor):
    return {"type": "linear", "factor": factor}


def longrope(frequencies, **more):
    """The published lists are long and do not matter here: ones and fours of the same length stand for them."""
    return {"type": "longrope", "short_factor": [1.0] * frequencies, "long_factor": [4.0] * frequencies, **more}


def heads(layers, queries, keys, dimension=None):
    sizes = {"num_hidden_layers": layers, "num_attention_heads": queries, "num_key_value_heads": keys}
    return sizes | {"hidden_size": 64 * queries} | ({"head_dim": dimension} if dimension else {})


PERIODIC = ["sliding_attention"] * 3 + ["full_attention"]

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
        "meta-llama/Llama-4-Maverick-17B-128E-Instruct (text)", "llama4_text",
        heads(48, 40, 8, 128)
        | {"max_position_embeddings": 1048576, "rope_theta": 500000.0, "attention_chunk_size": 8192}, 1048576,
    ),
    (
        "mistralai/Mistral-7B-v0.1", "mistral",
        heads(32, 32, 8) | {"max_position_embeddings": 32768, "sliding_window": 4096, "rope_theta": 10000.0}, 32768,
    ),
    (
        "mistralai/Mistral-7B-v0.3", "mistral",
        heads(32, 32, 8) | {"max_position_embeddings": 32768, "sliding_window": None, "rope_theta": 1e6}, 32768,
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
        }, 131072, [(131072, "the tokenizer's model_max_length")],
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
    (
        "google/gemma-3-4b-it (text)", "gemma3_text",
        heads(34, 8, 4, 256)
        | {
            "max_position_embeddings": 131072, "sliding_window": 1024, "rope_theta": 1e6,
            "rope_local_base_freq": 10000.0, "sliding_window_pattern": 6, "rope_scaling": linear(8.0),
        }, 131072,
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
        "stabilityai/stablelm-2-1_6b", "stablelm",
        heads(24, 32, 32) | {"max_position_embeddings": 4096, "partial_rotary_factor": 0.25}, 4096,
    ),
    (
        "CohereForAI/c4ai-command-r-v01", "cohere",
        heads(40, 64, 64)
        | {"max_position_embeddings": 8192, "model_max_length": 131072, "rope_theta": 8e6}, 131072,
    ),
    (
        "LGAI-EXAONE/EXAONE-4.0-32B", "exaone4",
        heads(64, 40, 8, 128)
        | {
            "max_position_embeddings": 131072, "sliding_window": 4096, "sliding_window_pattern": 4,
            "rope_theta": 1e6, "rope_scaling": llama3(16.0),
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
        "EleutherAI/pythia-410m", "gpt_neox",
        {
            "num_hidden_layers": 24, "num_attention_heads": 16, "hidden_size": 1024, "rotary_pct": 0.25,
            "max_position_embeddings": 2048,
        }, 2048,
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
        "LiquidAI/LFM2-1.2B", "lfm2",
        heads(16, 32, 8)
        | {"max_position_embeddings": 128000, "rope_theta": 1e6, "full_attn_idxs": [2, 5, 8, 10, 12, 14]}, 128000,
    ),
    (
        "ai21labs/Jamba-v0.1", "jamba",
        heads(32, 32, 8)
        | {"max_position_embeddings": 262144, "attn_layer_period": 8, "attn_layer_offset": 4}, 262144,
    ),
]  # fmt: skip
