"""A thousand wrong inputs: each ends with exit code 2 and one line, in bounded time and memory, and changes nothing."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from disk import differences, read_tree
from families import FAMILIES, Material, write_epub
from mutations import generator_of

from gguf_files import write_gguf

SEED = 22
INPUTS = int(os.environ.get("LENGTHEN_INPUTS", 60))  # of each family
SHORT = 2
SECONDS = 30
MEMORY = 2**30  # bytes beyond what the imports hold
_SPACE = 16 * 2**30  # of addresses: what a fault could take from the machine


@pytest.fixture(scope="module")
def material(base, run, documents, tmp_path_factory):
    import docx
    from reportlab.pdfgen.canvas import Canvas

    from report_files import write_all

    folder = tmp_path_factory.mktemp("right")
    right = shutil.copytree(run, folder / "run")
    write_all(right, "base", folder / "elsewhere")
    write_gguf(folder / "base.gguf", base)
    canvas = Canvas(str(folder / "book.pdf"))
    canvas.drawString(72, 720, "A page of text.")
    canvas.save()
    write_epub(folder / "book.epub")
    document = docx.Document()
    document.add_heading("One", 1)
    document.add_paragraph("A paragraph.")
    document.add_table(2, 2).cell(0, 0).text = "a cell"
    document.save(folder / "book.docx")
    return Material(base, right, folder / "base.gguf", documents, folder / "book.pdf", folder / "book.epub",
                    folder / "book.docx")  # fmt: skip


def _safe(folder):
    """Of what is in a folder, what a command that was refused must not change."""
    return {name: content for name, content in read_tree(folder).items() if not name.startswith("cache")}


def _try(forks, material, tmp_path, name, number, seed):
    """One input; returns how it ended, and what is wrong with that."""
    folder = tmp_path / f"{number}"
    folder.mkdir()
    arguments = FAMILIES[name](generator_of(name, seed, number), folder, material)
    before = _safe(folder)
    ended = forks.run(
        *arguments,
        folder=folder,
        timeout=SECONDS,
        memory=_SPACE,
        LENGTHEN_CACHE=str(folder / "cache"),
        HOME=str(folder),
    )
    wrong = []
    if ended.late:
        wrong.append(f"longer than {SECONDS} s")
    elif ended.code not in (0, 2) or "Traceback" in ended.err:
        wrong.append(f"code {ended.code}")
    elif ended.code == 2 and not ended.is_one_line:
        wrong.append("not one line")
    if ended.code == 2 and "the run has diverged" not in ended.err:  # a run that began has its folder
        wrong += [f"changed: {each}" for each in differences(_safe(folder), before)]
    if ended.memory - forks.held > MEMORY:
        wrong.append(f"{(ended.memory - forks.held) / 2**20:.0f} MiB")
    report = {
        "input": f"{name} {seed} {number}",
        "arguments": list(map(str, arguments)),
        "wrong": wrong,
        "err": ended.err[-1500:],
    }
    if not wrong:
        shutil.rmtree(folder)
    return ended, report


def run_family(forks, material, tmp_path, name, count, seed):
    ended, bad = Counter(), []
    slowest = most = 0
    for number in range(count):
        end, report = _try(forks, material, tmp_path, name, number, seed)
        ended["refused" if end.code == 2 else "taken" if end.code == 0 else "wrong"] += 1
        slowest, most = max(slowest, end.seconds), max(most, end.memory - forks.held)
        if report["wrong"]:
            bad.append(report)
    figures = {"family": name, "seed": seed, "inputs": count, **ended, "slowest_s": round(slowest, 1),
               "most_mib": round(most / 2**20), "faults": len(bad)}  # fmt: skip
    print(json.dumps(figures))
    if report_to := os.environ.get("LENGTHEN_FAULTS"):
        with Path(report_to).open("a") as file:
            file.writelines(json.dumps(each) + "\n" for each in bad)
    assert not bad, json.dumps(bad[:5], indent=1)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_some_wrong_inputs(forks, material, tmp_path, name):
    run_family(forks, material, tmp_path, name, SHORT, SEED)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_thousand_wrong_inputs(forks, material, tmp_path, name):
    run_family(forks, material, tmp_path, name, INPUTS, SEED + 1)
