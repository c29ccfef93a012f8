"""The origin of a result: the command and the versions that made it."""

import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path

__all__ = ["command_line", "versions"]


def versions() -> dict[str, str]:
    """Versions of Python, lengthen, and the packages that can change a number."""
    packages = ("torch", "transformers", "peft", "lengthen")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def command_line() -> str:
    """The command of this process, for a shell; programs by name, not by where they are installed."""
    program, *arguments = sys.orig_argv
    if arguments and Path(arguments[0]).name == "lengthen":  # the installed script, started by its first line
        program, *arguments = arguments
    return shlex.join([Path(program).name, *arguments])
