"""Whatever other packages raise while they read a model's files, as one line that names the model.

What transformers, tokenizers, safetensors, torch, peft and jinja2 raise differs by architecture and version
(ValueError, KeyError, strict dataclass errors, C++ exceptions), so the kinds are not listed: all become one of ours.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Any

from safetensors import SafetensorError

from lengthen.errors import DataError, LengthenError, ModelError, one_line

__all__ = ["chat_prompt", "check_chat_template", "reading"]


@contextmanager
def reading(
    name: str, problem: str = "can't load {name}: {error}", kind: type[LengthenError] = ModelError
) -> Iterator[None]:
    """Turn any exception inside into a `ModelError` of one line.

    Args:
        name: of what is read, for the message.
        problem: the message, with {name} and {error}, where none of the known causes is met.
        kind: of the error then.

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
        if "Unrecognized configuration class" in str(error):  # followed by the names of all that there are
            raise ModelError(
                f"{name} is no text model that transformers can build alone, such as one that reads pictures; take the "
                "text model that it was made from, or one whose text decoder can be had (gemma3, llama4)"
            ) from error
        raise kind(problem.format(name=name, error=one_line(error))) from error


def check_chat_template(tokenizer: Any) -> None:
    """Refuse a tokenizer without a chat template, or with several of which none is the default.

    Raises:
        DataError: there is none to take.
    """
    template = tokenizer.chat_template
    if not template:
        raise DataError("this model's tokenizer has no chat template; choose one by `template`")
    if isinstance(template, dict) and "default" not in template:
        raise DataError(
            f"this model's tokenizer has chat templates by name ({', '.join(template)}) and none that is the default; "
            "choose one by `template`"
        )


def chat_prompt(tokenizer: Any, messages: list[Any], **options: Any) -> Any:
    """The output of `apply_chat_template` for these messages.

    Args:
        tokenizer: with a chat template.
        messages: of a conversation.
        options: of `apply_chat_template`.

    Raises:
        DataError: there is no template, or it does not take such a conversation, whatever it raises.
    """
    check_chat_template(tokenizer)
    with reading("the chat template", "{name} refuses these messages: {error}", DataError):
        return tokenizer.apply_chat_template(messages, **options)
