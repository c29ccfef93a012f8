"""The adapters by name: which are in memory, which are used, and which has to make room."""

from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from lengthen.errors import ModelError
from lengthen.serving.engine.adapter_pool import AdapterPool, LoadedAdapter
from lengthen.serving.engine.adapter_weights import AdapterWeights, read_adapter
from lengthen.serving.engine.base_model import LoadedBase

__all__ = ["Adapter", "AdapterRegistry"]


@dataclass(eq=False)
class Adapter:
    """An adapter that can be asked for.

    Attributes:
        name: by which it is asked for.
        folder: its PEFT folder.
        stamp: sizes and times of its files when it was loaded.
        tokenizer: its own; None for the base's.
        loaded: in memory; None while it is on disk only.
        users: requests for it that are not finished.
        running: those of them that are in the batch.
        last_used: larger for later.
        is_dropped: whether it leaves when its last request is finished.
    """

    name: str
    folder: Path
    stamp: tuple[tuple[str, int, int], ...]
    tokenizer: Any = None
    loaded: LoadedAdapter | None = None
    users: int = 0
    running: int = 0
    last_used: int = 0
    is_dropped: bool = False


class AdapterRegistry:
    """Adapters by name. The one that was used least recently leaves the memory where another needs room.

    Args:
        base: what they are served over.
        max_bytes: memory for adapters.
        scale: the share of every adapter that is applied, 0 to 1.

    Attributes:
        evicted: how many adapters had to leave so far.
    """

    def __init__(self, base: LoadedBase, max_bytes: int, scale: float = 1.0):
        self._base, self._scale = base, scale
        self.pool = AdapterPool(base, max_bytes)
        self._adapters: dict[str, Adapter] = {}
        self._in_memory: list[Adapter] = []
        self._clock = count(1)
        self.evicted = 0

    def __contains__(self, name: str) -> bool:
        return name in self._adapters

    @property
    def names(self) -> list[str]:
        """In the order in which they were loaded."""
        return list(self._adapters)

    def get(self, name: str) -> Adapter:
        """The adapter of this name.

        Raises:
            ModelError: there is none.
        """
        adapter = self._adapters.get(name)
        if adapter is None:
            raise ModelError(f"there is no adapter {name!r}; there are {', '.join(self._adapters) or 'none'}")
        return adapter

    def check_new(self, name: str) -> None:
        """Refuse a name that is taken.

        Raises:
            ModelError: it is.
        """
        if name in self._adapters:
            raise ModelError(f"there is an adapter {name!r} already; unload it first, or choose another name")

    def read(self, folder: Path) -> tuple[Adapter, AdapterWeights]:
        """Read an adapter's folder, which changes nothing here.

        Raises:
            ModelError: it can't be served over this base (see `read_adapter`), or is larger than the memory.
        """
        stamp, weights = _stamp(folder), read_adapter(folder, self._base, self._scale)
        needed = self.pool.needs(weights)
        if needed > self.pool.max_bytes:
            raise ModelError(
                f"the adapter {folder} takes {needed / 2**20:.0f} MiB, and there are "
                f"{self.pool.max_bytes / 2**20:.0f} MiB for adapters; give the engine more for them"
            )
        return Adapter("", folder, stamp), weights

    def add(self, name: str, adapter: Adapter, weights: AdapterWeights) -> None:
        """Make an adapter known, and take it into memory where others don't use all of that now.

        Args:
            name: by which requests call it.
            adapter: read before.
            weights: its tensors.

        Raises:
            ModelError: the name is taken, or one of its norms is none that can be batched.
        """
        self.check_new(name)
        adapter.name = name
        self._put(adapter, weights)
        self._adapters[name] = adapter

    def drop(self, name: str) -> None:
        """Forget an adapter; its requests are finished first.

        Raises:
            ModelError: there is none of this name.
        """
        adapter = self.get(name)
        del self._adapters[name]
        adapter.is_dropped = True
        self._leave_if_done(adapter)

    def release(self, adapter: Adapter, was_running: bool) -> None:
        """One of its requests is finished.

        Args:
            adapter: which one.
            was_running: whether the request was admitted.
        """
        adapter.users -= 1
        adapter.running -= was_running
        self._leave_if_done(adapter)

    def ensure_loaded(self, adapter: Adapter) -> bool:
        """Bring an adapter into memory; whether there was room.

        Raises:
            ModelError: its folder is not what it was.
        """
        if adapter.loaded is not None:
            adapter.last_used = next(self._clock)
            return True
        if _stamp(adapter.folder) != adapter.stamp:
            raise ModelError(
                f"the adapter {adapter.name!r} left the memory, and its files have changed since; unload and load it"
            )
        return self._put(adapter, read_adapter(adapter.folder, self._base, self._scale))

    def _put(self, adapter: Adapter, weights: AdapterWeights) -> bool:
        adapter.last_used = next(self._clock)
        while not self.pool.fits(weights):
            idle = [adapter for adapter in self._in_memory if adapter.running == 0]
            if not idle:
                return False
            self._forget(min(idle, key=lambda each: each.last_used))
            self.evicted += 1
        adapter.loaded = self.pool.put(weights)
        self._in_memory.append(adapter)
        return True

    def _forget(self, adapter: Adapter) -> None:
        assert adapter.loaded is not None
        self.pool.remove(adapter.loaded)
        self._in_memory.remove(adapter)
        adapter.loaded = None

    def _leave_if_done(self, adapter: Adapter) -> None:
        if adapter.is_dropped and adapter.users == 0 and adapter.loaded is not None:
            self._forget(adapter)


def _stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    try:
        found = [(file.name, file.stat()) for file in sorted(folder.iterdir()) if file.is_file()]
    except OSError as error:
        raise ModelError(f"the adapter folder {folder} can't be read: {error.strerror}") from error
    return tuple((name, status.st_size, status.st_mtime_ns) for name, status in found)
