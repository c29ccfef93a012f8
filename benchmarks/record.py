"""What every benchmark's JSON carries beside its results."""

import os
import platform
import shlex
import sys
from datetime import date
from importlib.metadata import version
from typing import Any


def record(device: Any = "cpu") -> dict[str, Any]:
    """Command, date, versions and hardware of this run."""
    return {
        "command": shlex.join(["python", *sys.argv]),
        "date": str(date.today()),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "peft", "lengthen")},
        },
        "hardware": {"device": str(device), "cores": os.cpu_count(), "machine": platform.machine()},
    }
