"""A report on data: the format of each source, and what a run would take of it, leave out, and why."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lengthen.data.control_tokens import ControlTokenError, ControlTokens
from lengthen.data.documents import SUPPORTED, Document, files_in, others_in, read_documents
from lengthen.data.hub import is_hub_source
from lengthen.data.instruct.formats import Example, take_example
from lengthen.data.instruct.templates import Template
from lengthen.data.records import RECORDS, BrokenRecordError, read_records, split_column, text_of
from lengthen.data.text_files import kind_of
from lengthen.data.token_file import read_token_file
from lengthen.doctor.model import Finding
from lengthen.errors import LengthenError
from lengthen.vocabulary import vocabulary_size

__all__ = ["examine_data"]

_WANTED = "each record is a document (an object with text, or a string) or a conversation"
_PROBLEMS_AT_MOST = 10
_FILES_AT_MOST = 20  # record files of a folder that are looked at one by one


def examine_data(sources: Sequence[str | Path], tokenizer: Any) -> list[Finding]:
    """Say what each source is.

    Args:
        sources: files, folders, token files, and datasets by name (`hf:...`), which are not reached for.
        tokenizer: of the model that they are for.
    """
    findings: list[Finding] = []
    for source in map(str, sources):
        try:
            findings += _examined(source, tokenizer)
        except LengthenError as error:
            findings.append(Finding(source, str(error).removeprefix(f"{source}: "), is_problem=True))
    return findings


def _examined(source: str, tokenizer: Any) -> Iterator[Finding]:
    path, column = split_column(source)
    if is_hub_source(source):
        yield Finding(source, "a dataset by name, which is read when it is used")
    elif path.is_dir():
        yield from _folder(path, tokenizer)
    elif kind_of(path) == ".bin":
        tokens = read_token_file(path, vocabulary_size(tokenizer)).tokens
        yield Finding(source, f"a token file of {len(tokens):,} {tokens.dtype} ids, all in the vocabulary")
    elif kind_of(path) in RECORDS and column is None and path.exists():
        yield from _records(path, tokenizer)
    else:
        yield from _documents([source], source, tokenizer)


def _folder(folder: Path, tokenizer: Any) -> Iterator[Finding]:
    records = files_in(folder, RECORDS)
    texts = files_in(folder, [kind for kind in SUPPORTED if kind not in RECORDS])
    for path in records[:_FILES_AT_MOST]:
        try:
            yield from _records(path, tokenizer)
        except LengthenError as error:
            yield Finding(str(path), str(error).removeprefix(f"{path}: "), is_problem=True)
    if len(records) > _FILES_AT_MOST:
        yield Finding(str(folder), f"{len(records) - _FILES_AT_MOST:,} more files of records, not looked at")
    if texts or not records:
        yield from _documents(texts or [folder], str(folder), tokenizer)
    for warning in others_in(folder):
        yield Finding(str(folder), warning.removeprefix(f"{folder}: "), is_problem=True)


def _documents(sources: Sequence[str | Path], name: str, tokenizer: Any) -> Iterator[Finding]:
    documents: list[Document] = []
    warnings: list[str] = []
    for source in sources:
        try:
            found, said = read_documents([source])
        except LengthenError as error:
            found, said = [], [str(error)]
        documents += found
        warnings += said
    kinds = Counter(kind_of(Path(document.name.rpartition("?")[0] or document.name)) for document in documents)
    counts = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common() if kind)
    characters = sum(len(document.text) for document in documents)
    if documents:
        yield Finding(
            name,
            f"{_counted(len(documents), 'document')}{f' ({counts})' if counts else ''}, {characters:,} characters",
        )
    for warning in warnings[:_PROBLEMS_AT_MOST]:
        yield Finding(name, warning.removeprefix(f"{name}: "), is_problem=True)
    if len(warnings) > _PROBLEMS_AT_MOST:
        yield Finding(name, f"{len(warnings) - _PROBLEMS_AT_MOST:,} problems more", is_problem=True)
    yield from _spelled(name, (document.text for document in documents), tokenizer)


def _records(path: Path, tokenizer: Any) -> Iterator[Finding]:
    template = Template(tokenizer) if isinstance(tokenizer.chat_template, str) else None
    shapes: Counter[str] = Counter()
    unused: Counter[str] = Counter()
    texts: list[str] = []

    def take(record: Any) -> None:
        try:
            example = take_example(record)
        except BrokenRecordError as error:
            try:
                text = text_of(record)
            except BrokenRecordError as no_text:
                raise (no_text if isinstance(record, dict) and "text" in record else error) from None
            shapes["document"] += 1
            texts.append(text)
            return
        layout_unused = template.lay_out(example).unused if template else ()
        unused.update((*example.unused, *layout_unused))
        shapes[f"conversation of {_keys(record, example)}"] += 1
        texts.extend(turn.text for turn in example.turns)

    _, warnings = read_records(path, take, _WANTED)
    name = str(path)
    if not shapes:
        yield Finding(name, "it is empty", is_problem=True)
    for shape, count in shapes.most_common(5):
        yield Finding(name, _counted(count, *shape.split(" ", 1)))
    if template is None and any(shape != "document" for shape in shapes):
        yield Finding(name, "conversations need a template, as the tokenizer has none of its own", is_problem=True)
    for warning in warnings:
        yield Finding(name, warning.removeprefix(f"{name}: "), is_problem=True)
    for key, count in unused.most_common(8):
        yield Finding(name, f"not read: {key} ({_counted(count, 'record')})", is_problem=True)
    yield from _spelled(name, texts, tokenizer)


def _keys(record: dict[str, Any], example: Example) -> str:
    return ", ".join(key for key, value in record.items() if value not in (None, "", []) and key not in example.unused)


def _spelled(name: str, texts: Any, tokenizer: Any) -> Iterator[Finding]:
    control = ControlTokens(tokenizer)
    try:
        spelled = sum(map(control.check, texts))
    except ControlTokenError as error:
        yield Finding(name, f"a text {error}", is_problem=True)
        return
    if spelled:
        yield Finding(name, f"{_counted(spelled, 'control token')} written in it, read as plain text")


def _counted(count: int, noun: str, rest: str = "") -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'} {rest}".rstrip()
