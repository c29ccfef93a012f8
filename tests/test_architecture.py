"""The house as its page draws it: which rooms there are, and that imports point downwards."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "lengthen"
PAGE = ROOT / "docs" / "architecture.md"
# Everything may use these, so no arrow is drawn to them.
GROUND = {"errors", "_compat", "_lazy", "files", "locks", "progress", "provenance"}
# What starts without torch where it can: a plan from the cache, a report of a run that has no adapter yet.
LATE = {"lengthen.planning.base", "lengthen.report.page"}
# They use the package as its users do.
USERS = {"cli"}


def module_of(path):
    return ".".join(("lengthen", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")


MODULES = {module_of(path): path for path in sorted(SOURCE.rglob("*.py"))}


def room_of(module):
    """The package or module below `lengthen` that a module is in."""
    return [*module.split("."), ""][1]


@cache
def imports_of(module):
    """(imported module of ours, line, whether at the top) of each import but those for type checkers."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    for_types = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and getattr(branch.test, "id", "") == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            targets = [name if name in MODULES else node.module for name in names]
        elif isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        else:
            continue
        found += [(target, node.lineno, not node.col_offset) for target in targets if target in MODULES]
    return found


@cache
def arrows():
    """The rooms that each room imports."""
    rooms = {}
    for module in MODULES:
        room = room_of(module)
        if room not in GROUND | {""}:
            targets = {room_of(target) for target, *_ in imports_of(module)} - GROUND - {room}
            rooms.setdefault(room, set()).update(targets)
    return rooms


def below(room, seen=()):
    """All rooms that imports lead to from a room."""
    assert room not in seen, f"imports go round: {' -> '.join([*seen, room])}"
    return set().union(*({target} | below(target, (*seen, room)) for target in arrows()[room] - {""}))


def drawn():
    """The arrows of the page's drawing."""
    drawing = re.search(r"```mermaid\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]
    return {
        (room, target.strip())
        for room, targets in re.findall(r"^\s*(\w+) --> (.+)$", drawing, re.MULTILINE)
        for target in targets.split("&")
    }


def test_no_import_points_upwards():
    for room in arrows():
        below(room)
        assert "" not in arrows()[room] or room in USERS, f"{room} imports the package's facade"


def test_the_drawing_has_the_arrows_that_there_are():
    """One arrow for each import that no other path of arrows implies."""
    needed = {
        (room, target)
        for room, targets in arrows().items()
        for target in targets - {""}
        if not any(target in below(other) for other in targets - {"", target})
    }
    assert sorted(drawn() - needed) == []
    assert sorted(needed - drawn()) == []


def test_the_lowest_rooms_import_no_other():
    for module in MODULES:
        if room_of(module) in GROUND:
            assert {room_of(target) for target, *_ in imports_of(module)} <= GROUND, module


@pytest.mark.parametrize("module", sorted(set(MODULES) - LATE))
def test_our_modules_are_imported_at_the_top(module):
    """But for the command line, which starts without torch, and the parts of an extra that may not be there."""
    text = MODULES[module].read_text(encoding="utf-8")
    inside = [(target, line) for target, line, is_top in imports_of(module) if not is_top]
    assert room_of(module) == "cli" or not inside or re.search(r"^    require\(", text, re.MULTILINE), inside
