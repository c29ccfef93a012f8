"""Questions with answers about documents, written by a model behind an endpoint: data for instruction tuning.

A document is cut into passages, and the model is asked for one pair of each kind about each passage. Pairs are records
that `data.kind: instruct` reads: the question as "instruction", the passage as "input", the answer as "output".
"""

import hashlib
import json
import os
import re
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from lengthen.data.documents import Document
from lengthen.data.endpoint import Endpoint, EndpointReply
from lengthen.data.passages import LEAST_CHARS, Passage, passages_of, passages_of_document
from lengthen.errors import DataError, LengthenError, writing
from lengthen.files import parse_json
from lengthen.progress import progress_bar

__all__ = ["KINDS", "make_pairs"]

KINDS = {
    "summary": "The question asks for a summary of the passage, or of a long part of it. "
    "The answer has one to three paragraphs and says what matters, in order.",
    "detail": "The question asks for particular details that only someone who read closely can know, such as who, "
    "when, how much, why or how. The answer has one paragraph, and says from where in the passage it follows.",
    "comparison": "The question asks to compare two persons, things, ideas or parts of the passage. "
    "The answer has one or two paragraphs and says what they share and where they differ.",
    "style": "The question asks about how the passage is written, such as its tone, structure, choice of words, "
    "point of view or way of arguing. The answer has one or two paragraphs and gives examples from the passage.",
    "short": "The question asks for one fact in the passage. The answer has one or two sentences.",
}
"""Requests by kind of question. All but "short" are about a whole passage, "short" about a small part of it."""

_PROMPT = """Here is a passage from {name}.

The passage begins.
{text}
Now the passage ends.

Write one question about this passage, and its answer. {wish}
The question must be understood without seeing these instructions, and everything in the answer must follow from the \
passage.{other}
Write nothing else, in this form:

Question: (the question)
Answer: (the answer)"""

_SHORT = 2000  # characters of the passage of a short pair
_ATTEMPTS = 3  # replies that are asked for until one is usable
_PATIENCE = 10  # pairs that may fail in succession before the endpoint is given up
_TEMPERATURE = 0.7  # above 0, so that a new attempt gives another reply
_MAX_TOKENS = {"short": 256}
_MAX_TOKENS_LONG = 1024

_PAIR = re.compile(r"^\W*question\W*?:\W*?\s(.+?)\n\W*answer\W*?:\W*?\s(.+)", re.IGNORECASE | re.DOTALL | re.MULTILINE)
_LABEL = re.compile(r"^\W*(?:question|answer)\W*?:", re.IGNORECASE | re.MULTILINE)


class _UnusableError(Exception):
    """A reply holds no pair that can be used; the message says why."""


def make_pairs(
    documents: Sequence[Document],
    endpoint: Endpoint,
    out: Path,
    kinds: Sequence[str] = tuple(KINDS),
    passage_chars: int = 16_000,
    max_passages: int | None = None,
    parallel: int = 4,
) -> dict[str, Any]:
    """Ask for pairs about documents, and add each to a file as soon as it is made.

    What is in the file already is not asked for again, so that the same call goes on where an earlier one stopped. A
    question comes once about each passage, a question with the same answer once in the file, and a passage that stands
    in several documents is taken once.

    Args:
        documents: as `read_documents` gives them.
        endpoint: who is asked.
        out: the file of JSON lines. Each has the alpaca format's keys, "id", "kind", "source" (document, start and
            stop in characters of its text) and "model".
        kinds: of `KINDS`.
        passage_chars: characters of a passage, at most.
        max_passages: of each document, spread evenly; None for all.
        parallel: passages that are asked about at a time.

    Returns:
        passages; pairs in the file that were asked for, and how many of them were there before; pairs by kind; what is
        missing, by reason.

    Raises:
        DataError: no document has 200 characters, `kinds` has an unknown name, or `out` holds other things.
        LengthenError: the endpoint fails; what was made is in the file.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise DataError(f"kind {kind!r} is not one of {', '.join(KINDS)}")
    found = [
        passage for document in documents for passage in passages_of_document(document, passage_chars, max_passages)
    ]
    passages = list({passage.text: passage for passage in found}.values())
    if not passages:
        raise DataError(f"none of the {len(documents)} documents has {LEAST_CHARS} characters; give longer ones")
    sheet = _Sheet(out)
    work = _Work(endpoint, sheet, kinds)
    wanted = {_id(_subject(passage, kind), kind) for passage in passages for kind in kinds}
    before = len(wanted & sheet.ids)
    with progress_bar("asking", len(wanted), "pairs") as advance:
        advance(before)
        _run_all(work, passages, parallel, advance)
    by_kind = Counter(kind for id_, kind in sheet.kinds.items() if id_ in wanted)
    return {
        "passages": len(passages),
        "pairs": len(wanted & sheet.ids),
        "before": before,
        "kinds": {kind: by_kind[kind] for kind in kinds},
        "missing": dict(work.missing),
    }


def _subject(passage: Passage, kind: str) -> Passage:
    """The text that a pair of this kind is about: the passage, or a small part from its middle."""
    if kind != "short":
        return passage
    parts = passages_of(passage.text, _SHORT)
    return passage.part(*parts[len(parts) // 2])


def _id(passage: Passage, kind: str) -> str:
    return hashlib.sha256(f"{kind}\0{passage.text}".encode()).hexdigest()[:16]


def _run_all(work: "_Work", passages: list[Passage], parallel: int, advance: Any) -> None:
    with ThreadPoolExecutor(parallel) as pool:
        try:
            for done in as_completed([pool.submit(work.ask_about, passage, advance) for passage in passages]):
                done.result()
        except LengthenError as error:
            kept = f"; {len(work.sheet.ids)} pairs are in {work.sheet.path}, and the same command goes on from there"
            raise LengthenError(f"{error}{kept}") from error
        finally:
            # Also after Ctrl-C: each thread ends with the request that it waits for.
            work.stopped.set()
            pool.shutdown(cancel_futures=True)


class _Work:
    """Asks for pairs, from several threads."""

    def __init__(self, endpoint: Endpoint, sheet: "_Sheet", kinds: Sequence[str]):
        self._endpoint, self._kinds = endpoint, kinds
        self.sheet = sheet
        self.stopped = threading.Event()
        self.missing: Counter[str] = Counter()
        self._failed = 0
        self._lock = threading.Lock()

    def ask_about(self, passage: Passage, advance: Any) -> None:
        """Make what is missing of a passage's pairs."""
        for kind in self._kinds:
            subject = _subject(passage, kind)
            id_ = _id(subject, kind)
            if self.stopped.is_set() or id_ in self.sheet.ids:
                continue
            try:
                reason = self._make(subject, kind, id_)
                with self._lock:
                    advance(1)
                    self._count(reason)
            except LengthenError:
                self.stopped.set()
                raise

    def _count(self, reason: str | None) -> None:
        if reason is None:
            self._failed = 0
            return
        self.missing[reason] += 1
        self._failed += 1
        if self._failed >= _PATIENCE:
            raise LengthenError(
                f"{self._endpoint.model} at {self._endpoint.url} gave no usable pair {_PATIENCE} times in succession, "
                f"the last time as its reply {reason}; ask another model"
            )

    def _make(self, passage: Passage, kind: str, id_: str) -> str | None:
        """Make a pair and write it down, or say why there is none."""
        reason = ""
        for _ in range(_ATTEMPTS):
            prompt = _prompt(passage, kind, self.sheet.asked_about(passage.text))
            reply = self._endpoint.ask(prompt, _MAX_TOKENS.get(kind, _MAX_TOKENS_LONG), _TEMPERATURE)
            try:
                question, answer = _parse(reply)
                self.sheet.add(_record(passage, kind, id_, question, answer, self._endpoint.model))
                return None
            except _UnusableError as error:
                reason = str(error)
        return reason


def _prompt(passage: Passage, kind: str, asked: Sequence[str]) -> str:
    other = "".join(f"\nAsk something else than: {question}" for question in asked)
    name = Path(passage.document).name
    return _PROMPT.format(name=name, text=passage.text.strip(), wish=KINDS[kind], other=other)


def _parse(reply: EndpointReply) -> tuple[str, str]:
    """Question and answer of a reply."""
    if not reply.whole:
        raise _UnusableError("was cut off at the limit of its length")
    # Some models think aloud first.
    found = _PAIR.search(reply.text.rpartition("</think>")[2].strip())
    if not found:
        raise _UnusableError("has no question and answer in the form that was asked for")
    question, answer = (part.strip().strip("*").strip() for part in found.groups())
    if _LABEL.search(answer) or _LABEL.search(question):
        raise _UnusableError("has more than one question or answer")
    if not _words(question) or not _words(answer) or _words(question) == _words(answer):
        raise _UnusableError("has an empty question or answer, or one that repeats the other")
    if _words(question) == "the question" or _words(answer) == "the answer":
        raise _UnusableError("repeats the form in place of a question or an answer")
    try:
        (question + answer).encode("utf-8")
    except UnicodeEncodeError as error:
        raise _UnusableError("has half a surrogate pair") from error
    return question, answer


def _record(passage: Passage, kind: str, id_: str, question: str, answer: str, model: str) -> dict[str, Any]:
    return {
        "instruction": question,
        "input": passage.text,
        "output": answer,
        "id": id_,
        "kind": kind,
        "source": {"document": passage.document, "start": passage.start, "stop": passage.stop},
        "model": model,
    }


def _words(text: str) -> str:
    """A text in the form in which texts are compared."""
    return " ".join(re.findall(r"\w+", text.lower()))


class _Sheet:
    """The file of pairs, and what is in it. A line that a killed process left unfinished is dropped.

    Raises:
        DataError: the file holds other things than pairs.
    """

    def __init__(self, path: Path):
        self.path = path
        self.kinds: dict[str, str] = {}
        self._asked: dict[str, list[str]] = {}
        self._seen: set[tuple[str, str]] = set()
        self._lock = threading.Lock()
        content = b""
        if path.exists():
            with writing(path):
                content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
            try:
                self._remember(parse_json(line))
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise DataError(
                    f"{path}:{number} is no pair that this command wrote; choose another file, or remove this line"
                ) from error
        if len(whole) < len(content):
            with writing(path), path.open("ab") as file:
                file.truncate(len(whole))

    @property
    def ids(self) -> set[str]:
        """Ids of the pairs in the file."""
        return set(self.kinds)

    def asked_about(self, text: str) -> list[str]:
        """The questions about a passage so far."""
        return list(self._asked.get(text, ()))

    def add(self, record: dict[str, Any]) -> None:
        """Write a pair, unless it repeats another one."""
        question, answer = _words(record["instruction"]), _words(record["output"])
        with self._lock:
            if question in map(_words, self._asked.get(record["input"], ())) or (question, answer) in self._seen:
                raise _UnusableError("repeats an earlier pair")
            line = json.dumps(record, ensure_ascii=False) + "\n"
            with writing(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("ab") as file:
                    file.write(line.encode("utf-8"))
                    file.flush()
                    os.fsync(file.fileno())
            self._remember(record)

    def _remember(self, record: dict[str, Any]) -> None:
        question, answer = record["instruction"], record["output"]
        self._asked.setdefault(record["input"], []).append(question)
        self._seen.add((_words(question), _words(answer)))
        self.kinds[record["id"]] = record["kind"]
