"""`lengthen data qa`."""

from pathlib import Path
from typing import Annotated

import typer

from lengthen.cli._options import Output
from lengthen.cli._terminal import print_warnings
from lengthen.cli.data._documents import Inputs

__all__ = ["qa"]


def qa(
    inputs: Inputs,
    endpoint: Annotated[
        str, typer.Option(metavar="URL", help="An OpenAI-compatible server: http://localhost:8000/v1.")
    ],
    model: Annotated[str, typer.Option(help="The model's name at the endpoint.")],
    out: Annotated[Path, typer.Option(metavar="FILE.jsonl", help="The pairs; those in it already are not made again.")],
    kinds: Annotated[
        str, typer.Option(help="Kinds of questions that are asked for.")
    ] = "summary,detail,comparison,style,short",
    passage_chars: Annotated[int, typer.Option(min=200, help="Characters of a passage, at most.")] = 16_000,
    max_passages: Annotated[
        int | None, typer.Option(min=1, help="Passages of each document, at most, spread evenly over it.")
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, help="Passages that are asked about at a time.")] = 4,
    key_variable: Annotated[
        str | None, typer.Option(metavar="NAME", help="Environment variable that holds the endpoint's key.")
    ] = None,
    *,
    output: Output,
) -> None:
    """Have a model write questions with answers about documents, as data for instruction tuning.

    Stopped or failed, it goes on where it was when it is called again.
    """
    import os

    from lengthen.data.documents import read_documents
    from lengthen.data.endpoint import Endpoint
    from lengthen.data.qa import make_pairs
    from lengthen.errors import LengthenError

    if out.suffix.lower() != ".jsonl":
        raise typer.BadParameter(f"{out} must end in .jsonl, by which instruction data are known", param_hint="--out")
    key = os.environ.get(key_variable) if key_variable else None
    if key_variable and not key:
        raise LengthenError(f"the environment variable {key_variable} is not set; put the endpoint's key into it")
    server = Endpoint(endpoint, model, key)
    documents, warnings = read_documents(inputs)
    print_warnings(warnings)
    names = [name.strip() for name in kinds.split(",")]
    made = make_pairs(documents, server, out, names, passage_chars, max_passages, parallel)
    missing = [f"{count} pairs missing, as the reply {reason}" for reason, count in made["missing"].items()]
    print_warnings(missing)
    if not output.quiet:
        print(f"{out}: {made['pairs']:,} pairs about {made['passages']:,} passages, {made['before']:,} from before")
    output.write({"model": model, "endpoint": server.url, "out": str(out), **made, "warnings": warnings})
