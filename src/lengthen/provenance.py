"""What a result must say about the software it came from."""

import platform
from importlib.metadata import version

__all__ = ["versions"]


def versions() -> dict[str, str]:
    """Versions of Python, lengthen, and the packages that can change a number."""
    packages = ("torch", "transformers", "peft", "lengthen")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
