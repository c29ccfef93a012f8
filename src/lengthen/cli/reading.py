"""What the commands that generate share: the options of a streaming cache, and a bar while a long prompt is read."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from lengthen.decoding.streaming import Streaming

__all__ = ["ReadingBar", "Recent", "Sinks", "StreamingFlag", "pick_streaming"]

StreamingFlag = Annotated[
    bool, typer.Option("--streaming", help="No limit on length: attend to the first and the latest tokens only.")
]
Sinks = Annotated[int | None, typer.Option(min=0, help="First tokens that streaming keeps; default 4.")]
Recent = Annotated[int | None, typer.Option(min=1, help="Latest tokens that it keeps; default 3/4 of the context.")]

_LONG = 1024


def pick_streaming(wanted: bool, sinks: int | None, recent: int | None, context: int) -> "Streaming | None":
    """The sizes of a streaming cache, or None where none is wanted.

    Raises:
        LengthenError: sizes without streaming, or that don't fit the context.
    """
    from lengthen.decoding.streaming import Streaming
    from lengthen.errors import LengthenError

    if not wanted and (sinks is not None or recent is not None):
        raise LengthenError("--sinks and --recent are sizes of a streaming cache; add --streaming, or leave them out")
    return Streaming.within(context, 4 if sinks is None else sinks, recent) if wanted else None


class ReadingBar:
    """Shows a progress bar from the first tokens of a long prompt to the last; its calls are an `on_read`."""

    def __init__(self, quiet: bool):
        self._quiet = quiet
        self._bar: Any = None
        self._done = 0

    def __call__(self, done: int, total: int) -> None:
        """Take the tokens read so far, and all of them."""
        from lengthen.progress import progress_bar

        if self._bar is None and total - done > _LONG:
            self._bar, self._done = progress_bar("reading", total, "tokens", self._quiet), 0
            self._advance = self._bar.__enter__()
        if self._bar is not None:
            self._advance(done - self._done)
            self._done = done
            if done == total:
                self.close()

    def close(self) -> None:
        """End the bar, also where reading was stopped."""
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None
