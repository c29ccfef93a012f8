"""A cache of computed facts that take seconds and never change, by all that they follow from."""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter

from lengthen.errors import OutputError
from lengthen.files import cache_folder, write_json

__all__ = ["remembered"]

T = TypeVar("T")


def remembered(kind: type[T], inputs: list[str], compute: Callable[[], T]) -> T:
    """A result from the cache, or computed now and kept.

    Args:
        kind: of the result, a dataclass.
        inputs: all that it follows from, beside our code and that of the packages that build models.
        compute: gives it.
    """
    name = hashlib.sha256("\0".join([kind.__qualname__, _code(), *inputs]).encode()).hexdigest()[:32]
    file = cache_folder("bases") / f"{name}.json"
    # An unreadable file is computed again; a result that can't be written is not kept.
    with suppress(OSError, ValueError):
        return TypeAdapter(kind).validate_json(file.read_bytes())
    result = compute()
    with suppress(OSError, OutputError):
        write_json(file, asdict(result))  # type: ignore[call-overload]
    return result


@lru_cache(maxsize=1)
def _code() -> str:
    digest = hashlib.sha256("".join(version(package) for package in ("torch", "transformers", "peft")).encode())
    for path in sorted(Path(__file__).parents[1].glob("**/*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
