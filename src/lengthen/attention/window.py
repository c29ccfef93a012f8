"""Attention of layers that see a window of the last tokens, in training: blocks of a window, each with the one before.

A mask of (T, T) is what transformers has for them, and with it every pair of tokens is computed. In blocks of W tokens
a query sees its own block and the one before it, so that 2 W keys are computed for it and the mask is (T, 2 W).

Shape suffixes: B sequences, N blocks of a sequence, T tokens, W tokens of the window, H query heads, K key/value heads,
D head size.

T = 6 tokens of one document, W = 2; an x where token t looks, a dot where a product is computed for nothing:

    0  . . | . . x .
    1  . . | . . x x
    2      | . x x . |
    3      | . . x x |
    4            | . x x .
    5            | . . x x
"""

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

from lengthen.attention.documents import Documents

__all__ = ["window_attention"]

# Numbers of what is no document: padding, and what stands before a sequence.
_PADDING, _BEFORE = -1, -2


def window_attention(
    q_BHTD: torch.Tensor,
    k_BKTD: torch.Tensor,
    v_BKTD: torch.Tensor,
    documents: Documents,
    window: int,
    scaling: float | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Causal attention to the last `window` tokens of one's own document, oneself included.

    Args:
        q_BHTD: queries (B, H, T, D).
        k_BKTD: keys (B, K, T, D); K divides H.
        v_BKTD: values (B, K, T, D'); D' may differ from D.
        documents: per sequence, (start, length) of each document; what tokens in none get means nothing.
        window: W, tokens.
        scaling: factor on the scores; None means 1/sqrt(D).
        dropout: probability of dropping an attention weight.

    Returns:
        (B, T, H, D').
    """
    batch, heads, length, _ = q_BHTD.shape
    blocks = -(-length // window)
    q_PHWD = _blocks(q_BHTD, blocks, window)
    k_PHXD, v_PHXD = (
        _with_the_one_before(_blocks(x, blocks, window), batch).repeat_interleave(heads // x.shape[1], dim=1)
        for x in (k_BKTD, v_BKTD)
    )
    mask_PWX = _mask(documents, blocks, window, q_BHTD.device)
    out_PHWD = scaled_dot_product_attention(
        q_PHWD, k_PHXD, v_PHXD, attn_mask=mask_PWX[:, None], dropout_p=dropout, scale=scaling
    )
    return out_PHWD.transpose(1, 2).reshape(batch, blocks * window, heads, -1)[:, :length]


def _blocks(x_BHTD: torch.Tensor, blocks: int, window: int) -> torch.Tensor:
    """(B*N, H, W, D), the last block filled up."""
    batch, heads, length, size = x_BHTD.shape
    x_BHTD = pad(x_BHTD, (0, 0, 0, blocks * window - length))
    return x_BHTD.view(batch, heads, blocks, window, size).transpose(1, 2).reshape(-1, heads, window, size)


def _with_the_one_before(x_PKWD: torch.Tensor, batch: int) -> torch.Tensor:
    """(B*N, K, 2*W, D), zeros before a sequence's first block."""
    x_BNKWD = x_PKWD.unflatten(0, (batch, -1))
    before_BNKWD = torch.cat([torch.zeros_like(x_BNKWD[:, :1]), x_BNKWD[:, :-1]], dim=1)
    return torch.cat([before_BNKWD, x_BNKWD], dim=3).flatten(0, 1)


def _mask(documents: Documents, blocks: int, window: int, device: torch.device) -> torch.Tensor:
    """(B*N, W, 2*W) bool, True where a key is seen. Every token sees itself, so that no row is empty."""
    number_BT = torch.full((len(documents), blocks * window), _PADDING)
    for row, spans in enumerate(documents):
        for index, (start, tokens, *_) in enumerate(spans):
            number_BT[row, start : start + tokens] = index
    number_BT = number_BT.to(device)  # the mask, 2 W times as large, is made there
    of_queries_PW = number_BT.view(-1, window)
    of_keys_PX = pad(number_BT, (window, 0), value=_BEFORE).unfold(1, 2 * window, window).flatten(0, 1)
    distance_WX = torch.arange(window, device=device)[:, None] + window - torch.arange(2 * window, device=device)
    return ((distance_WX >= 0) & (distance_WX < window)) & (of_queries_PW[:, :, None] == of_keys_PX[:, None])
