"""Locks that keep two processes from writing in one place; they end with the process that holds them.

File systems that know no locks, as some network ones, go without, and so does Windows.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lengthen.errors import OutputError, writing

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["is_locked", "locked", "try_lock"]


def try_lock(descriptor: int) -> bool:
    """Take the lock of an open file or folder, which is held until it is closed.

    Args:
        descriptor: of the open file.

    Returns:
        Whether this process has the lock now, or there are no locks here.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return not isinstance(error, BlockingIOError)
    return True


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold a file or folder, which must exist, against other processes until the block ends or this process does.

    Args:
        path: what is held.
        what: the beginning of the message where another process holds it: "PATH is being written".

    Raises:
        OutputError: another process holds it.
    """
    with writing(path):
        descriptor = os.open(path, os.O_RDONLY)
    try:
        if not try_lock(descriptor):
            raise OutputError(f"{what} by another process; wait until it ends, or choose another place")
        yield
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether another process holds a file or folder, which must exist."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return not try_lock(descriptor)
    finally:
        os.close(descriptor)
