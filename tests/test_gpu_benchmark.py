"""The GPU benchmark runs through in miniature, and what it checks is right."""

import json
import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_all_parts_in_miniature(device, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("LENGTHEN_CACHE", "CUDA_VISIBLE_DEVICES"):  # restored after what the benchmark sets
        monkeypatch.setenv(name, "")
        if device == "cuda":
            monkeypatch.delenv(name)
    results = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--tiny", "--device", device, "--json", str(results)])
    benchmark = runpy.run_path(str(BENCHMARKS / "gpu.py"))
    assert benchmark["main"]() == 0, capsys.readouterr().out
    rows = json.loads(results.read_text(encoding="utf-8"))["results"]
    assert {row["part"] for row in rows} == benchmark["PARTS"].keys()
    checks = [row for row in rows if "right" in row]
    assert len(checks) >= 14
    assert all(row["right"] for row in checks)
    assert not [row["name"] for row in rows if row.get("failed") or row.get("skipped")]
    losses = {row["name"]: row["loss"] for row in rows if row["part"] == "perplexity"}
    assert len(losses) == 3
    assert max(losses.values()) - min(losses.values()) < 0.01
