"""Everything that the README tells a reader to type runs, in the order in which it stands there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(sh|python|yaml)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_every_block_runs(tmp_path):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shutil.copy(ROOT / "README.md", tmp_path)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "LENGTHEN_CACHE": str(tmp_path / "cache"),
        "OMP_WAIT_POLICY": "passive",
    }
    kinds = []
    for kind, block in BLOCK.findall(text):
        if "make " in block:  # what installed this very environment
            continue
        kinds.append(kind)
        if kind == "yaml":
            name = re.search(r"`([\w-]+\.yaml)`:\n\n```yaml\n" + re.escape(block[:40]), text)
            (tmp_path / name.group(1)).write_text(block, encoding="utf-8")
            continue
        command = ["bash", "-euc", block] if kind == "sh" else [sys.executable, "-c", block]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
    assert {"sh", "python", "yaml"} <= set(kinds)
