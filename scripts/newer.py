"""One line about an environment and a test run in it: what is newer than the lock, and what of it broke.

.venv-newest/bin/python scripts/newer.py constraints.txt build/newest.log
"""

import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement


def moved(lock: str) -> list[str]:
    """The pins of a lock for this Python that are not what is installed, as "name old -> new"."""
    pins = (Requirement(line) for line in lock.splitlines() if line and not line.startswith("#"))
    changes = []
    for pin in pins:
        if pin.marker is not None and not pin.marker.evaluate():
            continue
        try:
            installed = version(pin.name)
        except PackageNotFoundError:
            continue
        if installed.partition("+")[0] not in pin.specifier:
            changes.append(f"{pin.name} {str(pin.specifier).removeprefix('==')} -> {installed}")
    return changes


def main() -> None:
    """Print the line."""
    lock, log = (Path(argument).read_text(encoding="utf-8") for argument in sys.argv[1:])
    broken = re.findall(r"^(?:FAILED|ERROR) (\S+)", log, re.MULTILINE)
    passed = re.search(r"^\W*(\d+) passed.* in [\d.]+s", log, re.MULTILINE)
    if broken:
        verdict = f"these break: {', '.join(broken)}"
    elif passed:
        verdict = f"all {passed[1]} invariants hold"
    else:
        verdict = f"the tests did not get to their end: {(log.strip().splitlines() or ['nothing was said'])[-1]}"
    print(f"newest releases ({', '.join(moved(lock)) or 'the same as the lock'}): {verdict}")


if __name__ == "__main__":
    main()
