"""Continuous batching: requests for different adapters over one base, which join and leave at every token.

A step of the engine reads a chunk of new prompts (up to four where most requests are new), and then computes one token
of every request that has been read. Short prompts that wait are read together where all of them fit into one chunk. New
requests are admitted in turn over the adapters they name (see `FairQueue`), and wait where their turn finds no row, no
cache memory or no adapter memory free: nobody overtakes, so that nobody waits for ever.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from lengthen.adapters.tokenizer import own_tokenizer
from lengthen.data.instruct.templates import use_template
from lengthen.decoding.stop import eos_token_ids
from lengthen.errors import BusyError, DataError, LengthenError, one_line
from lengthen.serving.engine.adapter_weights import adapter_folder
from lengthen.serving.engine.base_model import LoadedBase
from lengthen.serving.engine.batch import Batch, Stats
from lengthen.serving.engine.fair_queue import FairQueue
from lengthen.serving.engine.kv_cache import padded_tokens
from lengthen.serving.engine.registry import AdapterRegistry
from lengthen.serving.engine.request import Completion, GenerationEvent, GenerationRequest, RequestState

__all__ = ["Engine", "Limits"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """How much the engine takes on.

    Attributes:
        batch_size: requests that are computed together, at most.
        queue: requests that wait beside them, at most.
        chunk: tokens of prompts that are read in one forward pass, at most; None for 2,048 on a GPU, which is busy from
            there on, and 512 on a CPU.
        cache_bytes: memory for keys and values; None for half of what is free.
        adapter_bytes: memory for adapters; None for a quarter of what is free.
    """

    batch_size: int = 32
    queue: int = 256
    chunk: int | None = None
    cache_bytes: int | None = None
    adapter_bytes: int | None = None


class Engine:
    """Generates for many requests at once, each with an adapter of its own or with none.

    Either `start` gives it a thread of its own, or `step` and `complete` are called.

    Args:
        base: what all share.
        tokenizer: its tokenizer.
        limits: how much it takes on.
        adapter_scale: the share of every adapter that is applied, 0 to 1.
        template: chat template by name, in place of the base's own and of every adapter's.

    Attributes:
        registry: the adapters that are known.
        batch: the requests that are computed.
        stats: what it did so far.
    """

    def __init__(
        self,
        base: LoadedBase,
        tokenizer: Any,
        limits: Limits | None = None,
        adapter_scale: float = 1.0,
        template: str | None = None,
    ):
        self.base, self.tokenizer, self.limits, self._template = base, tokenizer, limits or Limits(), template
        if template is not None:
            use_template(tokenizer, template)
        free = _free_bytes(base.device)
        cache_bytes = free // 2 if self.limits.cache_bytes is None else self.limits.cache_bytes
        adapter_bytes = free // 4 if self.limits.adapter_bytes is None else self.limits.adapter_bytes
        self.registry = AdapterRegistry(base, adapter_bytes, adapter_scale)
        self.stats = Stats()
        chunk = self.limits.chunk or (2048 if base.device.type == "cuda" else 512)
        self._max_tokens = cache_bytes // base.cache_bytes_per_token
        self.batch = Batch(base, self.registry.pool, chunk, self._max_tokens, self.stats, self._end)
        self._vocabulary = base.model.get_input_embeddings().weight.shape[0]
        self._queue: FairQueue[RequestState] = FairQueue()
        self._commands: list[tuple[Callable[[], Any], Future[Any]]] = []
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_working = False
        self._closing: float | None = None

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Requests that are read or continued."""
        return len(self.batch.states)

    @property
    def cached_tokens(self) -> int:
        """Tokens whose keys and values are held."""
        return sum(self.batch.cache.lengths)

    def submit(self, request: GenerationRequest, on_event: Callable[[GenerationEvent], None]) -> RequestState:
        """Queue a request.

        Args:
            request: what to generate.
            on_event: called in the engine's thread with every token; the last event has `finish`.

        Raises:
            DataError: the request makes no sense, or does not fit the context or the cache memory.
            ModelError: there is no such adapter.
            BusyError: the queue is full, or the engine is closing.
        """
        request.check_against(self.base.context, self._vocabulary)
        needed = padded_tokens([len(request.prompt) + request.max_new_tokens])
        if needed > self._max_tokens:
            raise DataError(
                f"the request needs memory for {needed} tokens, and there is some for {self._max_tokens}; lower "
                "max_tokens, or give the engine more memory for keys and values"
            )
        with self._wake:
            if self._closing is not None:
                raise BusyError("the engine is closing; ask again when it is back")
            if len(self._queue) >= self.limits.queue:
                raise BusyError(f"{len(self._queue)} requests are waiting already; try again later")
            adapter = self.registry.get(request.adapter) if request.adapter is not None else None
            tokenizer = self.tokenizer_of(request.adapter)
            state = RequestState(request, adapter, tokenizer, on_event, eos_token_ids(self.base.model, tokenizer))
            if adapter is not None:
                adapter.users += 1
            self._queue.push(request.adapter, state)
            self._wake.notify()
        return state

    def tokenizer_of(self, adapter: str | None) -> Any:
        """The tokenizer for the texts of an adapter, which may have brought its own, or of the base (None).

        Raises:
            ModelError: there is no such adapter.
        """
        own = self.registry.get(adapter).tokenizer if adapter is not None else None
        return self.tokenizer if own is None else own

    def load_adapter(self, name: str, path: Path) -> None:
        """Make an adapter known, between two tokens of what is generated meanwhile.

        A tokenizer or chat template that was written beside it is used for its requests.

        Args:
            name: by which requests ask for it.
            path: PEFT or run folder.

        Raises:
            ModelError: it can't be served over this base, or the name is taken.
            DataError: its tokenizer lacks what the template needs.
        """
        self.registry.check_new(name)
        adapter, weights = self.registry.read(adapter_folder(path))
        tokenizer = own_tokenizer(path, self.tokenizer)
        if tokenizer is not self.tokenizer:
            if self._template is not None:
                use_template(tokenizer, self._template)
            adapter.tokenizer = tokenizer
        self._between_tokens(lambda: self.registry.add(name, adapter, weights))

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter; requests that were accepted for it are finished.

        Raises:
            ModelError: there is none of this name.
        """
        self._between_tokens(lambda: self.registry.drop(name))

    def complete(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """Generate for all requests together; for engines without a thread.

        Raises:
            LengthenError: as `submit`; or a request failed.
        """
        events: list[list[GenerationEvent]] = [[] for _ in requests]
        for request, own in zip(requests, events, strict=True):
            self.submit(request, own.append)
        while self.step():
            pass
        return [Completion.of(own) for own in events]

    @torch.inference_mode()
    def step(self) -> bool:
        """Do one step; whether there is more to do."""
        self._run_commands()
        self._drop_cancelled()
        self._admit()
        self.batch.prefill()
        self.batch.decode()
        return self._has_requests()

    def start(self) -> None:
        """Begin to work in a thread."""
        assert self._thread is None
        self._is_working = True
        self._thread = threading.Thread(target=self._work, name="lengthen-engine", daemon=True)
        self._thread.start()

    def close(self, grace: float = 0.0) -> None:
        """Take no more requests, finish those there are within `grace` seconds, cancel the others, and stop."""
        with self._wake:
            self._closing = time.monotonic() + grace
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        try:
            self._work_until_closed()
        finally:
            with self._wake:  # a command comes before this, and is run, or finds that nobody works
                self._is_working = False
                self._run_commands()

    def _work_until_closed(self) -> None:
        while True:
            with self._wake:
                while not (self._has_requests() or self._commands or self._closing is not None):
                    self._wake.wait()
                if self._closing is not None and not self._has_requests():
                    break
                if self._closing is not None and time.monotonic() > self._closing:
                    self._cancel_all()
            try:
                self.step()
            except Exception as error:  # whatever it is, later requests can be served
                _LOG.exception("a step of the engine failed")
                self.batch.fail(f"the engine failed: {one_line(error)}")

    def _has_requests(self) -> bool:
        return bool(self.batch.states or self.waiting)

    def _cancel_all(self) -> None:
        for state in [*self.batch.states, *self._queue]:
            state.cancel()

    def _between_tokens(self, command: Callable[[], None]) -> None:
        done: Future[Any] = Future()
        with self._wake:
            self._commands.append((command, done))
            self._wake.notify()
            is_working = self._is_working
        if not is_working:
            self._run_commands()
        done.result()

    def _run_commands(self) -> None:
        with self._wake:
            commands, self._commands = self._commands, []
            for command, done in commands:
                try:
                    done.set_result(command())
                except Exception as error:
                    done.set_exception(error)

    def _drop_cancelled(self) -> None:
        with self._wake:
            queued = [each for each in self._queue if each.is_cancelled]
            for state in queued:
                self._queue.remove(state.request.adapter, state)
        for state in queued:
            self._end(state, GenerationEvent(finish="cancelled"))
        self.batch.drop_cancelled()

    def _admit(self) -> None:
        while (state := self._first()) is not None:
            if self.running >= self.limits.batch_size or not self.batch.has_memory_for(state):
                return
            adapter = state.adapter
            try:
                if adapter is not None and not self.registry.ensure_loaded(adapter):
                    return
            except LengthenError as error:
                self._pop()
                self._end(state, GenerationEvent(finish="failed", error=str(error)))
                continue
            self._pop()
            state.is_running = True
            if adapter is not None:
                adapter.running += 1
            self.batch.add(state)

    def _first(self) -> RequestState | None:
        with self._wake:
            return self._queue.first()

    def _pop(self) -> None:
        with self._wake:
            self._queue.pop()

    def _end(self, state: RequestState, event: GenerationEvent) -> None:
        adapter = state.adapter
        if adapter is not None:
            with self._wake:
                self.registry.release(adapter, state.is_running)
        assert event.finish is not None
        self.stats.finished[state.request.adapter, event.finish] += 1
        state.tell(event)


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
