"""Public docstrings describe arguments and errors."""

import ast
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "lengthen"
# The command line's docstrings are its help, and each option describes itself.
PATHS = [path for path in sorted(SOURCE.rglob("*.py")) if "cli" not in path.relative_to(SOURCE).parts]
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


def public(path):
    """(name, function, its parameters but for `self`, its docstring) of what a module offers, with methods."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    offered = [
        name
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
        for name in ast.literal_eval(node.value)
    ]
    for node in tree.body:
        if getattr(node, "name", "") not in offered:
            continue
        if isinstance(node, FUNCTION):
            yield node.name, node, parameters(node), ast.get_docstring(node)
            continue
        for method in filter(lambda each: isinstance(each, FUNCTION), node.body):
            if method.name == "__init__":  # described with the class
                yield node.name, method, parameters(method)[1:], ast.get_docstring(node)
            elif method.name[0] != "_":
                yield f"{node.name}.{method.name}", method, parameters(method)[1:], ast.get_docstring(method)


def parameters(function):
    """Those that it uses."""
    arguments = function.args
    every = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
    return [argument.arg for argument in every if argument.arg[0] != "_"]


def raises(function):
    return any(isinstance(node, ast.Raise) and node.exc is not None for node in ast.walk(function))


def steps(node):
    """The nodes that run when a function is called, but for those of which a `try` may catch the errors."""
    for field, value in ast.iter_fields(node):
        if field == "body" and isinstance(node, ast.Try) and node.handlers:
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(child, (*FUNCTION, ast.Lambda)):
                yield child
                yield from steps(child)


def called(function):
    """Names of the functions that a function calls, and of its own class's methods."""
    targets = [node.func for node in steps(function) if isinstance(node, ast.Call)]
    names = {target.id for target in targets if isinstance(target, ast.Name)}
    methods = [target for target in targets if isinstance(target, ast.Attribute)]
    return names | {method.attr for method in methods if getattr(method.value, "id", "") == "self"}


@cache
def helpers(path):
    """Names of a module's functions that raise an error, by themselves or by another of them."""
    functions = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, FUNCTION)]
    found = {each.name for each in functions if any(isinstance(step, ast.Raise) and step.exc for step in steps(each))}
    calls = {each.name: called(each) for each in functions}
    while more := {name for name, used in calls.items() if used & found} - found:
        found |= more
    return found


def is_task(function):
    """Whether it makes a retrieval episode; `lengthen.data.retrieval.tasks.Task` describes the arguments of all."""
    return function.returns is not None and ast.unparse(function.returns) == "Episode"


@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.relative_to(SOURCE)))
def test_docstrings_describe_arguments_and_errors(path):
    """The summary can say what a single argument is; several need a section."""
    for name, function, arguments, docstring in public(path):
        assert len(arguments) < 2 or "Args:" in docstring or is_task(function), f"{name}({', '.join(arguments)})"
        raising = raises(function) or called(function) & helpers(path)
        assert not raising or "Raises:" in docstring, f"{name} raises an error"
