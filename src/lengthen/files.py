"""Writing files so that nothing half-written is ever taken for whole: temporary name, sync, rename.

A temporary name is `.NAME.PID.tmp`, beside what it becomes. What a killed process left under such a name goes when the
same file or folder is written again.
"""

import glob
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lengthen.errors import DataError, LengthenError, OutputError, one_line, writing
from lengthen.locks import locked, try_lock

__all__ = [
    "atomic_files",
    "atomic_folder",
    "cache_folder",
    "kept",
    "parse_json",
    "read_object",
    "sync_folder",
    "write_bytes",
    "write_json",
    "write_json_lines",
    "write_text",
]


def cache_folder(kind: str) -> Path:
    """The folder for what can be computed again: below $LENGTHEN_CACHE, else $XDG_CACHE_HOME, else ~/.cache."""
    root = os.environ.get("LENGTHEN_CACHE") or os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "lengthen" / kind


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is no JSON; or nested deeper than Python reads it, where `json.loads` raises RecursionError.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def read_object(
    path: Path, advice: str = "restore it, or take it away", kind: type[LengthenError] = DataError
) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        path: the file.
        advice: the end of the message, what to do about a file that holds none.
        kind: of the error.

    Raises:
        DataError: or another `kind`; the file can't be read, or holds something else.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise kind(f"can't read {path}: {error.strerror}; {advice}") from error
    except ValueError as error:
        raise kind(f"{path} can't be read as JSON: {one_line(error)}; {advice}") from error
    if not isinstance(content, dict):
        raise kind(f"{path} holds no JSON object; {advice}")
    return content


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file whole or not at all; its folder is made where there is none.

    Args:
        path: where to; a link is followed, and a device or pipe is appended to.
        content: all of it.

    Raises:
        OutputError: the disk is full, or the place is not writable; an older file at `path` is untouched.
    """
    if path.parent == Path("/dev") or (path.exists() and not path.is_file()):
        # A rename over /dev/stdout or /dev/null would replace the device, for everyone.
        with writing(path), path.open("ab") as file:
            file.write(content)
        return
    path = path.resolve()
    with writing(path), _temporary(path) as temporary:
        with temporary.open("wb") as file:
            try_lock(file.fileno())
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


def write_text(path: Path, content: str) -> None:
    """`write_bytes` of UTF-8 text.

    Args:
        path: where to.
        content: written as UTF-8.

    Raises:
        OutputError: as `write_bytes`.
    """
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, content: Any) -> None:
    """`write_bytes` of indented JSON with a final line end.

    Args:
        path: where to.
        content: of types that JSON has.

    Raises:
        OutputError: as `write_bytes`.
    """
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_json_lines(path: Path, records: Iterable[Any]) -> None:
    """Write objects as JSON Lines.

    Args:
        path: where to.
        records: one a line; a value that JSON has no type for is written as its `str`.

    Raises:
        OutputError: as `write_bytes`.
    """
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
    with writing(path), _temporary_folder(path) as temporary:
        yield temporary
        sync_folder(temporary)
        temporary.rename(path.resolve())


@contextmanager
def atomic_files(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder whose files go into `folder` when the block ends without an error, each of them whole.

    Raises:
        OutputError: the disk is full, or the place is not writable.
    """
    with writing(folder), _temporary_folder(folder / "files") as temporary:
        yield temporary
        sync_folder(temporary)
        for file in sorted(temporary.iterdir()):
            file.replace(folder / file.name)


@contextmanager
def kept(folder: Path) -> Iterator[None]:
    """Let no write in this block make a folder anew that somebody removed meanwhile.

    Args:
        folder: that must exist.
    """
    names = {folder.absolute(), folder.resolve()}  # a link may be what is removed
    _KEPT.extend(names)
    try:
        yield
    finally:
        for name in names:
            _KEPT.remove(name)


_KEPT: list[Path] = []


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, but none that is kept.

    Raises:
        OutputError: the kept folder that it is in was removed.
    """
    above = [folder, *folder.parents]
    kept_one = next((each for each in above if each in _KEPT), None)
    if kept_one is None:
        folder.mkdir(parents=True, exist_ok=True)
        return
    try:
        kept_one.stat()
        for each in reversed(above[: above.index(kept_one)]):
            each.mkdir(exist_ok=True)
    except FileNotFoundError as error:
        raise OutputError(f"{kept_one} was removed while it was written; start again") from error


@contextmanager
def _temporary_folder(path: Path) -> Iterator[Path]:
    path = path.resolve()
    with _temporary(path) as temporary:
        _remove(temporary)
        temporary.mkdir()
        with locked(temporary, f"{path} is being written"):
            yield temporary


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """Yield this process's temporary name for `path`, of which nothing is left behind the block.

    The folder around it is made; what dead processes left under such names is removed.
    """
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        _remove_if_dead(left)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _make_folder(path.parent)
        yield temporary
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    """Remove a file or a folder, as far as it is there and can be removed."""
    with suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _remove_if_dead(temporary: Path) -> None:
    process = temporary.name.split(".")[-2]
    if not process.isdigit() or _is_alive(int(process)):
        return
    # A process of another machine or container has a number that says nothing here, but holds its lock.
    with suppress(OutputError), locked(temporary, f"{temporary} is being written"):
        _remove(temporary)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)
    return True
