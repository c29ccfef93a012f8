"""Folders of tiny Gemma 3 models with a vision tower and random weights."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer, Gemma3ForConditionalGeneration


def write_gemma3(folder: Path, base: Path, context: int = 128) -> Path:
    """Write one.

    Args:
        folder: to be made.
        base: whose tokenizer it has, of at most 290 ids.
        context: tokens.
    """
    text = {
        "vocab_size": 300, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 6,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "sliding_window": 16,
        "max_position_embeddings": context, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    tokens = {"image_token_index": 290, "boi_token_index": 291, "eoi_token_index": 292, "mm_tokens_per_image": 1}
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=vision, **tokens)
    torch.manual_seed(0)
    Gemma3ForConditionalGeneration(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder
