"""Writing files so that nothing half-written is ever taken for whole: temporary name, sync, rename."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lengthen.errors import OutputError

__all__ = [
    "atomic_folder",
    "cache_folder",
    "sync_folder",
    "write_bytes",
    "write_json",
    "write_json_lines",
    "write_text",
    "writing",
]


def cache_folder(kind: str) -> Path:
    """The folder for what can be computed again: below $LENGTHEN_CACHE, else $XDG_CACHE_HOME, else ~/.cache."""
    root = os.environ.get("LENGTHEN_CACHE") or os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "lengthen" / kind


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what goes wrong while `path` is written into one error that names it.

    Raises:
        OutputError: the disk is full, or the place is not writable.
    """
    try:
        yield
    except Exception as error:
        # safetensors and tokenizers have exceptions of their own for it, the latter a plain Exception.
        if not isinstance(error, OSError) and "(os error " not in str(error):
            raise
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"can't write {path}: {reason}; free space or choose another place") from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, making its folder where needed; where links lead, devices and pipes as such.

    Raises:
        OutputError: the disk is full, or the place is not writable; an older file at `path` is untouched.
    """
    if path.parent == Path("/dev") or (path.exists() and not path.is_file()):
        # A rename over /dev/stdout or /dev/null would replace the device, for everyone.
        with writing(path), path.open("ab") as file:
            file.write(content)
        return
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, content: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, content: Any) -> None:
    """`write_bytes` of indented JSON with a final line end."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_json_lines(path: Path, records: Iterable[Any]) -> None:
    """Write objects as JSON, one a line; what JSON has no form for becomes its text."""
    write_text(path, "".join(f"{json.dumps(record, ensure_ascii=False, default=str)}\n" for record in records))


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
        with writing(path):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            yield temporary
            sync_folder(temporary)
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
