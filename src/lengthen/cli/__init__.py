"""The command line: each command parses, calls and prints. Nothing heavy is imported before a command runs."""

import logging
import sys
import warnings
from importlib import import_module
from typing import Any

import typer

from lengthen.errors import LengthenError

__all__ = ["app", "main"]

app = typer.Typer(
    help="Extend the context window of a pretrained language model, and prove that it is usable.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_GROUPS = {
    "eval": "Measure a model, and what of its context is usable.",
    "data": "Look at documents, tokenize them, have questions made about them.",
}
for _name, _help in _GROUPS.items():
    app.add_typer(import_module(f"lengthen.cli.{_name}").app, name=_name, help=_help)
for _name in (
    "quickstart",
    "train",
    "plan",
    "export",
    "import_",
    "generate",
    "chat",
    "ui",
    "serve",
    "recipes",
    "report",
):
    app.command(_name.rstrip("_"))(getattr(import_module(f"lengthen.cli.{_name}"), _name))


def _show_warning(message: Warning | str, *_details: Any, **_more: Any) -> None:
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


def main() -> None:
    """Run the command line; input errors are one line on standard error and exit code 2."""
    warnings.showwarning = _show_warning
    # It says at import that it has no kernels for a path that lengthen turns off.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        app()
    except LengthenError as error:
        print(f"lengthen: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
