"""Shifted sparse attention. Importing this package registers attn_implementation="s2" with transformers."""

from lengthen.attention.preflight import check_s2, keeps_documents_apart, use_full_by_layout
from lengthen.attention.reference import s2_mask
from lengthen.attention.registration import register, set_backend, set_group_size
from lengthen.attention_pattern import register_pattern, s2_first_shifted_head, s2_segments

__all__ = [
    "check_s2",
    "keeps_documents_apart",
    "register_pattern",
    "s2_first_shifted_head",
    "s2_mask",
    "s2_segments",
    "set_backend",
    "set_group_size",
    "use_full_by_layout",
]

register()
