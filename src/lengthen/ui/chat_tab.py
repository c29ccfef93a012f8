"""The tab to talk to a model about documents; the logic is in `lengthen.chat.shared_model`."""

import html
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from lengthen.chat.session import DoesNotFitError
from lengthen.chat.shared_model import Progress, SharedModel, UserSession
from lengthen.chat.turns import Loaded, Reply
from lengthen.data.documents import SUPPORTED
from lengthen.errors import DataError, LengthenError
from lengthen.ui.page_guard import MOST_FILES

__all__ = ["EXAMPLES", "ChatTab"]

EXAMPLES = (
    "Summarize the document in one paragraph.",
    "What is its main point, and how is it supported?",
    "Who are the people in it, and what do they want?",
    "Describe the author's style, with examples.",
)

_MOST_USERS = 500
_ENDS = {
    "finished": "",
    "max_new_tokens": "; cut off at the answer length",
    "context": "; cut off, as the context is full",
    "stopped": "; stopped",
}


class _Users:
    """A user, by the session that Gradio gives each open page."""

    def __init__(self, shared: SharedModel):
        self._shared = shared
        self._users: dict[str, UserSession] = {}
        self._lock = threading.Lock()

    def of(self, request: gr.Request) -> UserSession:
        """The user whose request it is."""
        with self._lock:
            key = str(request.session_hash)
            if key not in self._users:
                if len(self._users) >= _MOST_USERS:
                    raise gr.Error("too many people have this page open; come back later")
                self._users[key] = UserSession(self._shared)
            return self._users[key]

    def leave(self, request: gr.Request) -> None:
        """Forget a user who closed the page, and end the answer that is written for nobody."""
        with self._lock:
            user = self._users.pop(str(request.session_hash), None)
        if user is not None:
            user.stop()


class ChatTab:
    """The components of the tab and their events. Must be made inside Blocks."""

    def __init__(self, shared: SharedModel):
        self._users = _Users(shared)
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                self._lay_out_settings(shared)
            with gr.Column(scale=2, min_width=320):
                self._lay_out_conversation(shared)

    def _lay_out_settings(self, shared: SharedModel) -> None:
        self.files = gr.File(label="Documents", file_count="multiple", file_types=list(SUPPORTED), height=140)
        self.cut = gr.Checkbox(label="Cut the middle out of documents that are too long")
        self.documents = gr.HTML(_documents([]), elem_id="documents")
        self.adapter = gr.Dropdown(shared.choices, label="Adapter", visible=bool(shared.choices))
        with gr.Accordion("Settings", open=False):
            most = min(2048, shared.context // 2)
            self.length = gr.Slider(1, most, min(512, most), step=1, label="Answer length, tokens at most")
            self.temperature = gr.Slider(0, 1.5, 0, step=0.1, label="Temperature (0: the likeliest words)")
        with gr.Row():
            self.anew = gr.Button("New conversation", size="sm", min_width=130)
            self.remove = gr.Button("Remove documents", size="sm", min_width=130)

    def _lay_out_conversation(self, shared: SharedModel) -> None:
        self.chat = gr.Chatbot(
            label="Conversation", height="50vh", min_height=280, buttons=["copy"], feedback_options=None,
            placeholder="Load documents, or just ask.",
        )  # fmt: skip
        self.status = gr.HTML(_line(""), elem_id="status")
        self.question = gr.Textbox(
            label="Question", placeholder="Ask about the documents", lines=2, max_lines=8, elem_id="question"
        )
        self.meter = gr.HTML(_meter(0, shared.context, 0), elem_id="meter")
        with gr.Row():
            self.stop = gr.Button("Stop", variant="stop", visible=False, elem_id="stop")
            self.send = gr.Button("Send", variant="primary", elem_id="send")
        # Not gr.Examples, whose click asks for a route that the page's guard keeps shut.
        samples = [[example] for example in EXAMPLES]
        self.examples = gr.Dataset(components=[self.question], samples=samples, label="Examples")

    def connect(self, blocks: gr.Blocks) -> None:
        """Connect events with functions."""
        asked = [self.question, self.length]
        shown = [self.chat, self.documents, self.status, self.meter]
        quietly: dict[str, Any] = {"show_progress": "hidden"}
        gr.on([blocks.load, self.question.change, self.length.release],
              self._measure, asked, [self.meter], trigger_mode="always_last", **quietly)  # fmt: skip
        self.files.upload(self._load, [self.files, self.cut, *asked], [self.files, self.documents, self.meter])
        answered = [*shown, self.question, self.send, self.stop]
        gr.on([self.send.click, self.question.submit],
              self._ask, [*asked, self.temperature], answered, **quietly)  # fmt: skip
        self.examples.click(lambda sample: sample[0], [self.examples], [self.question], **quietly)
        self.stop.click(self._stop, None, None, **quietly)
        gr.on([self.anew.click, self.chat.clear], self._begin_anew, asked, shown, **quietly)
        self.remove.click(self._remove_documents, asked, shown, **quietly)
        self.adapter.input(self._choose, [self.adapter, *asked], [*shown, self.adapter], **quietly)
        blocks.unload(self._users.leave)

    def _measure(self, question: str, length: int, request: gr.Request) -> str:
        return _measured(self._users.of(request), question, length)

    def _load(self, paths: list[str], cut: bool, question: str, length: int, request: gr.Request) -> dict[Any, Any]:
        user = self._users.of(request)
        if len(paths or []) > MOST_FILES:
            _warn(f"{len(paths)} files at once; only {MOST_FILES} are read")
        for number, path in enumerate(map(Path, paths or [])):
            try:
                if number >= MOST_FILES:
                    continue
                for loaded in _load(user, path, length if cut else None):
                    if loaded.cut:
                        gr.Warning(f"{loaded.cut:,} tokens were cut out of the middle of {html.escape(loaded.name)}")
            except LengthenError as error:
                _warn(str(error).replace(str(path), path.name))
            finally:
                path.unlink(missing_ok=True)
        return {
            self.files: None,
            self.documents: _documents(user.session.documents),
            self.meter: _measured(user, question, length),
        }

    def _ask(self, asked: str, length: int, temperature: float, request: gr.Request) -> Iterator[dict[Any, Any]]:
        user = self._users.of(request)
        if not asked.strip() or user.is_busy:
            return
        before, text = _history(user), ""
        shown = [*before, {"role": "user", "content": asked}]
        yield {self.chat: shown, self.question: "", **self._buttons(answering=True)}
        try:
            for new in user.ask(asked, int(length), temperature):
                if isinstance(new, Progress):
                    yield {self.status: _line(_progress(new))}
                elif isinstance(new, str):
                    text += new
                    answer = {"role": "assistant", "content": text}
                    yield {self.chat: [*shown, answer], self.status: _line("Writing")}
                else:
                    is_lost = new is None or new.new_tokens == 0
                    question = asked if is_lost else ""
                    yield {
                        **self._shown(user, question, length),
                        **self._buttons(answering=False),
                        **({self.question: question} if is_lost else {}),
                        self.status: _line(_about(new)),
                    }
        except Exception as error:
            _warn(str(error) if isinstance(error, LengthenError) else "the answer failed; the server's log says why")
            yield {
                self.chat: before,
                self.question: asked,
                self.status: _line(""),
                **self._buttons(answering=False),
            }
            if not isinstance(error, LengthenError):
                raise

    def _buttons(self, answering: bool) -> dict[Any, Any]:
        return {self.send: gr.Button(visible=not answering), self.stop: gr.Button(visible=answering)}

    def _stop(self, request: gr.Request) -> None:
        self._users.of(request).stop()

    def _begin_anew(self, question: str, length: int, request: gr.Request) -> dict[Any, Any]:
        return self._change(UserSession.reset, question, length, request)

    def _remove_documents(self, question: str, length: int, request: gr.Request) -> dict[Any, Any]:
        return self._change(lambda user: user.reset(documents=True), question, length, request)

    def _choose(self, chosen: str, question: str, length: int, request: gr.Request) -> dict[Any, Any]:
        shown = self._change(lambda user: user.choose(chosen), question, length, request)
        return {**shown, self.adapter: self._users.of(request).adapter}

    def _change(
        self, change: Callable[[UserSession], None], question: str, length: int, request: gr.Request
    ) -> dict[Any, Any]:
        user = self._users.of(request)
        try:
            change(user)
        except LengthenError as error:
            _warn(str(error))
            return {}
        return {self.status: _line(""), **self._shown(user, question, length)}

    def _shown(self, user: UserSession, question: str, length: int) -> dict[Any, Any]:
        """The parts of the page that depend on a user's conversation."""
        return {
            self.chat: _history(user),
            self.documents: _documents(user.session.documents),
            self.meter: _measured(user, question, length),
        }


def _load(user: UserSession, path: Path, room: int | None) -> list[Loaded]:
    try:
        loaded, warnings = user.load(path, room)
    except DoesNotFitError as error:
        raise DataError(f"{error}; load less, or have its middle cut out") from error
    for warning in warnings:
        _warn(warning.replace(str(path), path.name))
    return loaded


def _warn(text: str) -> None:
    gr.Warning(html.escape(text), duration=20)


def _measured(user: UserSession, question: str, length: int) -> str:
    used, limit = user.session.tokens(question)
    assert limit is not None  # only streaming has none
    return _meter(used, limit, length)


def _history(user: UserSession) -> list[dict[str, str]]:
    messages = []
    for answer in user.session.answers:
        messages += [{"role": "user", "content": answer.question}, {"role": "assistant", "content": answer.text}]
    return messages


def _documents(documents: list[Loaded]) -> str:
    if not documents:
        return _line("No documents yet. PDF, EPUB, Word, HTML and text files can be loaded.")
    items = "".join(
        f"<li>{html.escape(each.name)}: {each.tokens:,} tokens{f', {each.cut:,} cut out' if each.cut else ''}</li>"
        for each in documents
    )
    return f"<ul>{items}</ul>"


def _meter(used: int, limit: int, length: int) -> str:
    """A bar and a line: how many tokens the next prompt has, of how many."""
    kind, left = "", limit - used
    said = f"{used:,} of {limit:,} tokens"
    if left < 1:
        kind, said = "over", f"{said}: no room for an answer; ask shorter, load less, or begin a new conversation"
    elif left < length:
        kind, said = "tight", f"{said}; {left:,} are left for the answer"
    share = min(100, 100 * used / limit)
    return f'<div class="{kind}"><div class="bar"><div style="width:{share:.1f}%"></div></div><p>{said}</p></div>'


def _line(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def _progress(progress: Progress) -> str:
    if progress.waiting:
        return f"Waiting: {progress.waiting} before you"
    return f"Reading: {progress.read:,} of {progress.total:,} tokens" if progress.total else "Reading"


def _about(answer: Reply | None) -> str:
    if answer is None or answer.new_tokens == 0:
        return "Stopped before the answer began"
    return (
        f"{answer.new_tokens:,} tokens in {answer.seconds:.1f} s, {answer.read_tokens:,} of {answer.prompt_tokens:,} "
        f"read anew{_ENDS[answer.end]}"
    )
