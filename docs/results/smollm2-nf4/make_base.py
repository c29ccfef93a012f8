"""The base of this run: SmolLM2-135M as an ordinary folder whose config says a context of 1,024 tokens."""

import torch

from lengthen.models.load import load_base, load_config, load_tokenizer
from lengthen.models.resolve import resolve_model

source = resolve_model("smollm2-135m-instruct")
config = load_config(source)
config.max_position_embeddings = 1024
load_base(source, config, torch.bfloat16).save_pretrained("smollm2-1k")
load_tokenizer("smollm2-135m-instruct").save_pretrained("smollm2-1k")
