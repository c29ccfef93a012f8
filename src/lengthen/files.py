"""Writing files so that nothing half-written is ever taken for whole: temporary name, sync, rename."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lengthen.errors import OutputError

__all__ = ["atomic_folder", "sync_folder", "write_bytes", "write_json", "write_text"]


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, making its folder where needed.

    Raises:
        OutputError: the disk is full, or the place is not writable; an older file at `path` is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OutputError(
            f"can't write {path}: {error.strerror or error}; free space or choose another place"
        ) from error


def write_text(path: Path, content: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, content: Any) -> None:
    """`write_bytes` of indented JSON with a final line end."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def sync_folder(path: Path) -> None:
    """Wait until a folder, and all files in it, are on the disk."""
    for each in [*path.rglob("*"), path]:
        descriptor = os.open(each, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block ends without an error.

    `path` must not exist yet, or be an empty folder. Every file is synced before the rename, so that a folder with the
    final name is always whole, whatever stopped the process or the machine.

    Raises:
        OutputError: the disk is full, or the place is not writable.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        sync_folder(temporary)
        temporary.rename(path)
    except OSError as error:
        raise OutputError(
            f"can't write {path}: {error.strerror or error}; free space or choose another place"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
