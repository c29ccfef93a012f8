"""Activation checkpointing that keeps what is dear to recompute.

Attention is most of the work at long context, but its output is small: per layer T x hidden size. Keeping it saves the
second attention forward for a few percent of the memory that full checkpointing saves.
"""

from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import create_selective_checkpoint_contexts

__all__ = ["enable_checkpointing"]


def enable_checkpointing(model: Any, keep_attention: bool) -> None:
    """Recompute the activations of each layer in the backward pass.

    Args:
        model: a transformers model.
        keep_attention: keep the outputs of torch's attention kernels.
    """
    arguments: dict[str, Any] = {"use_reentrant": False}
    if keep_attention:
        aten = torch.ops.aten
        kept = [
            aten._scaled_dot_product_flash_attention_for_cpu.default,
            aten._scaled_dot_product_flash_attention.default,
            aten._scaled_dot_product_efficient_attention.default,
            aten._scaled_dot_product_cudnn_attention.default,
        ]
        arguments["context_fn"] = partial(create_selective_checkpoint_contexts, kept)
    model.activation_checkpointing_enable(arguments)
