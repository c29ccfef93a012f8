"""Commands that write, and what they write when nothing happens to them."""

import shutil
import subprocess
import time
from pathlib import Path

from disk import differences, halves, leftovers, read_tree

COMMANDS = ("train", "extend", "export", "data tokenize", "data qa", "eval perplexity")


class Disturbed:
    """One command: what it comes to undisturbed, and what becomes of it when something befalls it.

    Attributes:
        seconds, moments, largest: of the undisturbed command: its time, its writes, bytes of its largest file.
    """

    def __init__(self, forks, arguments_of, name, folder):
        self.forks, self.name = forks, name
        self._make, self.place = arguments_of, folder / "work"
        self._arguments = arguments_of(name, self.place)
        began = time.monotonic()
        whole = self.start()
        assert whole.code == 0, whole.err
        self.seconds, self.moments = time.monotonic() - began, whole.moments
        self._expected = read_tree(self.place)
        self.largest = max(path.stat().st_size for path in self.place.rglob("*") if path.is_file())

    def start(self, fault=None, forks=None):
        cache = {"LENGTHEN_CACHE": str(self.place / "cache")}
        return (forks or self.forks).run(*self._arguments, fault=fault, watch=[self.place], **cache)

    def clear(self):
        """Back to before the first time."""
        shutil.rmtree(self.place, ignore_errors=True)
        self._make(self.name, self.place)

    def remake(self):
        """What the command needs is there again, where it was removed; what it wrote stays."""
        if not self.place.exists():
            self.clear()

    def checkpoint(self):
        """The last step of which there is a checkpoint, 0 for none."""
        found = (self.place / "out" / "checkpoints").glob("checkpoint-*")
        return max((int(path.name.split("-")[1]) for path in found), default=0)

    def halves(self):
        """What is wrong with what was left, one line each."""
        return [f"half a file: {name}" for name in halves(self.place, self._expected)]

    def again(self):
        """Undisturbed now: what is wrong with how it ends, and with what it leaves."""
        out = self.place / "out"
        checkpoint, made_before, was_there = self.checkpoint(), (out / "adapter").exists(), out.exists()
        ended = self.start()
        if self.name == "export" and was_there and ended.is_refusal and "has content already" in ended.err:
            # Killed after the folder and before the JSON: it is whole, and nothing is written over it.
            return differences(read_tree(out), _below("out", self._expected))
        if ended.code != 0:
            return [f"again: {ended.code} {ended.err}"]
        wrong = differences(read_tree(self.place), self._expected)
        if self.name == "train" and checkpoint and not made_before and f"/checkpoint-{checkpoint}\n" not in ended.err:
            wrong.append(f"not resumed from step {checkpoint}: {ended.err}")
        return wrong + [f"left over: {name}" for name in leftovers(self.place)]


def _below(folder, tree):
    return {name.removeprefix(f"{folder}/"): content for name, content in tree.items() if name.startswith(f"{folder}/")}


def mount(folder, size):
    """A file system of so many bytes; None where this may not be done."""
    Path(folder).mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False
