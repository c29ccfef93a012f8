"""Documents from files and folders: plain text, Markdown, Python, JSON and JSON lines, all in UTF-8, and Parquet.

PDF, EPUB, HTML and Word files come as text through `lengthen.data.extract`. Other text is taken as it is (line ends
stay, only a byte order mark goes); nothing is decoded "as well as possible", since a book with wrong letters trains a
model on wrong letters.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lengthen.data.extract import EXTRACTED, extract_text
from lengthen.errors import DataError

__all__ = [
    "RECORDS",
    "SUPPORTED",
    "BrokenRecordError",
    "Document",
    "files_in",
    "read_documents",
    "read_records",
    "report_broken",
    "text_of",
]

RECORDS = (".jsonl", ".json", ".parquet")
SUPPORTED = (".txt", ".md", ".py", *RECORDS, *EXTRACTED)

T = TypeVar("T")

_BOM = "\ufeff"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Document:
    """One document.

    Attributes:
        name: the file it comes from, with the line or entry where a file holds several; for messages.
        text: the whole text.
    """

    name: str
    text: str


def read_documents(paths: Sequence[str | Path], limit: int | None = None) -> tuple[list[Document], list[str]]:
    """Read every document of the named files and folders, in the order named.

    A folder is read recursively in the order of its paths; hidden files and folders, other extensions and empty
    files inside it are left out. JSON lines hold one object with "text", or one string, per line; a JSON file
    holds a list of these, or one object; a Parquet file has a column "text".

    Args:
        paths: files that end in one of `SUPPORTED`, and folders of these.
        limit: documents that are taken of each path, the first ones; None for all.

    Returns:
        The documents, and one warning (a line) for each file or folder of which something was left out.

    Raises:
        DataError: a path is missing, or has another extension; a file is empty, binary, not UTF-8, or holds no
            usable record; a folder has no documents.
    """
    if not paths:
        raise DataError(f"no documents were named; name files ({', '.join(SUPPORTED)}) or folders of these")
    documents: list[Document] = []
    warnings: list[str] = []
    for path in map(Path, paths):
        if not path.exists():
            raise DataError(f"{path} does not exist; check the name")
        if path.is_dir():
            found, said = _read_folder(path, limit)
        else:
            found, said = _read_file(path, limit)
            if not found:
                raise DataError(f"{path} is empty; leave it out or give a file with text")
        documents += found[:limit]
        warnings += said
    return documents, warnings


def _read_folder(folder: Path, limit: int | None) -> tuple[list[Document], list[str]]:
    documents: list[Document] = []
    warnings: list[str] = []
    empty: list[Path] = []
    for path in files_in(folder, SUPPORTED):
        if limit is not None and len(documents) >= limit:
            break
        found, said = _read_file(path, limit)
        documents += found
        warnings += said
        if not found:
            empty.append(path)
    if not documents:
        raise DataError(
            f"{folder} has no documents; put files ({', '.join(SUPPORTED)}) with text into it, "
            "and name token files (.bin) themselves"
        )
    if empty:
        # Empty files are ordinary in a source tree (__init__.py), so here they are no error.
        warnings.append(f"{folder}: empty files left out: {len(empty)}, the first {empty[0]}")
    return documents, warnings


def files_in(folder: Path, extensions: Sequence[str]) -> list[Path]:
    """All visible files of a folder with these extensions, sorted by path; links to folders are not followed.

    Raises:
        DataError: a folder in it can't be listed.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"can't list {error.filename}: {error.strerror}; check its permissions") from error

    files = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted((file for file in files if file.suffix.lower() in extensions), key=lambda file: file.parts)


def _read_file(path: Path, limit: int | None) -> tuple[list[Document], list[str]]:
    """Read at most `limit` documents of one file; no documents means that it is empty."""
    suffix = path.suffix.lower()
    if suffix not in SUPPORTED:
        raise DataError(f"{path} has extension {suffix or '(none)'}; documents are {', '.join(SUPPORTED)}")
    if suffix in EXTRACTED:
        text, warnings = extract_text(path)
        return [Document(str(path), text)], warnings
    if suffix in RECORDS:
        column = "text" if suffix == ".parquet" else None
        found, warnings = read_records(path, text_of, _WANTED, limit, column)
        return [Document(name, text) for name, text in found], warnings
    text = _read_text(path)
    return ([Document(str(path), text)] if text.strip() else []), []


def read_records(
    path: Path, take: Callable[[Any], T], wanted: str, limit: int | None = None, column: str | None = None
) -> tuple[list[tuple[str, T]], list[str]]:
    """Read the records of a JSON, JSON lines or Parquet file.

    Args:
        path: the file, which ends in one of `RECORDS`.
        take: makes of a record what is wanted of it, or raises BrokenRecordError; such records are left out.
        wanted: what each record should be, for messages: "each document is ...".
        limit: records that are taken, at most; None for all.
        column: the only one that is read of a Parquet file; None for all.

    Returns:
        Name (file and line or entry) and content of each record, none where the file is empty; and a warning where
        records were left out.

    Raises:
        DataError: the file can't be read, or no record is usable.
    """
    good: list[tuple[str, T]] = []
    broken: list[tuple[str, str]] = []
    suffix = path.suffix.lower()
    unit = {".jsonl": "lines", ".json": "entries", ".parquet": "rows"}[suffix]
    records = {".jsonl": _json_lines, ".json": _json_entries}.get(suffix)
    for name, record in records(path) if records else _parquet_rows(path, column):
        if limit is not None and len(good) >= limit:
            break
        try:
            if isinstance(record, BrokenRecordError):
                raise record
            good.append((name, take(record)))
        except BrokenRecordError as error:
            broken.append((name, str(error)))
    return good, report_broken(path, unit, len(good), broken, wanted)


def _read_text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror or error}; check its permissions") from error
    if content.startswith(_UTF16_MARKS):
        raise DataError(f"{path} is UTF-16, not UTF-8; convert it, such as with `iconv -f UTF-16 -t UTF-8`")
    nul = content.find(b"\0")
    if nul >= 0:
        raise DataError(f"{path} is binary (a NUL byte at offset {nul}); give text files")
    try:
        return content.decode("utf-8").removeprefix(_BOM)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 (byte 0x{content[error.start]:02x} at offset {error.start}); "
            "convert it, such as with `iconv -f LATIN1 -t UTF-8`"
        ) from error


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Name and content of each line; where it is not JSON, the error in place of the content."""
    # Not splitlines(): JSON strings may hold U+2028 and other line ends of Unicode as they are.
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if line.strip():
            try:
                yield f"{path}:{number}", _parse(line)
            except BrokenRecordError as error:
                yield f"{path}:{number}", error


def _json_entries(path: Path) -> Iterator[tuple[str, Any]]:
    content = _read_text(path)
    if not content.strip():
        return
    try:
        parsed = _parse(content)
    except BrokenRecordError as error:
        raise DataError(f"{path} is {error}; one object per line belongs into a .jsonl file") from error
    if isinstance(parsed, list):
        yield from ((f"{path}[{number}]", record) for number, record in enumerate(parsed))
    else:
        yield str(path), parsed


def _parquet_rows(path: Path, column: str | None) -> Iterator[tuple[str, Any]]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            names = file.schema_arrow.names
            if column is not None and column not in names:
                raise DataError(
                    f'{path} has no column "{column}" (it has {", ".join(names[:5]) or "none"}); rename one'
                )
            batches = file.iter_batches(64, columns=None if column is None else [column])
            rows = (row for batch in batches for row in batch.to_pylist())
            for number, row in enumerate(rows):
                yield f"{path}[{number}]", row if column is None else row[column]
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"can't read {path} as Parquet: {' '.join(str(error).split())[:300]}") from error


_WANTED = 'each document is an object with "text" or a string'


class BrokenRecordError(Exception):
    """One record can't be used; the message completes "this record is/has ..."."""


def _parse(content: str) -> Any:
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in content else ""
        raise BrokenRecordError(f"not JSON ({error.msg}, {line}column {error.colno})") from error
    except (ValueError, RecursionError) as error:
        # Numbers of thousands of digits, and brackets thousands deep.
        raise BrokenRecordError("not usable JSON (numbers too long or nesting too deep)") from error


def text_of(record: Any, key: str = "text") -> str:
    """The text of a record, which is a string or an object that has it under `key`.

    Raises:
        BrokenRecordError: there is no text, or none that a tokenizer could take.
    """
    if isinstance(record, dict):
        if key not in record:
            keys = ", ".join(list(record)[:5]) or "none"
            raise BrokenRecordError(f'has no "{key}" (its keys: {keys})')
        record = record[key]
    if not isinstance(record, str):
        raise BrokenRecordError(f"has {type(record).__name__} where text should be")
    if not record.strip():
        raise BrokenRecordError("has empty text")
    try:
        record.encode("utf-8")
    except UnicodeEncodeError as error:
        # JSON can escape half of a surrogate pair, which no tokenizer accepts.
        raise BrokenRecordError(f"has half a surrogate pair at character {error.start} of its text") from error
    return record


def report_broken(
    source: object, unit: str, good: int, broken: list[tuple[str, str]], wanted: str = _WANTED
) -> list[str]:
    """One warning for all broken records of a source; an error where nothing else is in it.

    Args:
        source: its name, for the message.
        unit: what a record is there, in the plural.
        good: how many were taken.
        broken: name of each other one, and what is wrong with it.
        wanted: what a record should be.

    Raises:
        DataError: none was taken.
    """
    if not broken:
        return []
    where, reason = broken[0]
    if not good:
        raise DataError(f"{source}: no usable {unit} of {len(broken)}: {where} {_sentence(reason)}; {wanted}")
    return [f"{source}: left out {len(broken)} of {good + len(broken)} {unit}; the first, {where}, {_sentence(reason)}"]


def _sentence(reason: str) -> str:
    return reason if reason.startswith("has") else f"is {reason}"
