"""The sources of Python's standard library: long documents that every machine with Python has.

They are what the shipped base ``tiny`` was trained on and what the quickstart extends and measures with.
"""

import hashlib
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from lengthen.errors import DataError

__all__ = ["STDLIB", "expand_aliases", "stdlib_documents"]

STDLIB = "python-stdlib"

# Test suites, generated tables and bundled programs: long, repetitive, or not there on every machine.
_LEFT_OUT = {
    "test",
    "tests",
    "idle_test",
    "encodings",
    "pydoc_data",
    "idlelib",
    "lib2to3",
    "ensurepip",
    "site-packages",
    "dist-packages",
    "__pycache__",
}
_VALIDATION_SHARE = 1 / 8


def stdlib_documents(split: str) -> list[Path]:
    """List the standard library's source files of one split, sorted by path.

    A file's split follows from a hash of its path relative to the library, so it is the same on every machine
    and a new Python version moves no file from one split to the other.

    Args:
        split: "train" or "validation" (about one file in eight).

    Raises:
        DataError: another split was asked for.
    """
    if split not in ("train", "validation"):
        raise DataError(f"{STDLIB}:{split} is no data source; use {STDLIB}:train or {STDLIB}:validation")
    root = Path(sysconfig.get_paths()["stdlib"])
    chosen = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        # _sysconfigdata holds the paths of the machine that built this Python, not sources; some __init__.py are empty.
        if (
            _LEFT_OUT.intersection(relative.parts[:-1])
            or path.name.startswith("_sysconfigdata")
            or not path.stat().st_size
        ):
            continue
        first_byte = hashlib.sha256(relative.as_posix().encode()).digest()[0]
        if (first_byte < 256 * _VALIDATION_SHARE) == (split == "validation"):
            chosen.append(path)
    return chosen


def expand_aliases(sources: Sequence[str | Path]) -> list[str | Path]:
    """Replace `python-stdlib:train` and `python-stdlib:validation` in a list of data sources by their files.

    Raises:
        DataError: another split was asked for.
    """
    expanded: list[str | Path] = []
    for source in sources:
        name, _, split = str(source).partition(":")
        expanded += stdlib_documents(split) if name == STDLIB else [source]
    return expanded
