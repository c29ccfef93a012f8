"""Whatever other packages raise while they read a model's files, as one line that names the model.

What transformers, tokenizers, safetensors, torch, peft and jinja2 raise differs by architecture and version
(ValueError, KeyError, strict dataclass errors, C++ exceptions), so the kinds are not listed: all become one of ours.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pickle import UnpicklingError

from safetensors import SafetensorError

from lengthen.errors import LengthenError, ModelError, one_line

__all__ = ["reading"]


@contextmanager
def reading(name: str, problem: str = "can't load {name}: {error}") -> Iterator[None]:
    """Turn any exception inside into a `ModelError` of one line.

    Args:
        name: of what is read, for the message.
        problem: the message, with {name} and {error}, where none of the known causes is met.

    Raises:
        ModelError: whatever went wrong there. Errors of ours pass as they are.
    """
    try:
        yield
    except LengthenError:
        raise
    except ImportError as error:
        raise ModelError(f"loading {name} needs a package that is not installed: {one_line(error)}") from error
    except UnpicklingError as error:
        raise ModelError(
            f"the .bin weights of {name} hold more than tensors, and loading them could run any code; take safetensors "
            "weights"
        ) from error
    except SafetensorError as error:
        raise ModelError(f"the weights of {name} are damaged ({one_line(error)}); is the download complete?") from error
    except Exception as error:
        if "trust_remote_code" in str(error):  # transformers' advice, for an option that its callers have
            raise ModelError(
                f"{name} needs program code from its own folder (auto_map), which lengthen does not run; take a model "
                "whose architecture transformers has built in, or a conversion of this one to such"
            ) from error
        raise ModelError(problem.format(name=name, error=one_line(error))) from error
