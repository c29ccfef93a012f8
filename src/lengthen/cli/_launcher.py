"""Commands that a launcher such as torchrun starts in several processes at once."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from lengthen.errors import LengthenError
from lengthen.processes import has_launcher, is_first_process, process_count

if TYPE_CHECKING:
    from lengthen.attention.peers import Peers

__all__ = ["check_processes", "join_peers", "only_first_speaks"]

_IN_SEVERAL = (("train",), ("eval", "perplexity"), ("eval", "needle"), ("eval", "passkey"))
"""Commands that share their work out; any other would do it once in each process, and write over itself."""

_PATIENCE = 10.0
"""Seconds that the first process has to say what is wrong. A launcher ends the others as soon as one has failed."""


def check_processes(arguments: list[str]) -> None:
    """Refuse a command that runs in one process only.

    Args:
        arguments: of the command line.

    Raises:
        LengthenError: a launcher has started several processes.
    """
    if process_count() == 1 or not arguments or "--help" in arguments:
        return
    if not any(arguments[: len(command)] == list(command) for command in _IN_SEVERAL):
        several = ", ".join(" ".join(command) for command in _IN_SEVERAL)
        raise LengthenError(
            f"{' '.join(arguments[: 1 + (arguments[0] == 'eval')])} runs in one process, and WORLD_SIZE says that "
            f"there are {process_count()}; start it without a launcher (in several run: {several})"
        )


@contextmanager
def only_first_speaks() -> Iterator[None]:
    """Print nothing in this block but in the first process, which is given time to say what fails in all."""
    if is_first_process():
        yield
        return
    nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - what logs at exit still writes to it
    try:
        with redirect_stdout(nowhere), redirect_stderr(nowhere):
            yield
    except (Exception, SystemExit) as error:
        if not isinstance(error, SystemExit) or error.code in (1, 2):
            time.sleep(_PATIENCE)
        raise


def join_peers() -> "Peers | None":
    """The processes that measure together; None where this is the only one.

    Raises:
        LengthenError: there is no launcher that they could find each other by.
    """
    if process_count() == 1:
        return None
    from datetime import timedelta

    from accelerate import PartialState
    from torch import distributed

    from lengthen.attention.peers import Peers
    from lengthen.models.devices import default_device

    if not has_launcher():
        raise LengthenError(
            f"WORLD_SIZE says that there are {process_count()} processes, but they have no launcher; start them with "
            "torchrun --nproc-per-node N -m lengthen.cli eval ..."
        )
    # The last shard sees most, so that the first process may wait for long.
    PartialState(cpu=default_device().type == "cpu", timeout=timedelta(days=1))
    group = distributed.group.WORLD
    assert group is not None
    return Peers.of_group(group)
