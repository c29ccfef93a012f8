"""Run the command line hundreds of times, each in a process of its own, without seconds of imports each time."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, or minus the signal."""

    code: int
    out: str
    err: str
    seconds: float
    late: bool
    memory: int
    moments: int

    @property
    def is_refusal(self):
        """Whether it is what bad input gets: exit code 2, and last on standard error one line that says what."""
        *before, last = self.err.splitlines() or [""]
        is_said_once = not any(line.startswith(("lengthen: ", "Traceback")) for line in before)
        return self.code == 2 and last.startswith("lengthen: ") and is_said_once

    @property
    def is_one_line(self):
        """Whether it is a refusal and nothing else was said but warnings."""
        return self.is_refusal and all(line.startswith("warning: ") for line in self.err.splitlines()[:-1])


class Forks:
    """A process with everything imported, whose forks run commands.

    Args:
        folder: in which they run.

    Attributes:
        held: bytes of memory of a command that does nothing.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1",
                       "TOKENIZERS_PARALLELISM": "false"}  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("forked_cli.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        assert self.process.stdout.readline() == "ready\n"
        self.held = self.run("recipes", "--quiet").memory

    def run(self, *arguments, fault=None, watch=(), timeout=120, memory=None, folder=None, **environment):
        """Run a command to its end, see `forked_cli.py`; `memory` is in bytes beyond what the imports hold."""
        order = {
            "arguments": list(map(str, arguments)), "fault": fault, "watch": list(map(str, watch)), "timeout": timeout,
            "memory": memory, "folder": str(folder or self.folder), "environment": environment,
        }  # fmt: skip
        print(json.dumps(order), file=self.process.stdin, flush=True)
        return Ended(**json.loads(self.process.stdout.readline()))

    def close(self):
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
