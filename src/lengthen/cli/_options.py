"""The options that several commands have, each described once, and the wrapper of every command.

A command takes a group of options as one parameter, whose annotation is a dataclass with a field for each option.
"""

import inspect
import re
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import wraps
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from lengthen.cli._terminal import reporting
from lengthen.errors import LengthenError

__all__ = [
    "AdapterScale",
    "BaseContext",
    "BatchSize",
    "Depths",
    "Dtype",
    "EvalOptions",
    "GridOptions",
    "Haystack",
    "Host",
    "Lengths",
    "LoadOptions",
    "MaxNewTokens",
    "Model",
    "Output",
    "Overrides",
    "Quantize",
    "RecipeName",
    "Seed",
    "StreamingOptions",
    "Temperature",
    "Template",
    "Trials",
    "parse_depths",
    "parse_lengths",
    "with_flags",
    "with_options",
]

Model = Annotated[str, typer.Argument(help="Hub id, model folder, .gguf file, run folder or alias.")]
RecipeName = Annotated[str, typer.Argument(help="A shipped recipe's name, or a YAML file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Keys of the recipe to change, as section.key=value.", show_default=False)
]
BaseContext = Annotated[
    int | None, typer.Option(min=2, help="The base's context in tokens, where its files leave that open.")
]
Quantize = Annotated[str | None, typer.Option(help="How the base is quantized: nf4 or none; default as trained.")]
Dtype = Annotated[str, typer.Option(help="Dtype of the weights: auto, float32, bfloat16 or float16.")]
AdapterScale = Annotated[
    float, typer.Option(min=0, max=1, help="Share of the adapter that is applied: 1 all of it, 0 the base's weights.")
]
Template = Annotated[
    str | None, typer.Option(help="Chat template: llama2, vicuna, alpaca or chatml; default the tokenizer's own.")
]
_JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the results to this file.")]
Lengths = Annotated[str, typer.Option(help="Tokens of prompt and answer, such as 2048,4096.")]
Depths = Annotated[str, typer.Option(help="Shares of the text before what is hidden, 0 to 1.")]
Trials = Annotated[int, typer.Option(min=1, help="Prompts for each length (and task, where there are several).")]
Haystack = Annotated[
    Path | None, typer.Option(help="File or folder with prose; default the documentation of this Python.")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Prompts that are run together.")]
Seed = Annotated[int, typer.Option(help="Seed of all that is random.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Tokens to generate, at most.")]
Temperature = Annotated[float, typer.Option(min=0, help="0 takes the likeliest token; more than 0 samples.")]
Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets others reach it.")]


@dataclass(frozen=True)
class LoadOptions:
    """How a model is loaded."""

    adapter: Annotated[Path | None, typer.Option(help="PEFT adapter folder to put on the base.")] = None
    adapter_scale: AdapterScale = 1.0
    quantize: Quantize = None
    dtype: Dtype = "auto"
    base_context: BaseContext = None


@dataclass(frozen=True)
class EvalOptions(LoadOptions):
    """How a model is loaded that is to be measured."""

    method: Annotated[str | None, typer.Option(help="Scale positions, untrained, before measuring.")] = None
    target: Annotated[int | None, typer.Option(min=1, help="Context in tokens that --method scales to.")] = None
    beyond: Annotated[bool, typer.Option("--beyond", help="Allow lengths beyond the model's context.")] = False


@dataclass(frozen=True)
class GridOptions:
    """The prompts of a measurement by length and depth."""

    lengths: Lengths
    depths: Depths = "0,0.25,0.5,0.75,1"
    trials: Trials = 20
    generate: Annotated[
        bool, typer.Option(help="Also let the model answer, beside the likelihood of the right answers; slower.")
    ] = True
    batch_size: BatchSize = 1
    seed: Seed = 0

    def parsed(self) -> tuple[list[int], list[float]]:
        """Lengths in tokens, and depths."""
        return parse_lengths(self.lengths, "--lengths"), parse_depths(self.depths)

    def measuring(self) -> dict[str, Any]:
        """The arguments that measurements take by keyword."""
        return {name: getattr(self, name) for name in ("trials", "generate", "batch_size", "seed")}


@dataclass(frozen=True)
class StreamingOptions:
    """A cache of the first and the latest tokens."""

    streaming: Annotated[
        bool, typer.Option("--streaming", help="No limit on length: attend to the first and the latest tokens only.")
    ] = False
    sinks: Annotated[int | None, typer.Option(min=0, help="First tokens that streaming keeps; default 4.")] = None
    recent: Annotated[
        int | None, typer.Option(min=1, help="Latest tokens that streaming keeps; default 3/4 of the context.")
    ] = None


@dataclass(frozen=True)
class Output:
    """Where the results go beside the terminal, and how much is printed."""

    json_file: _JsonFile = None
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, and only the result.")] = False

    def write(self, content: Any) -> None:
        """Write the results as JSON, where a file is named for them."""
        from lengthen.files import write_json

        if self.json_file is not None:
            write_json(self.json_file, content)


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command as typer takes it.

    It has the options of its groups, shows what the library reports, and names flags in errors.

    Args:
        command: whose parameters are options or groups of them.
    """
    given = list(inspect.signature(command).parameters.values())
    groups: dict[str, Any] = {
        parameter.name: parameter.annotation for parameter in given if is_dataclass(parameter.annotation)
    }
    options = [option for parameter in given for option in _options_of(parameter)]

    @wraps(command)
    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        output = values.get("output")
        try:
            with reporting(quiet=output is not None and output.quiet):
                command(**values)
        except LengthenError as error:
            error.args = (with_flags(str(error), flags),)
            raise

    flags = {option.name: _flag(option) for option in options}
    del run.__wrapped__  # inspect would take the signature from there
    run.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    run.__annotations__ = {option.name: option.annotation for option in options}
    return run


def _options_of(parameter: Parameter) -> list[Parameter]:
    """The parameter, or those that its group stands for; all by keyword, so that their order is free."""
    if not is_dataclass(parameter.annotation):
        return [parameter.replace(kind=Parameter.KEYWORD_ONLY)]
    kinds = get_type_hints(parameter.annotation, include_extras=True)

    def option(field: Field[Any]) -> Parameter:
        default = Parameter.empty if field.default is MISSING else field.default
        return Parameter(field.name, Parameter.KEYWORD_ONLY, default=default, annotation=kinds[field.name])

    return [option(field) for field in fields(parameter.annotation)]


def _flag(option: Parameter) -> str:
    """A parameter's name on the command line: its flag, or an argument in capitals."""
    (info,) = option.annotation.__metadata__
    if isinstance(info, typer.models.ArgumentInfo):
        return option.name.upper()
    # In an annotation, typer keeps the first name where a default would be.
    declared = [name for name in (info.default, *(info.param_decls or ())) if str(name).startswith("--")]
    return str(declared[0]) if declared else f"--{option.name.replace('_', '-')}"


def with_flags(message: str, flags: dict[str, str]) -> str:
    """An error's message with flags in place of the parameters in it: `name`, or `name=value`.

    Args:
        message: of an error.
        flags: of a command, by its parameters.
    """

    def flag(match: re.Match[str]) -> str:
        name, value = match.groups()
        if name not in flags:
            return match.group()
        return flags[name] + (f" {value}" if value and value != "True" else "")

    return re.sub(r"`(\w+)(?:=([^`]*))?`", flag, message)


def parse_lengths(text: str, flag: str) -> list[int]:
    """Parse lengths such as "2048,4096", in their order and without repetitions.

    Args:
        text: as the user wrote it.
        flag: that it was written behind.

    Raises:
        typer.BadParameter: it is no such list.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) >= 2 for part in parts):
        raise typer.BadParameter(
            f"{text!r} is not a list of lengths of at least 2 tokens; write it as 2048,4096", param_hint=flag
        )
    return list(dict.fromkeys(int(part) for part in parts))


def parse_depths(text: str) -> list[float]:
    """Parse depths such as "0,0.5,1", in their order and without repetitions.

    Args:
        text: as the user wrote it.

    Raises:
        typer.BadParameter: it is no such list.
    """
    try:
        depths = [float(part) for part in text.split(",")]
    except ValueError:
        depths = [-1.0]
    if not all(0 <= depth <= 1 for depth in depths):
        raise typer.BadParameter(
            f"{text!r} is not a list of depths from 0 (the beginning) to 1 (the end); write it as 0,0.5,1",
            param_hint="--depths",
        )
    return list(dict.fromkeys(depths))
