"""Layers in which each row of a batch has its own weights, beside LoRA: norms, embeddings, the head.

Shapes: B rows, T tokens, H hidden size, S slots, R rows of a table, V vocabulary.
"""

import copy
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from lengthen.errors import ModelError
from lengthen.serving.engine.adapter_weights import NormWeights, WeightTable

__all__ = ["PerAdapterNorm", "embed_rows_", "head_rows_"]


class PerAdapterNorm(nn.Module):
    """A norm whose weight may be another one in each row of a batch.

    Every norm is a normalization, times a gain, plus a bias. The normalization is the norm itself with a neutral
    weight: 1, or 0 where its gain is 1 + weight (Gemma).

    Args:
        name: of the norm, for errors.
        norm: the base's.
        slots: S.

    Raises:
        ModelError: the norm is not of this form.
    """

    @torch.inference_mode()
    def __init__(self, name: str, norm: nn.Module, slots: int):
        super().__init__()
        self.norm = norm
        self._plain = copy.deepcopy(norm)
        weight: torch.Tensor = norm.weight  # type: ignore[assignment]
        x_H = torch.linspace(-2, 3, len(weight), device=weight.device, dtype=weight.dtype)
        self._set_plain(0.0)
        self._offset = float(bool(self._plain(x_H).any()))
        self._set_plain(1.0 - self._offset)
        bias = getattr(norm, "bias", None)
        # The last slot is the base's.
        self._gain_SH = self._filled(weight + self._offset, slots)
        self._bias_SH = None if bias is None else self._filled(bias, slots)
        self._rows_B: torch.Tensor | None = None
        ours, own = self._of(x_H[None], torch.tensor([slots], device=weight.device)).float(), norm(x_H[None]).float()
        tolerance = 1e-4 if weight.dtype == torch.float32 else 3e-2
        if not torch.allclose(ours, own, rtol=tolerance, atol=tolerance):
            raise ModelError(f"{name} ({type(norm).__name__}) can't have weights of its own in a batch of adapters")

    @property
    def nbytes(self) -> int:
        """Memory of all slots."""
        return self._gain_SH.nbytes + (0 if self._bias_SH is None else self._bias_SH.nbytes)

    def put(self, slot: int, own: NormWeights | None) -> None:
        """Put an adapter's weights into a slot; None: the base's.

        Args:
            slot: from 0.
            own: the adapter's weights.
        """
        self._gain_SH[slot] = self._gain_SH[-1] if own is None else own.weight + self._offset
        if self._bias_SH is not None:
            self._bias_SH[slot] = self._bias_SH[-1] if own is None or own.bias is None else own.bias

    def resize(self, slots: int, moves: Mapping[int, int]) -> None:
        """Change the number of slots, and keep those that `moves` names (old to new).

        Args:
            slots: from now on.
            moves: new slot of each old one that is kept.
        """
        self._gain_SH = _moved(self._gain_SH, slots, moves)
        if self._bias_SH is not None:
            self._bias_SH = _moved(self._bias_SH, slots, moves)

    def use(self, rows_B: torch.Tensor | None) -> None:
        """Take the weights of these slots (-1: the base's) in the next forward pass; None: the base's in all rows."""
        self._rows_B = rows_B

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, ..., H), as the norm itself."""
        return self.norm(x) if self._rows_B is None else self._of(x, self._rows_B)

    def _of(self, x: torch.Tensor, rows_B: torch.Tensor) -> torch.Tensor:
        shape = (len(rows_B), *[1] * (x.ndim - 2), x.shape[-1])
        y = self._plain(x) * self._gain_SH[rows_B].view(shape)
        return y if self._bias_SH is None else y + self._bias_SH[rows_B].view(shape)

    def _set_plain(self, weight: float) -> None:
        self._plain.weight.fill_(weight)  # type: ignore[operator]
        if getattr(self._plain, "bias", None) is not None:
            self._plain.bias.fill_(0.0)  # type: ignore[operator]

    def _filled(self, base_H: torch.Tensor, slots: int) -> torch.Tensor:
        return base_H.detach().expand(slots + 1, -1).clone()


def _moved(old_SH: torch.Tensor, slots: int, moves: Mapping[int, int]) -> torch.Tensor:
    new_SH = old_SH[-1].expand(slots + 1, -1).clone()
    for old, new in moves.items():
        new_SH[new] = old_SH[old]
    return new_SH


def embed_rows_(
    y_BTH: torch.Tensor, ids_BT: torch.Tensor, rows: torch.Tensor, table: WeightTable, scale: float
) -> None:
    """Replace the embeddings of some rows by an adapter's, in place.

    Args:
        y_BTH: embeddings of the base.
        ids_BT: the tokens.
        rows: (b,), those of the adapter.
        table: its embeddings.
        scale: what the model multiplies embeddings by.
    """
    ids_bT = ids_BT[rows]
    if table.tokens is None:
        y_BTH[rows] = F.embedding(ids_bT, table.values) * scale
        return
    place_bT = torch.searchsorted(table.tokens, ids_bT).clamp_(max=len(table.tokens) - 1)
    own_bT = table.tokens[place_bT] == ids_bT
    y_BTH[rows] = torch.where(own_bT[..., None], table.values[place_bT] * scale, y_BTH[rows])


def head_rows_(
    logits_BTV: torch.Tensor, x_BTH: torch.Tensor, rows: torch.Tensor, table: WeightTable, bias_V: torch.Tensor | None
) -> None:
    """Replace the head's output in some rows by that of an adapter's head, in place.

    Args:
        logits_BTV: of the base's head.
        x_BTH: what the head was given.
        rows: (b,), those of the adapter.
        table: its head.
        bias_V: of the base's head; None for none.
    """
    if table.tokens is None:
        logits_BTV[rows] = F.linear(x_BTH[rows], table.values, bias_V)
        return
    bias_R = None if bias_V is None else bias_V[table.tokens]
    logits_bTV = logits_BTV[rows]
    logits_bTV[..., table.tokens] = F.linear(x_BTH[rows], table.values, bias_R)
    logits_BTV[rows] = logits_bTV
