"""The command line: each command parses, calls and prints. Nothing heavy is imported before a command runs."""

import sys
from importlib import import_module

import typer

from lengthen.errors import LengthenError

__all__ = ["app", "main"]

app = typer.Typer(
    help="Extend the context window of a pretrained language model, and prove that it is usable.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_GROUPS = {"eval": "Measure perplexity at several contexts.", "data": "Look at documents, and tokenize them."}
for _name, _help in _GROUPS.items():
    app.add_typer(import_module(f"lengthen.cli.{_name}").app, name=_name, help=_help)
for _name in ("quickstart", "train", "export", "generate", "recipes"):
    app.command(_name)(getattr(import_module(f"lengthen.cli.{_name}"), _name))


def main() -> None:
    """Run the command line; input errors are one line on standard error and exit code 2."""
    try:
        app()
    except LengthenError as error:
        print(f"lengthen: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
