"""`lengthen data`: documents into token files, and what is in documents and token files; one command a file."""

from importlib import import_module

import typer

from lengthen.cli._options import with_options

__all__ = ["app"]

app = typer.Typer(help="Turn documents into token files, and look at what is in them.", no_args_is_help=True)

for _name in ("tokenize", "inspect", "qa"):
    app.command(_name)(with_options(getattr(import_module(f"lengthen.cli.data.{_name}"), _name)))
