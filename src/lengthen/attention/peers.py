"""The processes that share sequences, and how they reach each other."""

from dataclasses import dataclass
from typing import Any

from torch import distributed
from torch.distributed import ProcessGroup

from lengthen.attention.layout import Messages, Shard, Transport
from lengthen.attention.shards import shard_bounds

__all__ = ["Peers", "transport_over"]


@dataclass(frozen=True)
class Peers:
    """This process among those that share sequences.

    Attributes:
        rank: of this process among them.
        count: of processes.
        transport: to the others.
        step: tokens of which shards are multiples.
    """

    rank: int
    count: int
    transport: Transport
    step: int = 1

    @classmethod
    def of_group(cls, group: ProcessGroup, step: int = 1) -> "Peers":
        """The processes of a group.

        Args:
            group: of torch.distributed, over which they send.
            step: tokens of which shards are multiples.
        """
        return cls(distributed.get_rank(group), distributed.get_world_size(group), transport_over(group), step)

    @property
    def shortest(self) -> int:
        """Tokens that a sequence must have to be shared."""
        return self.count * self.step

    def shard(self, length: int) -> Shard:
        """This process's shard of sequences of `length` tokens, at least `shortest`.

        Args:
            length: of the sequences, tokens.
        """
        return Shard(self.rank, shard_bounds(length, self.step, self.count), self.transport)


def transport_over(group: ProcessGroup) -> Transport:
    """Point-to-point messages between the processes of a group.

    Args:
        group: of torch.distributed.
    """

    def start(messages: Messages, received: Messages) -> Any:
        operations = [
            distributed.P2POp(function, tensor, distributed.get_global_rank(group, other), group)
            for function, tensors in ((distributed.isend, messages), (distributed.irecv, received))
            for other, tensor in tensors.items()
        ]
        works = distributed.batch_isend_irecv(operations) if operations else []

        def wait() -> None:
            for work in works:
                work.wait()
            messages.clear()  # held until they were sent

        return wait

    return start
