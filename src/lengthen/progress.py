"""One progress bar for everything that takes longer than a second, and the switch that shows them.

Bars are off at first, for a library shows nothing by itself; the command line turns them on, but for --quiet.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

__all__ = ["is_progress_shown", "progress_bar", "progress_columns", "show_progress"]

_is_shown = False


def show_progress(shown: bool = True) -> None:
    """Show progress bars from now on, or don't."""
    global _is_shown
    _is_shown = shown


def is_progress_shown() -> bool:
    """Whether progress bars are shown, also for those of other packages."""
    return _is_shown


def progress_columns(unit: str) -> "list[ProgressColumn]":
    """What a bar of rich shows: the description, how much is done, the time taken and the time left.

    Args:
        unit: what is counted, such as "tokens"; with fields of the task, as rich writes them.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    return [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    ]


@contextmanager
def progress_bar(description: str, total: int | None, unit: str = "") -> Iterator[Callable[[int], None]]:
    """Show a bar on standard error, where bars are shown, and yield the function that advances it.

    Args:
        description: what is being done, in a word or two.
        total: how much there is to do; None where that can't be known.
        unit: what is counted, such as "tokens".
    """
    from rich.console import Console
    from rich.progress import Progress

    with Progress(*progress_columns(unit), console=Console(stderr=True), disable=not _is_shown) as progress:
        task = progress.add_task(description, total=total)
        yield lambda amount: progress.advance(task, amount)
