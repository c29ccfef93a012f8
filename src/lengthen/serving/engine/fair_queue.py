"""Requests that wait: in turn over the adapters they name, first come first served within each."""

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

__all__ = ["FairQueue"]

T = TypeVar("T")


class FairQueue(Generic[T]):
    """A queue in which a thousand requests for one adapter don't hold up the first one for another."""

    def __init__(self) -> None:
        self._queues: OrderedDict[Hashable, deque[T]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        for items in self._queues.values():
            yield from items

    def push(self, key: Hashable, item: T) -> None:
        """Add an item behind the others of its key.

        Args:
            key: whose turn it waits for.
            item: what waits.
        """
        self._queues.setdefault(key, deque()).append(item)
        self._count += 1

    def first(self) -> T | None:
        """The item whose turn it is; None where nothing waits."""
        return next(iter(self._queues.values()))[0] if self._queues else None

    def pop(self) -> T:
        """Take it out; the next turn is another key's."""
        key, items = next(iter(self._queues.items()))
        item = items.popleft()
        self._queues.move_to_end(key)
        self._tidy(key)
        return item

    def remove(self, key: Hashable, item: T) -> None:
        """Take an item out of the middle.

        Args:
            key: that it was added with.
            item: one that waits.
        """
        self._queues[key].remove(item)
        self._tidy(key)

    def _tidy(self, key: Hashable) -> None:
        self._count -= 1
        if not self._queues[key]:
            del self._queues[key]
