"""`lengthen chat`."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lengthen.cli._loaded_model import load_model, write_result
from lengthen.cli._options import (
    LoadOptions,
    MaxNewTokens,
    Model,
    Output,
    Seed,
    StreamingOptions,
    Temperature,
    Template,
)
from lengthen.cli._reading_bar import ReadingBar, pick_streaming

if TYPE_CHECKING:
    from lengthen.chat.session import ChatSession
    from lengthen.chat.turns import Reply
    from lengthen.cli._loaded_model import LoadedModel

__all__ = ["chat"]

_HELP = """\
/load FILE   put a document before the next question
/context     tokens of the conversation, and the limit
/reset       begin anew with the same documents; /reset all drops them too
/save FILE   write the conversation as JSON
/exit        leave, as Ctrl-D does; Ctrl-C stops an answer"""


class Fit(str, Enum):
    """Ways to treat documents that are longer than the context."""

    refuse = "refuse"
    middle_cut = "middle-cut"
    streaming = "streaming"


def chat(
    model: Model,
    document: Annotated[
        list[Path] | None, typer.Option(help="Text, PDF, EPUB, HTML, DOCX, ... to talk about; repeatable.")
    ] = None,
    question: Annotated[str | None, typer.Option(help="Ask this, print the answer and leave.")] = None,
    template: Template = None,
    fit: Annotated[Fit, typer.Option(help="What to do with documents longer than the context.")] = Fit.refuse,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
    *,
    streaming: StreamingOptions,
    options: LoadOptions,
    output: Output,
) -> None:
    """Talk to a model about documents, streamed; /help lists the commands."""
    from lengthen.chat.session import ChatSession
    from lengthen.errors import LengthenError

    if streaming.streaming and fit is Fit.middle_cut:
        raise LengthenError("--streaming takes documents of any length, so --fit middle-cut has nothing to cut")
    loaded = load_model(model, options)
    if fit is Fit.streaming:
        streaming = replace(streaming, streaming=True)
    kept = pick_streaming(streaming, loaded.context)
    session = ChatSession(loaded.model, loaded.tokenizer, loaded.context, template, kept)
    terminal = _Terminal(loaded, session, fit, (max_new_tokens, temperature, seed), output.quiet)
    for path in document or []:
        terminal.load(path, question)
    if question is not None:
        terminal.ask(question)
    else:
        terminal.talk()
    if output.json_file is not None:
        write_result(loaded.name, loaded.header, "chat", session.to_json(), output.json_file)


class _Terminal:
    def __init__(
        self, loaded: "LoadedModel", session: "ChatSession", fit: Fit, answers: tuple[int, float, int], quiet: bool
    ):
        self._loaded, self._session, self._fit, self._quiet = loaded, session, fit, quiet
        self._answers = answers

    def talk(self) -> None:
        """Take questions and commands until the input ends."""
        from lengthen.errors import LengthenError

        self._note(f"{self._context()}; /help lists the commands")
        for line in _lines("> " if sys.stdin.isatty() and not self._quiet else ""):
            if line == "/exit":
                return
            try:
                if line.startswith("/"):
                    self._command(*line.partition(" ")[::2])
                elif line:
                    self.ask(line)
            except LengthenError as error:
                self._note(" ".join(str(error).split()), always=True)

    def load(self, path: Path, question: str | None = None) -> None:
        """Load a file; with --fit middle-cut, room stays for the question, or else for a few of them."""
        from lengthen.chat.session import DoesNotFitError
        from lengthen.data.documents import read_documents
        from lengthen.errors import DataError

        documents, warnings = read_documents([path])
        for warning in warnings:
            self._note(f"warning: {warning}", always=True)
        room = None
        if self._fit is Fit.middle_cut:
            longest = self._answers[0]
            asked = len(self._loaded.tokenizer(question)["input_ids"]) if question is not None else None
            room = min(longest, self._loaded.context // 4) + (asked or self._loaded.context // 8)
        for document in documents:
            try:
                loaded = self._session.load(Path(document.name).name, document.text, room)
            except DoesNotFitError as error:
                advice = "load less, or choose how to go on with --fit middle-cut or --fit streaming"
                raise DataError(f"{error}; {advice}") from error
            self._note(f"{loaded.name}: {loaded.tokens:,} tokens")
            if loaded.cut:
                self._note(f"warning: {loaded.cut:,} tokens were cut out of its middle", always=True)
            if loaded.defused:
                self._note(
                    f"warning: {loaded.defused:,} control tokens written in it are read as plain text", always=True
                )

    def ask(self, question: str) -> None:
        """Ask, and print the answer as it comes; Ctrl-C stops it."""
        longest, temperature, seed = self._answers
        bar = ReadingBar()
        with _interrupts() as interrupted:
            try:
                answer = self._session.ask(
                    question,
                    longest,
                    temperature,
                    seed,
                    on_text=lambda text: print(text, end="", flush=True),
                    on_read=bar,
                    should_stop=lambda: bool(interrupted),
                )
            finally:
                bar.close()
        print(flush=True)
        self._after(answer)

    def _after(self, answer: "Reply") -> None:
        if answer.end == "context":
            self._note("warning: the context is full, so the answer ends here; /reset begins anew", always=True)
        said = {"max_new_tokens": ", ends at --max-new-tokens", "stopped": ", stopped"}.get(answer.end, "")
        work = f"read {answer.read_tokens:,}, wrote {answer.new_tokens:,} in {answer.seconds:.1f} s"
        self._note(f"{self._context()}; {work}{said}")

    def _command(self, name: str, argument: str) -> None:
        from lengthen.errors import LengthenError
        from lengthen.files import write_json

        argument = argument.strip()
        if name == "/load" and argument:
            self.load(Path(argument).expanduser())
        elif name == "/save" and argument:
            write_json(Path(argument).expanduser(), {**self._loaded.header, **self._session.to_json()})
            self._note(f"wrote {argument}")
        elif name == "/context" and not argument:
            self._note(self._context(), always=True)
        elif name == "/reset" and argument in ("", "all"):
            self._session.reset(documents=argument == "all")
            self._note(self._context())
        elif name == "/help" and not argument:
            self._note(_HELP, always=True)
        else:
            raise LengthenError(f"{name} {argument}".strip() + " is no command; /help lists them")

    def _context(self) -> str:
        used, limit = self._session.tokens()
        if limit is None:
            return f"{used:,} tokens, of which {self._session.cached:,} are held (streaming)"
        full = "full: a question would begin at " if used >= limit else ""
        return f"{full}{used:,} of {limit:,} tokens"

    def _note(self, text: str, always: bool = False) -> None:
        if always or not self._quiet:
            typer.echo(text if text == _HELP else f"[{text}]", err=True)


def _lines(prompt: str) -> Iterator[str]:
    """The lines of standard input, with editing and history where it is a terminal."""
    from contextlib import suppress

    with suppress(ImportError):
        import readline  # noqa: F401  (input() uses it then)
    while True:
        try:
            yield input(prompt).strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            typer.echo("[/exit or Ctrl-D leaves]", err=True)


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Ctrl-C adds to the list in place of raising, so that a forward pass is not torn."""
    import signal

    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: seen.append(number))
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)
