"""One progress bar for everything that takes longer than a second."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(
    description: str, total: int | None, unit: str = "", quiet: bool = False
) -> Iterator[Callable[[int], None]]:
    """Show a bar on standard error and yield the function that advances it.

    Args:
        description: what is being done, in a word or two.
        total: how much there is to do; None where that can't be known.
        unit: what is counted, such as "tokens".
        quiet: show nothing.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:
        task = progress.add_task(description, total=total)
        yield lambda amount: progress.advance(task, amount)
