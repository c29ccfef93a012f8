"""What every benchmark's JSON carries beside its results."""

import os
import platform
import shlex
import sys
from datetime import date
from typing import Any

from lengthen.provenance import versions


def record(device: Any = "cpu") -> dict[str, Any]:
    """Command, date, versions and hardware of this run."""
    return {
        "command": shlex.join(["python", *sys.argv]),
        "date": str(date.today()),
        "versions": versions(),
        "hardware": {"device": str(device), "cores": os.cpu_count(), "machine": platform.machine()},
    }
