"""The names that other code builds on, and that what a module says it offers is there."""

import ast
import inspect
from importlib import import_module
from pathlib import Path
from typing import get_type_hints

import pytest
import typer.main

import lengthen
from lengthen.cli import app
from lengthen.extension.request import ExtendRequest
from lengthen.extension.state import State, write_state
from lengthen.extension.verdict import ExtensionVerdict

SOURCE = Path(__file__).parent.parent / "src" / "lengthen"
# Function, and the parameters that callers name or count on, in order.
FUNCTIONS = {
    "lengthen.extend": ["model", "to", "data"],
    "lengthen.load": ["model", "dtype", "adapter", "quantize"],
    "lengthen.train": ["recipe"],
    "lengthen.load_recipe": ["name", "overrides"],
    "lengthen.context.extend": ["config", "context", "method"],
    "lengthen.attention.set_group_size": ["model", "tokens"],
    "lengthen.attention.s2_first_shifted_head": ["num_heads", "num_kv_heads"],
    "lengthen.attention.s2_segments": ["length", "group_size", "shifted"],
    "lengthen.attention.s2_mask": ["segment_lengths", "group_size", "shifted"],
    "lengthen.evaluation.perplexity": ["model", "tokens", "context", "stride", "protocol"],
}
COMMANDS = {
    "quickstart", "extend", "doctor", "train", "eval", "plan", "export", "import", "generate", "chat", "ui", "serve",
    "data", "recipes", "report",
}  # fmt: skip
# Flags of each evaluation. All have those of EVERY_EVALUATION; how many prompts is --trials everywhere.
EVALUATIONS = {
    "compare": {"--data", "--stride", "--lengths", "--depths", "--trials", "--tasks"},
    "perplexity": {"--data", "--context", "--stride", "--protocol"},
    "passkey": {"--lengths", "--depths", "--trials"},
    "needle": {"--lengths", "--depths", "--trials"},
    "ruler": {"--lengths", "--trials", "--tasks"},
    "tasks": {"--data", "--context", "--trials", "--tasks"},
}
EVERY_EVALUATION = {"--beyond", "--adapter", "--quantize", "--dtype", "--json"}
# Keys of a recipe, by section.
RECIPE = {
    "": {
        "model", "out", "seed", "context", "attention", "adapter", "quantize", "data", "training", "memory", "parallel",
    },
    "context": {"target", "method", "factor"},
    "attention": {"kind", "pattern", "group_size", "backend"},
    "adapter": {"kind", "rank", "alpha", "dropout", "targets", "embeddings", "norms"},
    "data": {"kind", "train", "validation", "sequence_length", "min_tokens", "max_tokens", "packing"},
    "training": {
        "steps", "epochs", "batch_size", "accumulation", "learning_rate", "schedule", "warmup_steps", "max_grad_norm",
        "weight_decay", "dtype", "save_every", "log_every",
    },
    "memory": {"preset"},
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_the_contract_take_what_they_took(name):
    module, _, function = name.rpartition(".")
    parameters = list(inspect.signature(getattr(import_module(module), function)).parameters)
    wanted = FUNCTIONS[name]
    assert [parameter for parameter in parameters if parameter in wanted] == wanted
    assert parameters[0] == wanted[0]


def test_commands_of_the_contract_are_there():
    command = typer.main.get_command(app)
    assert set(command.commands) >= COMMANDS
    evaluations = command.commands["eval"].commands
    assert set(evaluations) >= set(EVALUATIONS)
    for name, flags in EVALUATIONS.items():
        offered = {flag for each in evaluations[name].params for flag in each.opts}
        assert flags | EVERY_EVALUATION <= offered, name


def test_recipes_have_the_keys_of_the_contract():
    recipe = lengthen.load_recipe("tiny-2k").model_dump()
    for section, keys in RECIPE.items():
        assert keys <= set(recipe[section] if section else recipe), section
    # An override is written as section.key=value, and sharding as a name too.
    changed = lengthen.load_recipe("tiny-2k", ["attention.kind=full", "parallel=fsdp2"])
    assert (changed.attention.kind, changed.parallel.data) == ("full", "fsdp2")


def test_an_extension_has_its_verdict_report_and_export(tmp_path):
    finished = ExtensionVerdict(1024, 512, 1024, True, ("usable up to 1,024 tokens",), (), ())
    write_state(tmp_path, State(ExtendRequest("tiny", 1024, ("books/",)), verdict=finished))
    run = get_type_hints(lengthen.extend)["return"](tmp_path)
    assert run.verdict == finished
    assert list(inspect.signature(run.report).parameters) == ["out"]
    assert next(iter(inspect.signature(run.export).parameters)) == "out"


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_module_defines_what_it_offers(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    offered, defined = [], set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            offered = ast.literal_eval(node.value)
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            defined |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            defined.add(node.id)
    # The package's own names are loaded when they are first used.
    if path != SOURCE / "__init__.py":
        assert set(offered) <= defined
    assert len(set(offered)) == len(offered)
    if offered or path.name in ("__init__.py", "__main__.py"):
        return
    public = [
        node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_"
    ]
    assert not public, f"no __all__, and {', '.join(public)} without an underscore"


def test_no_two_public_classes_have_one_name():
    homes = {}
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name[0] != "_":
                homes.setdefault(node.name, []).append(str(path.relative_to(SOURCE)))
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}
