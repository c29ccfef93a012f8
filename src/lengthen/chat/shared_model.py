"""One model that several people talk to: each has a conversation of their own, and one is answered at a time."""

import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from lengthen.chat.session import ChatSession
from lengthen.chat.turns import Loaded, Reply
from lengthen.context import base_context
from lengthen.data.documents import read_documents
from lengthen.errors import DataError

__all__ = ["NO_ADAPTER", "Progress", "SharedModel", "UserSession"]

NO_ADAPTER = "none"
"""The choice of the base as it is, but with the positions of the adapters."""

_WAIT = 0.2  # seconds between checks whether a waiting user has left


@dataclass(frozen=True)
class Progress:
    """Progress before the first word of an answer.

    Attributes:
        waiting: how many are answered before.
        read: tokens of the prompt that are read, while waiting is 0.
        total: all tokens of the prompt.
    """

    waiting: int
    read: int = 0
    total: int = 0


class SharedModel:
    """A model that several people use in turn.

    Args:
        model: from `lengthen.load`, or with several adapters from `lengthen.adapters.multi.load_several`.
        tokenizer: its tokenizer.
        template: name of a prompt template; default the tokenizer's own.
        adapters: by name, what peft calls them.

    Attributes:
        context: tokens of prompt and answer, at most.
        choices: names of the adapters, with NO_ADAPTER where there are some.

    Raises:
        DataError: there is no chat template.
    """

    def __init__(self, model: Any, tokenizer: Any, template: str | None = None, adapters: dict[str, str] | None = None):
        self._model, self._tokenizer, self._template = model, tokenizer, template
        self._adapters = adapters or {}
        self._line: deque[object] = deque()
        self._moved = threading.Condition()
        self.context = base_context(model.config)
        self.choices = [*self._adapters, NO_ADAPTER] if self._adapters else []
        self.new_session()  # what is wrong shows now, not when the first one comes

    def new_session(self) -> ChatSession:
        """A new, empty conversation."""
        return ChatSession(self._model, self._tokenizer, self.context, self._template)

    @contextmanager
    def acquire(
        self, adapter: str | None, on_wait: Callable[[int], None], has_left: Callable[[], bool]
    ) -> Iterator[bool]:
        """Queue for exclusive use of the model with `adapter` active.

        Args:
            adapter: one of `choices`; None where there are none.
            on_wait: called again and again with how many are before.
            has_left: whether to wait no longer.

        Yields:
            Whether the model is free for this caller; False once the caller has left.
        """
        ticket = object()
        with self._moved:
            self._line.append(ticket)
        try:
            with self._moved:
                while self._line[0] is not ticket and not has_left():
                    on_wait(self._line.index(ticket))
                    self._moved.wait(_WAIT)
                is_first = self._line[0] is ticket and not has_left()
            if is_first and adapter is not None:
                with self._using(adapter):
                    yield True
            else:
                yield is_first
        finally:
            with self._moved:
                self._line.remove(ticket)
                self._moved.notify_all()

    @contextmanager
    def _using(self, adapter: str) -> Iterator[None]:
        if adapter == NO_ADAPTER:
            with self._model.disable_adapter():
                yield
        else:
            self._model.set_adapter(self._adapters[adapter])
            yield


class UserSession:
    """One person's conversation, documents and choices.

    Attributes:
        session: the conversation.
        adapter: the chosen one.
    """

    def __init__(self, shared: SharedModel):
        self._shared = shared
        self.session = shared.new_session()
        self.adapter: str | None = shared.choices[0] if shared.choices else None
        self._texts: dict[str, tuple[str, int | None]] = {}
        self._stop = threading.Event()
        self._answering = threading.Lock()

    @property
    def is_busy(self) -> bool:
        """Whether an answer is being written."""
        return self._answering.locked()

    def load(self, path: Path, room: int | None) -> tuple[list[Loaded], list[str]]:
        """Take the documents of a file.

        Args:
            path: any that `read_documents` takes; its name is the document's.
            room: as in `ChatSession.load`.

        Returns:
            What was loaded, and warnings about the file.

        Raises:
            DataError: the file can't be read, a document does not fit, or an answer is being written.
        """
        self._check_idle()
        documents, warnings = read_documents([path])
        loaded = []
        for document in documents:
            name = Path(document.name).name
            loaded.append(self.session.load(name, document.text, room))
            self._texts[name] = document.text, room
        return loaded, warnings

    def choose(self, adapter: str) -> None:
        """Take another adapter. The conversation begins anew, as what was read was read with the old one.

        Raises:
            DataError: an answer is being written.
        """
        self._check_idle()
        session = self._shared.new_session()
        for name, (text, room) in self._texts.items():
            session.load(name, text, room)
        self.session, self.adapter = session, adapter

    def reset(self, documents: bool = False) -> None:
        """As `ChatSession.reset`.

        Raises:
            DataError: an answer is being written.
        """
        self._check_idle()
        self.session.reset(documents)
        if documents:
            self._texts = {}

    def stop(self) -> None:
        """End the answer that is being written, or waited for."""
        self._stop.set()

    def ask(self, question: str, max_new_tokens: int, temperature: float) -> Iterator[Progress | str | Reply | None]:
        """Ask, and yield how far it is, pieces of the answer, and last the answer; None if stopped while waiting.

        The work goes on in a thread of its own, so that who stops listening holds up nobody: `stop` ends it.

        Args:
            question: what is asked.
            max_new_tokens: of the answer, at most.
            temperature: 0 takes the likeliest token.

        Raises:
            DataError: an answer is being written already, or as `ChatSession.stream`.
        """
        if not self._answering.acquire(blocking=False):
            raise DataError("an answer is being written; stop it first")
        self._stop.clear()
        news: SimpleQueue[Progress | str | Reply | BaseException | None] = SimpleQueue()

        def work() -> None:
            result: Reply | BaseException | None = None
            try:
                with self._shared.acquire(self.adapter, lambda n: news.put(Progress(n)), self._stop.is_set) as is_ours:
                    if is_ours:
                        result = self.session.ask(
                            question,
                            max_new_tokens,
                            temperature,
                            seed=secrets.randbits(32),
                            on_text=news.put,
                            on_read=lambda read, total: news.put(Progress(0, read, total)),
                            should_stop=self._stop.is_set,
                        )
            except BaseException as error:  # raised again in the thread that listens
                result = error
            finally:
                self._answering.release()
                news.put(result)

        threading.Thread(target=work, daemon=True).start()
        while True:
            new = news.get()
            if isinstance(new, BaseException):
                raise new
            yield new
            if new is None or isinstance(new, Reply):
                return

    def _check_idle(self) -> None:
        if self.is_busy:
            raise DataError("an answer is being written; wait for it, or stop it")
