"""Everything that README and documentation tell a reader to type runs, in the order in which it stands there."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import typer.main
from pydantic import BaseModel

from lengthen._compat import silence_upstream
from lengthen.cli import app, main
from lengthen.planning import plan
from lengthen.recipe import check_documents, load_recipe
from lengthen.recipe.data import SourceRecipe
from lengthen.training.parallel import check_parallel
from server_process import serving

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
from docs_pages import PAGES, commands  # noqa: E402

PROSE = [ROOT / "README.md", *sorted((ROOT / "docs").glob("[!ra]*/*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Options in the text that are other programs'.
OTHERS = {"--no-deps", "--multi_gpu", "--nproc-per-node", "--node-rank"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Of tokens, for all pages, as a reader has one for all commands."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run_shell(capfd, monkeypatch, tmp_path, cache):
    """Type a line; `lengthen` itself is called in this process, which has imported it already."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    monkeypatch.setenv("LENGTHEN_CACHE", str(cache))

    def run(line):
        words = shlex.split(line, comments=True)
        if words[0] == "lengthen":
            monkeypatch.setattr(sys, "argv", words)
            with warnings.catch_warnings():
                warnings.simplefilter("default")
                warnings.simplefilter("ignore", DeprecationWarning)  # as Python does outside of pytest
                silence_upstream()  # which `import lengthen` did before the filters above
                try:
                    main()
                    code = 0
                except SystemExit as ended:
                    code = ended.code or 0
            printed, said = capfd.readouterr()
        else:
            done = subprocess.run(words, capture_output=True, text=True, timeout=600)
            code, printed, said = done.returncode, done.stdout, done.stderr
        assert code == 0, f"{line}\n{said}"
        # Of another package, about what nobody who types this can change.
        assert not re.search(r"Warning|\[transformers\]|deprecated|Failed to load|Traceback", said), f"{line}\n{said}"
        return printed

    return run


def title(path):
    return str(path.relative_to(ROOT))


def test_the_readme_is_one_screen_with_one_picture():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 1200  # as `wc -w` counts
    (picture,) = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert (ROOT / picture).is_file()


@pytest.mark.parametrize("page", [path for path in PROSE if BLOCK.search(path.read_text(encoding="utf-8"))], ids=title)
def test_every_block_runs(page, run_shell, tmp_path):
    """Blocks marked `console` need a GPU, a download or another machine; only their options are checked, below."""
    shutil.copy(ROOT / "README.md", tmp_path)
    text, printed = page.read_text(encoding="utf-8"), ""
    for kind, block in BLOCK.findall(text):
        assert kind in ("sh", "python", "text", "yaml", "console", "mermaid")
        if kind == "text":
            assert printed.strip() == block.strip()
        elif kind == "yaml":
            name = re.search(r"`([\w-]+\.yaml)`:\n\n```yaml\n" + re.escape(block[:40]), text)
            (tmp_path / name.group(1)).write_text(block, encoding="utf-8")
        elif kind == "sh":
            for line in filter(None, block.splitlines()):
                printed = run_shell(line)
        elif kind == "python" and "client." in block:
            (tmp_path / "served").mkdir()
            with serving("--allow-training", tmp_path / "served") as server:
                names = {"client": server.client}
                exec(compile(block, page.name, "exec"), names)
                assert server.client.fine_tuning.jobs.cancel(names["job"].id)
        elif kind == "python":  # as a program, for pytest's own filters would hide what others warn of
            (tmp_path / "snippet.py").write_text(block, encoding="utf-8")
            run_shell("python snippet.py")


def launched(text):
    """What the launchers of a page start: the processes in all, and the arguments of `lengthen`."""
    numbers = dict(re.findall(r"#SBATCH --(nodes|gpus-per-node)=(\d+)", text))
    for variable, option in (("$SLURM_NNODES", "nodes"), ("$SLURM_GPUS_ON_NODE", "gpus-per-node")):
        text = text.replace(variable, numbers.get(option, variable))
    for options, arguments in re.findall(r"torchrun (--[^`]*?)\s+-m lengthen\.cli (.+)", text.replace("\\\n", "")):
        words = shlex.split(options)
        given = dict(zip(words[::2], words[1::2], strict=True))
        yield int(given.get("--nnodes", 1)) * int(given["--nproc-per-node"]), shlex.split(arguments)


LAUNCHED = [(page, *each) for page in PROSE for each in launched(page.read_text(encoding="utf-8"))]


def test_launchers_are_found_in_the_text():
    assert [processes for page, processes, words in LAUNCHED if page.name == "cluster.md"] == [16] * 3
    assert {words[0] for _, _, words in LAUNCHED} == {"train", "eval"}


@pytest.mark.parametrize(
    ("processes", "words"),
    [pytest.param(*each, id=title(page)) for page, *each in LAUNCHED if each[1][0] == "train"],
)
def test_every_launched_run_is_one_that_starts(processes, words, monkeypatch):
    """As a run of so many processes is checked before it loads anything; and it fits the GPUs that are meant."""
    recipe = load_recipe(words[1], [word for word in words[2:] if not word.startswith("--")])
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    monkeypatch.setenv("LOCAL_RANK", "0")
    check_parallel(recipe, torch.device("cuda"))
    check_documents(recipe)
    assert plan(recipe, "h100-80gb", processes).fits


def test_every_command_and_option_in_the_text_is_there():
    known = dict(commands(typer.main.get_command(app), "lengthen"))
    options = {
        name: {
            option
            for each in command.params
            if each.param_type_name == "option"
            for option in each.opts + each.secondary_opts
        }
        for name, command in known.items()
    }
    calls, mentioned = [], set()
    for page in PROSE:
        text = page.read_text(encoding="utf-8")
        spans = [span.split() for span in re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", BLOCK.sub("", text))]
        shown = [line for kind, block in BLOCK.findall(text) if kind == "console" for line in block.splitlines()]
        spans += [shlex.split(line, comments=True) for line in shown if line.startswith("lengthen ")]
        calls += [span for span in spans if span[0] == "lengthen" and len(span) > 1]
        calls += [["lengthen", *words] for _, words in launched(text)]
        mentioned |= {span[0] for span in spans if span[0].startswith("--")}
    assert len(calls) >= 8
    for call in calls:
        names = [" ".join(call[:depth]) for depth in (2, 3) if " ".join(call[:depth]) in known]
        assert names, f"`{' '.join(call)}` is no command"
        name = names[-1]
        used = {word.lstrip("[").partition("=")[0] for word in call if word.lstrip("[").startswith("--")}
        assert used <= options[name], f"`{' '.join(call)}` has options that {name} has not: {used - options[name]}"
    assert mentioned - OTHERS <= set().union(*options.values())


def test_the_reference_has_every_command_option_and_key():
    cli = PAGES["reference/cli.md"]()
    for name, command in commands(typer.main.get_command(app), "lengthen"):
        assert f"# `{name}`" in cli
        for each in command.params:
            assert all(f"`{option}`" in cli for option in each.opts if option.startswith("--") and option != "--help")
    page = PAGES["reference/recipe.md"]()
    # A key's row ends in what it means, but for a section's, which may have a table of its own alone.
    tables = {
        title.strip("`"): set(re.findall(r"^\| `(\w+)` \|.*\| \S.* \|$", table, re.MULTILINE))
        for title, _, table in (part.partition("\n") for part in page.split("\n## ")[1:])
    }
    recipe = load_recipe("tiny-2k")
    wanted = {
        "The recipe": recipe,
        "data.train": SourceRecipe(path=["books"]),
        "training.restoration": recipe.training.restoration,
    }
    wanted |= {name: section for name, section in recipe if isinstance(section, BaseModel)}
    assert set(tables) == set(wanted)
    for title, section in wanted.items():
        keys = {key for key, value in section if not isinstance(value, BaseModel)}
        assert keys <= tables[title] <= set(type(section).model_fields), title


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in {*(ROOT / "docs").rglob("*.md")} - {*(ROOT / "docs").glob("results/*/adapter/README.md")}:
        assert f" {page.relative_to(ROOT / 'docs').as_posix()}\n" in navigation, page
