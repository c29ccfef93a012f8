"""What the commands of ``lengthen eval`` share: options, the model that is measured, and the file that is written."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = [
    "Adapter",
    "AdapterScale",
    "BaseContext",
    "Beyond",
    "Dtype",
    "JsonFile",
    "Method",
    "Model",
    "Quantize",
    "Quiet",
    "Subject",
    "Target",
    "check_lengths",
    "check_scaling",
    "load_subject",
    "parse_lengths",
    "print_table",
    "write_result",
]

Model = Annotated[str, typer.Argument(help="Hub id, model folder, .gguf file, run folder or alias.")]
Adapter = Annotated[Path | None, typer.Option(help="PEFT adapter folder to put on the base.")]
Quantize = Annotated[str | None, typer.Option(help="nf4 or none; default as trained.")]
BaseContext = Annotated[
    int | None, typer.Option(min=2, help="The base's context in tokens, where its files leave that open.")
]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
AdapterScale = Annotated[
    float, typer.Option(min=0, max=1, help="Share of the adapter that is applied: 1 all of it, 0 the base's weights.")
]
Method = Annotated[str | None, typer.Option(help="Scale positions, untrained, before measuring.")]
Target = Annotated[int | None, typer.Option(min=1, help="Context in tokens that --method scales to.")]
Beyond = Annotated[bool, typer.Option("--beyond", help="Allow lengths beyond the model's context.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the results to this file.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar, and only the summary.")]


@dataclass
class Subject:
    """The model under measurement.

    Attributes:
        name: the MODEL argument.
        model: from `lengthen.load`.
        tokenizer: its tokenizer.
        context: what its config takes, tokens.
        header: what every results file says first: model, dtype, adapter, quantize, method, target.
    """

    name: str
    model: Any
    tokenizer: Any
    context: int
    header: dict[str, Any]

    def check_lengths(self, lengths: Sequence[int], beyond: bool) -> None:
        """`check_lengths` of this model."""
        check_lengths(self.name, self.context, lengths, beyond)


def check_lengths(name: str, context: int, lengths: Sequence[int], beyond: bool) -> None:
    """Refuse lengths beyond a model's context; with `beyond` only warn, once.

    Raises:
        ContextError: a length is beyond, and `beyond` is False.
    """
    from lengthen.errors import ContextError

    longest = max(lengths)
    if longest <= context:
        return
    said = f"{longest} tokens are beyond the {context} that {name} was made for"
    if not beyond:
        raise ContextError(f"{said}; measure at most {context}, or add --beyond to see how it fails there")
    typer.echo(f"warning: {said}", err=True)


def check_scaling(method: str | None, target: int | None) -> None:
    """Refuse one of the two options that scale positions without the other."""
    if (method is None) != (target is None):
        raise typer.BadParameter("--method and --target go together: how to scale positions, and to how many tokens")


def load_subject(
    name: str,
    adapter: Path | None,
    quantize: str | None,
    dtype: str,
    method: str | None,
    target: int | None,
    stated: int | None,
    adapter_scale: float = 1.0,
) -> Subject:
    """Load what an eval command's options name.

    Raises:
        LengthenError: the model can't be loaded so.
    """
    check_scaling(method, target)
    import lengthen
    from lengthen.context import base_context
    from lengthen.models import find
    from lengthen.quantization import is_quantized

    source = find(name)
    model, tokenizer = lengthen.load(
        name,
        dtype=dtype,
        adapter=adapter,
        quantize=quantize,
        method=method,
        target=target,
        base_context=stated,
        adapter_scale=adapter_scale,
    )
    header = {
        "model": source.id,  # which of an alias's origins it was, and no machine's path
        "dtype": str(model.dtype).removeprefix("torch."),
        "adapter": None if adapter is None else str(adapter),
        "quantize": "nf4" if is_quantized(model) else None,
        "method": method,
        "target": target,
        "adapter_scale": adapter_scale,
    }
    return Subject(name, model, tokenizer, base_context(model.config), header)


def parse_lengths(text: str, option: str, least: int = 2) -> list[int]:
    """Parse lengths such as "2048,4096", in their order and without repetitions."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) >= least for part in parts):
        raise typer.BadParameter(
            f"{text!r} is not a list of lengths of at least {least} tokens; write it as 2048,4096", param_hint=option
        )
    return list(dict.fromkeys(int(part) for part in parts))


def write_result(
    name: str, header: dict[str, Any], kind: str, content: dict[str, Any], json_file: Path | None
) -> Path | None:
    """Write header, content, command and versions to `json_file`, or else into the run folder's evals/, and say where.

    `name` is MODEL. A run folder's file is named by the kind and the time in UTC, so that no result is lost. Other
    models without `json_file` write nothing.
    """
    from lengthen.files import write_json
    from lengthen.provenance import command_line, versions
    from lengthen.run_folder import RunFolder

    if json_file is None:
        run = RunFolder(Path(name))
        if not run.is_run:
            return None
        json_file = run.results_file(kind)
    about = {"command": command_line(), "versions": versions()}
    write_json(json_file, {**header, "kind": kind, **content, **about})
    typer.echo(f"wrote {json_file}", err=True)
    return json_file


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a title and a table; floats with three decimals."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(title)  # rich would wrap a table's own title to the width of the table
    built = Table()
    for column in columns:
        built.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        built.add_row(*(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row))
    console.print(built)
