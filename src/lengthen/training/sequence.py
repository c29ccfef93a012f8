"""Sequences that several processes share: which part each has, and how they reach each other.

Of `world` processes, `parallel.sequence` neighbors have the same batches and a shard of each sequence; the others have
other batches. Each computes the loss of its own tokens, so the gradients of all processes are added up as if each had
sequences of its own: DDP and FSDP2 work over all of them.
"""

from typing import Any

import torch
from torch import distributed

from lengthen.attention.layout import Shard
from lengthen.attention.peers import Peers
from lengthen.data.collate import IGNORED

__all__ = ["SequenceShards", "cut_batch"]


class SequenceShards:
    """This process's place among those that share its sequences; all processes make it together.

    Args:
        device: of the run.
        count: processes that share a sequence; it divides the number of all.
        step: tokens of which shards are multiples.

    Attributes:
        data_rank, data_count: of these among all, and how many such there are.
    """

    def __init__(self, device: torch.device, count: int, step: int):
        self.data_count = distributed.get_world_size() // count
        mesh = distributed.init_device_mesh(device.type, (self.data_count, count), mesh_dim_names=("data", "sequence"))
        self.data_rank = mesh.get_local_rank("data")
        self._peers = Peers.of_group(mesh.get_group("sequence"), step)

    @property
    def shortest(self) -> int:
        """Tokens that a batch must have to be cut."""
        return self._peers.shortest

    def cut(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch's shard of this process: `CausalLMObjective`'s arguments, of those for the whole batch."""
        return cut_batch(batch, self._peers.shard(batch["input_ids"].shape[1]))


def cut_batch(batch: dict[str, Any], shard: Shard) -> dict[str, Any]:
    """The arguments of `CausalLMObjective` for a shard, cut out of those for whole sequences (`data.collate`).

    Args:
        batch: of whole sequences, (B, T).
        shard: of this process.
    """
    own: dict[str, Any] = {"documents": batch["documents"], "shard": shard}
    for name, values in batch.items():
        if isinstance(values, torch.Tensor):
            is_target = name in ("labels", "loss_weights")  # of the next shard's first token too
            own[name] = values[:, shard.start : shard.stop + is_target].clone()
    if shard.start:
        own["labels"][:, 0] = IGNORED  # the shard before predicts it
    return own
