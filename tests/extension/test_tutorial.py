"""The tutorial's cells run, one after another, as they stand in the notebook."""

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "tutorials" / "extend.ipynb"


def code_cells():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for number, source in enumerate(code_cells()):
        exec(compile(source, f"extend.ipynb, code cell {number}", "exec"), names)
    printed = capsys.readouterr().out
    assert printed.rstrip().endswith("2048")
    assert len(names["run"].verdict.lines) == 5
