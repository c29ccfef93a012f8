"""Every exception that lengthen raises on purpose.

    LengthenError            the user's input can't be used; the CLI prints one line and exits with 2
    |-- RecipeError          a recipe or an override is wrong
    |-- ModelError           a base, adapter or run folder can't be loaded or does not fit
    |-- ContextError         the asked position scaling can't be applied
    |-- DataError            a document, token file or data folder can't be used
    |-- OutputError          an output folder can't be written
    |-- DivergedError        a run's loss, gradients or weights are no longer finite
    `-- BusyError            the engine has as many requests as it takes

`Interrupted` is none of them: nothing was wrong, and the same call goes on.

Each message says what was wrong, which value, and what to do. Our own invariants are ``assert``s.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = [
    "BusyError",
    "ContextError",
    "DataError",
    "DivergedError",
    "Interrupted",
    "LengthenError",
    "ModelError",
    "OutputError",
    "RecipeError",
    "one_line",
    "require",
    "writing",
]


class LengthenError(Exception):
    """Base of all errors caused by input; the command line turns it into exit code 2."""


class RecipeError(LengthenError):
    """A recipe file or an override is wrong."""


class ModelError(LengthenError):
    """A base model, adapter or run folder can't be loaded, or does not fit what was asked."""


class ContextError(LengthenError):
    """A position scaling can't be applied to this config."""


class DataError(LengthenError):
    """A document, token file or data folder can't be used."""


class OutputError(LengthenError):
    """An output file or folder can't be written."""


class DivergedError(LengthenError):
    """A run's loss, gradients or weights are no longer finite; what was written before is whole."""


class BusyError(LengthenError):
    """The engine has as many requests as it takes, or is closing."""


class Interrupted(Exception):
    """The work was stopped, by a signal or by `stop`; what was done is kept.

    Args:
        message: how far it came.
        signal: the signal's number; SIGTERM's where `stop` said so.

    Attributes:
        signal: the signal's number.
    """

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.signal = signal


def one_line(error: BaseException) -> str:
    """Another package's error as one line of at most 300 characters, with its kind where the message says little."""
    text = " ".join(str(error).split())
    if not text or isinstance(error, (KeyError, IndexError, AttributeError, AssertionError)):
        text = f"{type(error).__name__}: {text}".removesuffix(": ")
    return text if len(text) <= 300 else text[:300] + " ..."


def require(what: str, extra: str, *modules: str, error: type[LengthenError] = LengthenError) -> None:
    """Refuse what needs packages that are not installed.

    Args:
        what: what needs them, as the subject of the message: "quantize=nf4".
        extra: the extra of this package that brings them.
        modules: top-level names that they are imported by.
        error: the class to raise.

    Raises:
        LengthenError: one of them is missing.
    """
    missing = [name.replace("_", "-") for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        packages = f"the package{'s' if len(missing) > 1 else ''} {' and '.join(missing)}"
        raise error(f"{what} needs {packages}: pip install 'lengthen[{extra}]'")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what goes wrong while `path` is written into one error that names it.

    Args:
        path: named in the error.

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
