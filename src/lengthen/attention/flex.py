"""S2 as a mask of torch's flex_attention, which compiles it into a kernel that skips blocks no token of which is seen.

Shape suffixes: B sequences, T tokens, H query heads, K key/value heads, D head size.
"""

from functools import lru_cache

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from lengthen.attention.documents import Documents
from lengthen.attention_pattern import Groups, head_halves
from lengthen.errors import ModelError

__all__ = ["s2_flex"]


def s2_flex(
    q_BHTD: torch.Tensor,
    k_BKTD: torch.Tensor,
    v_BKTD: torch.Tensor,
    documents: Documents,
    groups: Groups,
    scaling: float | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Shifted sparse attention over the documents of a batch.

    Args:
        q_BHTD: queries (B, H, T, D).
        k_BKTD: keys (B, K, T, D); K divides H.
        v_BKTD: values (B, K, T, D').
        documents: per sequence, (start, length) of each document; tokens in none get zeros.
        groups: of the layer.
        scaling: factor on the scores; None means 1/sqrt(D).
        dropout: must be 0.

    Returns:
        (B, T, H, D'), equal to full attention under `groups_mask` for either half of the heads.

    Raises:
        ModelError: dropout, or a backward pass on CPU, which flex_attention doesn't have.
    """
    if dropout:
        raise ModelError(
            "flex_attention has no attention dropout; set it to 0 in the config, or attention.backend=sdpa"
        )
    if q_BHTD.device.type == "cpu" and torch.is_grad_enabled() and q_BHTD.requires_grad:
        raise ModelError("flex_attention has no backward pass on CPU; set attention.backend=sdpa")
    heads, kv_heads, length = q_BHTD.shape[1], k_BKTD.shape[1], q_BHTD.shape[2]
    rows = documents[:1] if all(row == documents[0] for row in documents) else documents
    outputs = []
    for half, (own, kv) in enumerate(head_halves(heads, kv_heads)):
        mask = _block_mask(rows, groups, half, length, q_BHTD.device)
        tensors = (q_BHTD[:, own], k_BKTD[:, kv], v_BKTD[:, kv])
        outputs.append(_compiled()(*tensors, block_mask=mask, scale=scaling, enable_gqa=heads != kv_heads))
    return torch.cat(outputs, dim=1).transpose(1, 2)


@lru_cache(maxsize=1)
def _compiled():  # type: ignore[no-untyped-def]
    return torch.compile(flex_attention, dynamic=False)


@lru_cache(maxsize=8)  # both halves, for all layers of a forward pass and of its recomputation
def _block_mask(documents: Documents, groups: Groups, half: int, length: int, device: torch.device) -> BlockMask:
    # Tokens of no document are in group -1, which nothing sees: flex_attention then gives zeros.
    group_BT = torch.full((len(documents), length), -1)
    sinks_BT = torch.full((len(documents), length), length)
    count = 0
    for row, spans in enumerate(documents):
        for span in spans:
            for begin, end, sinks_at in groups.bounds(span, half):
                group_BT[row, begin:end] = count
                if sinks_at is not None:
                    sinks_BT[row, begin:end] = sinks_at
                count += 1
    group_BT, sinks_BT, sinks = group_BT.to(device), sinks_BT.to(device), groups.sinks

    def sees(b: torch.Tensor, _h: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        same_group = (group_BT[b, query] == group_BT[b, key]) & (group_BT[b, query] >= 0)
        is_sink = (key >= sinks_BT[b, query]) & (key < sinks_BT[b, query] + sinks)
        return (same_group | is_sink) & (key <= query)

    rows = len(documents) if len(documents) > 1 else None
    # Compiled where it matters: uncompiled, the whole (T, T) mask is built first.
    return create_block_mask(sees, rows, None, length, length, device=device, _compile=device.type == "cuda")
