"""What every benchmark's JSON carries beside its results."""

import os
import platform
import shlex
import sys
from datetime import date
from pathlib import Path
from typing import Any

import psutil

from lengthen.provenance import versions


def record(device: Any = "cpu") -> dict[str, Any]:
    """Command, date, versions and hardware of this run."""
    return {
        "command": shlex.join(["python", *sys.argv]),
        "date": str(date.today()),
        "versions": versions(),
        "hardware": {"device": str(device), "cores": os.cpu_count(), "machine": platform.machine()},
    }


class PeakMemory:
    """Bytes of this process in memory at most since this was made, above what it held then. Linux only.

    The process's own record is reset first: imports and what was measured before may have held more for a moment.
    """

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        self.before = psutil.Process().memory_info().rss

    @property
    def bytes(self) -> int:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        high = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(high.split()[1]) * 1024 - self.before
