"""Positions and contexts: what a base's config says, and what it becomes for a longer context."""

from lengthen.context.layers import (
    AttentionLayer,
    attention_layers,
    has_chunks,
    has_open_windows,
    is_length_dependent,
    positions,
)
from lengthen.context.scaling import METHODS, available_methods, extend, scaled_layers
from lengthen.context.stated import (
    LENGTH_FIELDS,
    StatedContext,
    base_context,
    settle_context,
    state_lengths,
    stated_context,
)

__all__ = [
    "LENGTH_FIELDS",
    "METHODS",
    "AttentionLayer",
    "StatedContext",
    "attention_layers",
    "available_methods",
    "base_context",
    "extend",
    "has_chunks",
    "has_open_windows",
    "is_length_dependent",
    "positions",
    "scaled_layers",
    "settle_context",
    "state_lengths",
    "stated_context",
]
