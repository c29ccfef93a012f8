"""Segmented gather matmul: one batch in which each row has its own LoRA adapter, y += scale_i (x A_i^T) B_i^T.

The operator of Punica (arXiv 2310.18547, section 4), in plain torch. Layers that share an input, such as q, k and v,
are one `LoraStack`: their A matrices are one matrix. Which rows belong to which adapter is a `Routing`
(`serving/engine/routing.py`), made once per batch and used by every layer.

Rows without an adapter are in neither. Adapters of smaller rank are padded with zeros. No gradients: outputs are added
to in place.

Shapes: N rows, M of them with an adapter; S slots, one adapter each; W slots and c rows of each in the batched way; P
layers that share an input; r the largest rank; I input features; O output features of one layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from lengthen.errors import ModelError
from lengthen.serving.engine.routing import Routing

__all__ = ["GROUPED_STEP", "LoraMatrices", "LoraStack", "has_grouped_products"]

GROUPED_STEP = 8
"""Numbers of 16 bits in the 16 bytes whose multiples all sizes have to be for grouped products."""


def has_grouped_products(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch computes `grouped_mm` in one kernel there: from torch 2.10 on, bfloat16 on Hopper and Blackwell.

    Elsewhere on CUDA it reads the groups' ends back and computes one after the other.

    Args:
        device: of the products.
        dtype: of the matrices.
    """
    if not hasattr(F, "grouped_mm") or device.type != "cuda" or dtype != torch.bfloat16:
        return False
    return torch.cuda.get_device_capability(device)[0] in (9, 10)


@dataclass(frozen=True)
class LoraMatrices:
    """One adapter's matrices for one layer.

    Attributes:
        a: (rank, I).
        b: (O, rank).
        scale: of the update, alpha / rank or alpha / sqrt(rank).
    """

    a: torch.Tensor
    b: torch.Tensor
    scale: float


class LoraStack:
    """The matrices of S adapters for P layers that share an input.

    Args:
        in_features: I.
        out_features: O of each layer.
        slots: S.
        rank: r, of the largest adapter that will be put in.
        dtype: of the matrices and the activations.
        device: of both.
    """

    def __init__(
        self,
        in_features: int,
        out_features: Sequence[int],
        slots: int,
        rank: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ):
        self.rank = rank
        self._a_SPrI = torch.zeros(slots, len(out_features), rank, in_features, dtype=dtype, device=device)
        self._b_SrO = [torch.zeros(slots, rank, features, dtype=dtype, device=device) for features in out_features]

    @property
    def nbytes(self) -> int:
        """Memory of all slots."""
        return sum(tensor.nbytes for tensor in (self._a_SPrI, *self._b_SrO))

    def put(self, slot: int, layers: Sequence[LoraMatrices | None]) -> None:
        """Put an adapter into a slot, in place of what was there.

        Args:
            slot: from 0.
            layers: its matrices for each of the P layers, in their order; None where it has none.

        Raises:
            ModelError: a value is infinite or NaN, which would spread to rows of other adapters.
        """
        assert len(layers) == len(self._b_SrO)
        matrices = [matrix for layer in layers if layer is not None for matrix in (layer.a, layer.b)]
        if not all(torch.isfinite(matrix).all() for matrix in matrices):
            raise ModelError("the adapter holds weights that are infinite or NaN; take another checkpoint of it")
        self.clear(slot)
        for index, (layer, b_SrO) in enumerate(zip(layers, self._b_SrO, strict=True)):
            if layer is not None:
                rank = layer.a.shape[0]
                assert rank <= self.rank
                self._a_SPrI[slot, index, :rank] = layer.a
                exact = torch.promote_types(layer.b.dtype, torch.float32)
                b_SrO[slot, :rank] = layer.scale * layer.b.to(exact).T  # so that nothing is scaled while serving

    def clear(self, slot: int) -> None:
        """Empty a slot: rows that name it are as without an adapter."""
        self._a_SPrI[slot] = 0
        for b_SrO in self._b_SrO:
            b_SrO[slot] = 0

    def resized(self, slots: int, rank: int, moves: Mapping[int, int]) -> "LoraStack":
        """A stack of another size that holds some of the adapters.

        Args:
            slots: S of the new one.
            rank: r of the new one, at least that of every adapter that is kept.
            moves: the new slot of each old one that is kept.
        """
        features = [b_SrO.shape[-1] for b_SrO in self._b_SrO]
        a_SPrI = self._a_SPrI
        new = LoraStack(a_SPrI.shape[-1], features, slots, rank, a_SPrI.dtype, a_SPrI.device)
        kept = min(rank, self.rank)
        for old_slot, slot in moves.items():
            new._a_SPrI[slot, :, :kept] = a_SPrI[old_slot, :, :kept]
            for new_SrO, old_SrO in zip(new._b_SrO, self._b_SrO, strict=True):
                new_SrO[slot, :kept] = old_SrO[old_slot, :kept]
        return new

    def add_(self, outputs: Sequence[torch.Tensor], x: torch.Tensor, routing: Routing) -> None:
        """Add each row's update to the outputs of the P layers, in place: `shrink`, then `expand_` for each of them.

        Args:
            outputs: (N, O) of each layer, changed in place.
            x: (N, I), the layers' input.
            routing: of the batch.
        """
        low = self.shrink(x, routing)
        for index, y in enumerate(outputs):
            self.expand_(y, low, index, routing)

    def shrink(self, x: torch.Tensor, routing: Routing) -> torch.Tensor:
        """The first half of all P layers, x A^T.

        Args:
            x: (..., I), N rows.
            routing: of these rows.

        Returns:
            What `expand_` takes with the same routing.
        """
        x_NI = x.reshape(-1, x.shape[-1])
        assert x_NI.shape[0] == routing.rows
        if routing.slots is not None:
            x_PI = x_NI if routing.filled is None else x_NI.index_select(0, routing.filled)
            a_WRI = self._a_SPrI[slice(*routing.slots)].flatten(1, 2)
            return torch.bmm(x_PI.view(len(a_WRI), -1, x_PI.shape[-1]), a_WRI.transpose(1, 2))
        if routing.order is not None:
            x_NI = x_NI.index_select(0, routing.order)
        if routing.ends is not None:
            return F.grouped_mm(x_NI, self._a_SPrI.flatten(1, 2).transpose(1, 2), offs=routing.ends)
        low_NR = x.new_empty(x_NI.shape[0], len(self._b_SrO) * self.rank)
        for slot, start, stop in routing.segments:
            torch.mm(x_NI[start:stop], self._a_SPrI[slot].flatten(0, 1).T, out=low_NR[start:stop])
        return low_NR

    def expand_(self, y: torch.Tensor, low: torch.Tensor, layer: int, routing: Routing) -> None:
        """The second half of one layer: y += scale low B^T, in place.

        Args:
            y: (..., O) the layer's output, contiguous.
            low: from `shrink`.
            layer: which of the P.
            routing: as in `shrink`.
        """
        y_NO, b_SrO = y.view(-1, y.shape[-1]), self._b_SrO[layer]
        low_r = low[..., layer * self.rank : (layer + 1) * self.rank]
        if routing.slots is not None:
            b_WrO = b_SrO[slice(*routing.slots)]
            if routing.places is None:
                y_NO.view(*low.shape[:2], -1).baddbmm_(low_r, b_WrO)
                return
            update_MO = torch.bmm(low_r, b_WrO).flatten(0, 1).index_select(0, routing.places)
        elif routing.ends is not None:
            update_MO = F.grouped_mm(low_r, b_SrO, offs=routing.ends)
            if routing.order is None:
                y_NO += update_MO
                return
        elif routing.order is None:
            for slot, start, stop in routing.segments:
                y_NO[start:stop].addmm_(low_r[start:stop], b_SrO[slot])
            return
        else:
            update_MO = y.new_empty(low.shape[0], y.shape[-1])
            for slot, start, stop in routing.segments:
                torch.mm(low_r[start:stop], b_SrO[slot], out=update_MO[start:stop])
        assert routing.order is not None
        y_NO.index_add_(0, routing.order, update_MO)
