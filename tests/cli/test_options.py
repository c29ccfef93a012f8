import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import typer
import typer.main
from typer.testing import CliRunner

from lengthen.cli import app as lengthen_app
from lengthen.cli._options import with_options
from lengthen.errors import DataError

SOURCE = Path(__file__).parents[2] / "src" / "lengthen"
# What they write are whole commands: what comes next, what to measure, how an adapter was made.
WRITES_COMMANDS = {"adapters/save.py", "extension/verdict.py", "report/evaluations.py"}
LIBRARY = sorted({str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*.py")} - WRITES_COMMANDS)


@dataclass(frozen=True)
class Group:
    long_name: Annotated[int, typer.Option(help="A number.")] = 3
    flag: Annotated[bool, typer.Option("--flag", help="A flag.")] = False
    file: Annotated[str | None, typer.Option("--json", help="A file.")] = None


@pytest.fixture
def call():
    """A function that calls a command with a group, and gives back what it got, or raises what it raised."""

    def command(model: Annotated[str, typer.Argument()], *, group: Group) -> None:
        """Take a group."""
        if group.long_name < 0:
            raise DataError("`long_name=-1` and `flag=True` of `model`; not `other`, give `file`")
        got.append((model, group))

    def invoke(*arguments):
        got.clear()
        app = typer.Typer()
        app.command()(with_options(command))
        ran = CliRunner().invoke(app, arguments, catch_exceptions=True)
        if isinstance(ran.exception, DataError):
            raise ran.exception
        return got[0] if got else ran

    got: list[tuple[str, Group]] = []
    return invoke


def test_a_group_is_its_options(call):
    assert call("m") == ("m", Group())
    assert call("m", "--long-name", "5", "--flag", "--json", "x") == ("m", Group(5, True, "x"))


def test_the_help_has_the_group_s_options_and_the_command_s_text(call):
    shown = call("--help").output
    assert all(part in shown for part in ("--long-name", "--flag", "--json", "A number.", "Take a group."))
    assert "group" not in shown.replace("Take a group.", "")


def test_errors_name_flags_in_place_of_parameters(call):
    with pytest.raises(DataError, match=r"^--long-name -1 and --flag of MODEL; not `other`, give --json$"):
        call("m", "--long-name", "-1")


def parameters_of(command):
    """The arguments and options of a command and of those below it."""
    return [
        *command.params,
        *(each for below in getattr(command, "commands", {}).values() for each in parameters_of(below)),
    ]


PARAMETERS = parameters_of(typer.main.get_command(lengthen_app))


def test_help_is_in_one_voice():
    texts = {}
    for parameter in PARAMETERS:
        text = getattr(parameter, "help", None)
        if parameter.name != "help" and not getattr(parameter, "hidden", False):
            assert text, parameter.opts
            texts.setdefault(parameter.opts[0], set()).add(text)
    for text in set().union(*texts.values()):
        assert text.endswith("."), text
        assert not re.search(r"default:|be repeated|several times", text, re.IGNORECASE), text
    for flag in ("--host", "--seed", "--temperature", "--quantize", "--base-context", "--json", "--quiet"):
        assert len(texts[flag]) == 1, texts[flag]


@pytest.mark.parametrize("module", [name for name in LIBRARY if not name.startswith("cli/")])
def test_the_library_s_messages_name_parameters(module):
    """The command line names its flags in place of them; other programs' flags are what they are."""
    tree = ast.parse((SOURCE / module).read_text(encoding="utf-8"))
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    ours = {flag for each in PARAMETERS for flag in (*each.opts, *each.secondary_opts) if flag.startswith("--")}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", node.value))
            assert not named & ours or " " not in node.value, f"line {node.lineno}: {node.value!r}"
