"""A streaming cache as the options ask for it, and a bar while a long prompt is read."""

from typing import TYPE_CHECKING, Any

from lengthen.cli._options import StreamingOptions

if TYPE_CHECKING:
    from lengthen.decoding.streaming import Streaming

__all__ = ["ReadingBar", "pick_streaming"]

_LONG = 1024


def pick_streaming(options: StreamingOptions, context: int) -> "Streaming | None":
    """The sizes of a streaming cache, or None where none is wanted.

    Args:
        options: of the command.
        context: of the model, tokens.

    Raises:
        LengthenError: sizes without streaming, or that don't fit the context.
    """
    from lengthen.decoding.streaming import Streaming
    from lengthen.errors import LengthenError

    sinks, recent = options.sinks, options.recent
    if not options.streaming and (sinks is not None or recent is not None):
        raise LengthenError("--sinks and --recent are sizes of a streaming cache; add --streaming, or leave them out")
    return Streaming.within(context, 4 if sinks is None else sinks, recent) if options.streaming else None


class ReadingBar:
    """Shows a progress bar from the first tokens of a long prompt to the last; its calls are an `on_read`."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._done = 0

    def __call__(self, done: int, total: int) -> None:
        """Take the tokens read so far, and all of them."""
        from lengthen.progress import progress_bar

        if self._bar is None and total - done > _LONG:
            self._bar, self._done = progress_bar("reading", total, "tokens"), 0
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
