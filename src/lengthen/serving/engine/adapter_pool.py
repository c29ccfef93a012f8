"""The adapters in memory, and what they add to each row of a batch while the base runs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lengthen.serving.engine.adapter_weights import AdapterWeights, WeightTable
from lengthen.serving.engine.base_model import LoadedBase
from lengthen.serving.engine.lora_batch import GROUPED_STEP, LoraStack, has_grouped_products
from lengthen.serving.engine.per_adapter_layers import PerAdapterNorm, embed_rows_, head_rows_
from lengthen.serving.engine.routing import Routing

__all__ = ["AdapterPool", "LoadedAdapter"]


@dataclass(eq=False)
class LoadedAdapter:
    """An adapter in memory.

    Attributes:
        slot: where its matrices and norms are; may change between forward passes.
        rank: its largest.
        has_lora, has_norms: what it changes.
        embeddings, head: its own, None for the base's.
        table_bytes: memory of these two.
    """

    slot: int
    rank: int
    has_lora: bool
    has_norms: bool
    embeddings: WeightTable | None
    head: WeightTable | None
    table_bytes: int


@dataclass
class _Batch:
    """The adapters of the rows in the present forward pass. Tables come with the rows (b,) that use them."""

    routing: Routing | None = None
    norm_slots_B: torch.Tensor | None = None
    embeddings: list[tuple[WeightTable, torch.Tensor]] = field(default_factory=list)
    heads: list[tuple[WeightTable, torch.Tensor]] = field(default_factory=list)


class _Group:
    """Linear layers with one input. The first of them that runs computes the first half for all."""

    def __init__(self, modules: Sequence[nn.Linear]):
        self.in_features = modules[0].in_features
        self.out_features = [module.out_features for module in modules]
        self.stack: LoraStack | None = None
        self._low: torch.Tensor | None = None
        self._left = 0

    def bytes(self, slots: int, rank: int, itemsize: int) -> int:
        """Memory of a stack of this size."""
        return slots * rank * (len(self.out_features) * self.in_features + sum(self.out_features)) * itemsize

    def add_(self, index: int, x: torch.Tensor, y: torch.Tensor, routing: Routing) -> None:
        """Add the updates of one of the layers to its output, in place."""
        assert self.stack is not None
        if self._left == 0:
            self._low, self._left = self.stack.shrink(x, routing), len(self.out_features)
        assert self._low is not None
        self.stack.expand_(y, self._low, index, routing)
        self._left -= 1
        if self._left == 0:
            self._low = None

    def forget(self) -> None:
        """Drop what a forward pass that was stopped halfway left."""
        self._low, self._left = None, 0


class AdapterPool:
    """Adapters in memory over one base.

    Matrices of all adapters have the largest rank among them. Slots and ranks grow when they have to, and never
    beyond the memory.

    Args:
        base: its layers get hooks, and norms that adapters change are wrapped.
        max_bytes: memory for all adapters.
    """

    def __init__(self, base: LoadedBase, max_bytes: int):
        self._base, self.max_bytes = base, max_bytes
        self._slots, self._rank = 0, 1
        self._loaded: list[LoadedAdapter] = []
        self._groups = [_Group([base.linear[name] for name in group]) for group in base.groups]
        self._group_of = {name: index for index, group in enumerate(base.groups) for name in group}
        self._norms: dict[str, PerAdapterNorm] = {}
        self._batch: _Batch | None = None
        # The last one, which a batch of requests that only go on takes again.
        self._made: tuple[tuple[LoadedAdapter | None, ...], int, _Batch] | None = None
        self._has_grouped = has_grouped_products(base.device, base.dtype)
        self._add_hooks()

    def __len__(self) -> int:
        return len(self._loaded)

    @property
    def nbytes(self) -> int:
        """Memory of all adapters, empty slots included."""
        return self._bytes(self._slots, self._rank, [])

    def needs(self, weights: AdapterWeights) -> int:
        """Memory that an adapter would take if it were the only one."""
        groups = {self._group_of[name] for name in weights.linear}
        itemsize = self._base.dtype.itemsize
        lora = sum(self._groups[index].bytes(1, weights.rank, itemsize) for index in groups)
        return lora + weights.table_bytes + sum(norm.weight.nbytes for norm in weights.norms.values())

    def fits(self, weights: AdapterWeights) -> bool:
        """Whether there is memory for one more."""
        return self._size_with(weights) is not None

    @torch.inference_mode()
    def put(self, weights: AdapterWeights) -> LoadedAdapter:
        """Take an adapter in; it must fit. Not while the base runs."""
        size = self._size_with(weights)
        assert size is not None
        self._made = None
        if size != (self._slots, self._rank):
            self._resize(*size)
        used = {adapter.slot for adapter in self._loaded}
        slot = next(slot for slot in range(self._slots) if slot not in used)
        self._put_matrices(slot, weights)
        self._put_norms(slot, weights)
        loaded = LoadedAdapter(
            slot=slot,
            rank=weights.rank,
            has_lora=bool(weights.linear),
            has_norms=bool(weights.norms),
            embeddings=weights.embeddings,
            head=weights.head,
            table_bytes=weights.table_bytes,
        )
        self._loaded.append(loaded)
        return loaded

    def remove(self, loaded: LoadedAdapter) -> None:
        """Drop an adapter, which no row uses. Its slot is used again."""
        self._loaded.remove(loaded)
        self._made = None
        if not self._loaded:
            self._slots, self._rank = 0, 1
            for group in self._groups:
                group.stack = None
            for name, norm in self._norms.items():
                self._base.model.set_submodule(name, norm.norm)
            self._norms = {}

    @contextmanager
    def rows(self, adapters: Sequence[LoadedAdapter | None], tokens: int) -> Iterator[None]:
        """Run the base in this block with an adapter of its own for each row.

        Args:
            adapters: of each row; None for the base alone.
            tokens: T of each row.
        """
        if self._made is None or self._made[:2] != (tuple(adapters), tokens):
            self._made = tuple(adapters), tokens, self._make_batch(adapters, tokens)
        self._batch = self._made[2]
        for norm in self._norms.values():
            norm.use(self._batch.norm_slots_B)
        try:
            yield
        finally:
            self._batch = None
            for group in self._groups:
                group.forget()

    def _make_batch(self, adapters: Sequence[LoadedAdapter | None], tokens: int) -> _Batch:
        return _Batch(
            routing=self._route(adapters, tokens),
            norm_slots_B=self._norm_slots(adapters),
            embeddings=self._rows_by_table([None if adapter is None else adapter.embeddings for adapter in adapters]),
            heads=self._rows_by_table([None if adapter is None else adapter.head for adapter in adapters]),
        )

    def _route(self, adapters: Sequence[LoadedAdapter | None], tokens: int) -> Routing | None:
        """Which matrices each row's tokens go through; None where no adapter has some."""
        slots = [adapter.slot if adapter is not None and adapter.has_lora else None for adapter in adapters]
        if all(slot is None for slot in slots):
            return None
        grouped = self._slots if self._takes_grouped() else None
        return Routing.of(slots, [tokens] * len(slots), self._base.device, grouped)

    def _norm_slots(self, adapters: Sequence[LoadedAdapter | None]) -> torch.Tensor | None:
        """Each row's slot in the norms, -1 for the base's; None where no adapter has some."""
        if not any(each is not None and each.has_norms for each in adapters):
            return None
        return torch.tensor([-1 if adapter is None else adapter.slot for adapter in adapters], device=self._base.device)

    def _rows_by_table(self, tables: Sequence[WeightTable | None]) -> list[tuple[WeightTable, torch.Tensor]]:
        """Each table once, with the rows that use it."""
        rows: dict[int, tuple[WeightTable, list[int]]] = {}
        for row, table in enumerate(tables):
            if table is not None:
                rows.setdefault(id(table), (table, []))[1].append(row)
        return [(table, torch.tensor(users, device=self._base.device)) for table, users in rows.values()]

    def _takes_grouped(self) -> bool:
        """Whether all layers that adapters change have sizes for grouped products."""
        sizes = (n for group in self._groups if group.stack for n in (group.in_features, *group.out_features))
        return self._has_grouped and not any(size % GROUPED_STEP for size in sizes)

    def _size_with(self, weights: AdapterWeights) -> tuple[int, int] | None:
        """Slots and rank for one adapter more: as it is, with some slots to spare, or with none; None: no memory."""
        count = len(self._loaded) + 1
        rank = max([weights.rank, *(adapter.rank for adapter in self._loaded)])
        if self._has_grouped:
            rank = -(-rank // GROUPED_STEP) * GROUPED_STEP
        sizes = [(count + count // 4, rank), (count, rank)]
        if count <= self._slots and rank <= self._rank:
            sizes.insert(0, (self._slots, self._rank))
        return next((size for size in sizes if self._bytes(*size, [weights]) <= self.max_bytes), None)

    def _bytes(self, slots: int, rank: int, more: Sequence[AdapterWeights]) -> int:
        touched = {self._group_of[name] for weights in more for name in weights.linear}
        groups = [group for index, group in enumerate(self._groups) if group.stack is not None or index in touched]
        lora = sum(group.bytes(slots, rank, self._base.dtype.itemsize) for group in groups)
        norms = sum(norm.nbytes for norm in self._norms.values()) + sum(
            (slots + 1) * own.weight.nbytes
            for weights in more
            for name, own in weights.norms.items()
            if name not in self._norms
        )
        tables = sum(each.table_bytes for each in self._loaded) + sum(each.table_bytes for each in more)
        return lora + norms + tables

    def _resize(self, slots: int, rank: int) -> None:
        moves = {each.slot: new for new, each in enumerate(self._loaded)}
        for group in self._groups:
            if group.stack is not None:
                group.stack = group.stack.resized(slots, rank, moves)
        for norm in self._norms.values():
            norm.resize(slots, moves)
        for each in self._loaded:
            each.slot = moves[each.slot]
        self._slots, self._rank = slots, rank

    def _put_matrices(self, slot: int, weights: AdapterWeights) -> None:
        for names, group in zip(self._base.groups, self._groups, strict=True):
            if group.stack is None and any(name in weights.linear for name in names):
                group.stack = LoraStack(
                    group.in_features, group.out_features, self._slots, self._rank, self._base.dtype, self._base.device
                )
            if group.stack is not None:
                group.stack.put(slot, [weights.linear.get(name) for name in names])

    def _put_norms(self, slot: int, weights: AdapterWeights) -> None:
        for name in weights.norms.keys() - self._norms.keys():
            self._norms[name] = PerAdapterNorm(name, self._base.norms[name], self._slots)
            self._base.model.set_submodule(name, self._norms[name])
        for name, norm in self._norms.items():
            norm.put(slot, weights.norms.get(name))

    def _add_hooks(self) -> None:
        model = self._base.model
        model.get_input_embeddings().register_forward_hook(self._embed)
        model.get_output_embeddings().register_forward_hook(self._head)
        for names, group in zip(self._base.groups, self._groups, strict=True):
            for index, name in enumerate(names):
                self._base.linear[name].register_forward_hook(self._lora(group, index))

    def _lora(self, group: _Group, index: int) -> Any:
        def hook(_module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            batch = self._batch
            if batch is not None and batch.routing is not None and group.stack is not None:
                group.add_(index, inputs[0], output, batch.routing)

        return hook

    def _embed(self, _module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        if self._batch is not None:
            scale = self._base.embedding_scale or 1.0
            for table, rows in self._batch.embeddings:
                embed_rows_(output, inputs[0], rows, table, scale)

    def _head(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        if self._batch is not None:
            for table, rows in self._batch.heads:
                head_rows_(output, inputs[0], rows, table, getattr(module, "bias", None))
