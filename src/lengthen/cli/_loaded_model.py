"""The model that a command measures or talks to, and the file its results go to."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from lengthen.cli._options import EvalOptions, LoadOptions
from lengthen.errors import ContextError
from lengthen.processes import is_first_process

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["LoadedModel", "check_lengths", "check_scaling", "load_model", "write_result"]


@dataclass
class LoadedModel:
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
        """`check_lengths` of this model.

        Args:
            lengths: tokens, one at least.
            beyond: whether lengths beyond the context are wanted.
        """
        check_lengths(self.name, self.context, lengths, beyond)


def check_lengths(name: str, context: int, lengths: Sequence[int], beyond: bool) -> None:
    """Refuse lengths beyond a model's context; with `beyond` only warn, once.

    Args:
        name: of the model, for the message.
        context: of the model, tokens.
        lengths: tokens, one at least.
        beyond: whether lengths beyond the context are wanted.

    Raises:
        ContextError: a length is beyond, and `beyond` is False.
    """
    longest = max(lengths)
    if longest <= context:
        return
    problem = f"{longest} tokens are beyond the {context} that {name} was made for"
    if not beyond:
        raise ContextError(f"{problem}; measure at most {context}, or add --beyond to see how it fails there")
    typer.echo(f"warning: {problem}", err=True)


def check_scaling(options: EvalOptions) -> None:
    """Refuse one of the two options that scale positions without the other.

    Args:
        options: of the command.

    Raises:
        typer.BadParameter: one of them stands alone.
    """
    if (options.method is None) != (options.target is None):
        raise typer.BadParameter("--method and --target go together: how to scale positions, and to how many tokens")


def load_model(name: str, options: LoadOptions) -> LoadedModel:
    """Load what a command's options name.

    Args:
        name: MODEL.
        options: of the command.

    Returns:
        The model, its tokenizer, and what results say of both.

    Raises:
        LengthenError: the model can't be loaded so.
    """
    if isinstance(options, EvalOptions):
        check_scaling(options)
    import lengthen
    from lengthen.context import base_context
    from lengthen.models.resolve import resolve_model
    from lengthen.quantization import is_quantized

    given = asdict(options)
    given.pop("beyond", None)
    source = resolve_model(name)
    model, tokenizer = lengthen.load(name, **given)
    header = {
        "model": source.id,  # which of an alias's origins it was, and no machine's path
        "dtype": str(model.dtype).removeprefix("torch."),
        "adapter": None if options.adapter is None else str(options.adapter),
        "quantize": "nf4" if is_quantized(model) else None,
        "method": given.get("method"),
        "target": given.get("target"),
        "adapter_scale": options.adapter_scale,
    }
    return LoadedModel(name, model, tokenizer, base_context(model.config), header)


def write_result(
    name: str,
    header: dict[str, Any],
    kind: str,
    content: dict[str, Any],
    json_file: Path | None,
    draw: Callable[[], "Figure | None"] = lambda: None,
) -> None:
    """Write header, content, command and versions to `json_file`, or else into the run folder's evals/, and say where.

    A run folder's file is named by the kind and the time in UTC, so that no result is lost. Other models without
    `json_file` write nothing, and of several processes only the first one writes. A picture goes beside the file.

    Args:
        name: MODEL.
        header: what results say of the model.
        kind: of the measurement.
        content: the results.
        json_file: as the user named it.
        draw: gives the picture; None for none.
    """
    if not is_first_process():
        return
    from lengthen.files import write_json
    from lengthen.provenance import command_line, versions
    from lengthen.run_folder import RunFolder

    if json_file is None:
        run = RunFolder(Path(name))
        if not run.is_run:
            return
        json_file = run.results_file(kind)
    write_json(json_file, {**header, "kind": kind, **content, "command": command_line(), "versions": versions()})
    typer.echo(f"wrote {json_file}", err=True)
    figure = draw() if json_file.is_file() else None  # and not a pipe or /dev/stdout
    if figure is not None:
        from lengthen.evaluation.plot import save_figure

        picture = json_file.with_suffix(".png")
        save_figure(figure, picture)
        typer.echo(f"wrote {picture}", err=True)
