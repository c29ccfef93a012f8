"""Files appear whole or not at all, and nothing is left of what was stopped."""

import os
import shutil
import subprocess
import sys

import pytest

from lengthen.errors import OutputError
from lengthen.files import atomic_folder, kept, write_text
from lengthen.locks import locked


def _a_dead_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_dead_processes_left_goes_and_what_others_write_stays(tmp_path):
    dead, alive = _a_dead_process(), os.getppid()
    (tmp_path / f".a.json.{dead}.tmp").write_text("half")
    (tmp_path / f".a.json.{alive}.tmp").write_text("half")
    (tmp_path / f".b.json.{dead}.tmp").write_text("half")
    (tmp_path / f".out.{dead}.tmp").mkdir()
    (tmp_path / f".out.{dead}.tmp" / "model.safetensors").write_text("half")
    write_text(tmp_path / "a.json", "{}")
    with atomic_folder(tmp_path / "out"):
        pass
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"a.json", "out", f".a.json.{alive}.tmp", f".b.json.{dead}.tmp"}
    # A number of another machine's process may be free here, but its lock is held.
    held = tmp_path / f".a.json.{dead}.tmp"
    held.write_text("half")
    with locked(held, ""):
        write_text(tmp_path / "a.json", "{}")
        assert held.exists()
    write_text(tmp_path / "a.json", "{}")
    assert not held.exists()


def test_what_was_removed_is_not_made_anew(tmp_path):
    (tmp_path / "out" / "evals").mkdir(parents=True)
    with kept(tmp_path / "out"):
        write_text(tmp_path / "out" / "deep" / "er" / "a.json", "{}")
        shutil.rmtree(tmp_path / "out")
        for name in ("a.json", "evals/a.json"):
            with pytest.raises(OutputError, match="out was removed while it was written; start again"):
                write_text(tmp_path / "out" / name, "{}")
        with pytest.raises(OutputError, match="was removed"), atomic_folder(tmp_path / "out" / "adapter"):
            pass
        write_text(tmp_path / "elsewhere" / "a.json", "{}")
    assert not (tmp_path / "out").exists()
    write_text(tmp_path / "out" / "a.json", "{}")


def test_a_link_to_a_kept_folder_that_was_removed(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "data")
    with kept(tmp_path / "out"):
        write_text(tmp_path / "out" / "a.json", "{}")
        (tmp_path / "out").unlink()
        with pytest.raises(OutputError, match="was removed"):
            write_text(tmp_path / "out" / "a.json", "{}")
    write_text(tmp_path / "out" / "a.json", "{}")
    with atomic_folder(tmp_path / "new" / ".." / "whole"):
        pass
    assert (tmp_path / "whole").is_dir()
