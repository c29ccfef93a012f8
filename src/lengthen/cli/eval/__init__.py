"""``lengthen eval``: measure a model, one command a file."""

from importlib import import_module

import typer

from lengthen.cli._options import with_options

__all__ = ["app"]

app = typer.Typer(help="Measure a model, and what of its context is usable.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    # With a callback, typer keeps the command's name also while there is only one.
    pass


for _name in ("compare", "perplexity", "passkey", "needle", "ruler", "tasks"):
    app.command(_name)(with_options(getattr(import_module(f"lengthen.cli.eval.{_name}"), _name)))
