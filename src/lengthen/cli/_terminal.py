"""The library's log records and progress bars on the terminal, while a command runs."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import typer

from lengthen.progress import is_progress_shown, show_progress

__all__ = ["collected_warnings", "print_warnings", "reporting"]

_LOGGER = logging.getLogger("lengthen")


class _Terminal(logging.Handler):
    """Standard error, as it is when a record comes: notes as they are, warnings marked as such."""

    def emit(self, record: logging.LogRecord) -> None:
        mark = "warning: " if record.levelno >= logging.WARNING else ""
        typer.echo(mark + self.format(record), err=True)


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def reporting(quiet: bool) -> Iterator[None]:
    """Print log records in this block and show progress bars; with `quiet` print only warnings."""
    handler, level, shown = _Terminal(), _LOGGER.level, is_progress_shown()
    _LOGGER.addHandler(handler)
    _LOGGER.setLevel(logging.WARNING if quiet else logging.INFO)
    show_progress(not quiet)
    try:
        yield
    finally:
        _LOGGER.removeHandler(handler)
        _LOGGER.setLevel(level)
        show_progress(shown)


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """The warnings of this block, for a results file."""
    collector = _Collector()
    _LOGGER.addHandler(collector)
    try:
        yield collector.messages
    finally:
        _LOGGER.removeHandler(collector)


def print_warnings(warnings: Iterable[str]) -> None:
    """Print each warning as a line on standard error."""
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)
