"""The command line in the process of a test, with errors as they were raised (`lengthen_cli` has them as users see)."""

from typer.testing import CliRunner

from lengthen.cli import app


def invoke(*arguments, columns=120, **options):
    """The result of a command: output, exit code, exception.

    Args:
        arguments: of the command line; anything that has a text.
        columns: width of the terminal.
        options: of `CliRunner.invoke`.
    """
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": str(columns)}, **options)


def succeed(*arguments, **options):
    """The result of a command that ends well."""
    ran = invoke(*arguments, **options)
    assert ran.exit_code == 0, f"{ran.output}\n{ran.exception!r}"
    return ran
