"""Records from JSON, JSON lines, CSV and Parquet files, each taken whole or left out by name."""

import csv
import io
from collections.abc import Callable, Iterator
from json import JSONDecodeError
from pathlib import Path
from typing import Any, TypeVar

from lengthen.data.text_files import COMPRESSED, Growth, kind_of, read_text
from lengthen.errors import DataError
from lengthen.files import parse_json

__all__ = ["RECORDS", "TEXT_WANTED", "BrokenRecordError", "read_records", "report_broken", "split_column", "text_of"]

RECORDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")

T = TypeVar("T")

TEXT_WANTED = 'each document is an object with "text", or a string; name another key as in FILE?KEY'
_ROW_BYTES = 128  # of a row in memory, beside its values
# Under which files that are one object have their records.
_LISTS = ("data", "rows", "records", "examples", "instances", "train")


class BrokenRecordError(Exception):
    """One record can't be used; the message completes "this record is/has ..."."""


def split_column(source: str | Path) -> tuple[Path, str | None]:
    """A path that may name a column, `FILE?COLUMN`, in two."""
    name, mark, column = str(source).rpartition("?")
    if not mark or not column or Path(source).exists():
        return Path(source), None
    return Path(name), column


def read_records(
    path: Path, take: Callable[[Any], T], wanted: str, limit: int | None = None, column: str | None = None
) -> tuple[list[tuple[str, T]], list[str]]:
    """Read the records of a file.

    Args:
        path: the file, which ends in one of `RECORDS`.
        take: makes of a record what is wanted of it, or raises BrokenRecordError; such records are left out.
        wanted: what each record should be, for messages: "each document is ...".
        limit: records that are taken, at most; None for all.
        column: the only one that is read of a CSV or Parquet file; None for all.

    Returns:
        Name (file and line or entry) and content of each record, none where the file is empty; and a warning where
        records were left out.

    Raises:
        DataError: the file can't be read, or no record is usable.
    """
    good: list[tuple[str, T]] = []
    broken: list[tuple[str, str]] = []
    kind = kind_of(path)
    if kind == ".parquet":
        if path.suffix.lower() in COMPRESSED:
            raise DataError(f"{path} is compressed once more; decompress it first")
        unit, records = "rows", _parquet_rows(path, column)
    elif kind in (".csv", ".tsv"):
        unit, records = "rows", _csv_rows(path, column)
    elif kind == ".json":
        unit, records = "entries", _json_entries(path)
    else:
        unit, records = "lines", _json_lines(path)
    for name, record in records:
        if limit is not None and len(good) >= limit:
            break
        try:
            if isinstance(record, BrokenRecordError):
                raise record
            good.append((name, take(record)))
        except BrokenRecordError as error:
            broken.append((name, str(error)))
    return good, report_broken(path, unit, len(good), broken, wanted)


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Name and content of each line; where it is not JSON, the error in place of the content."""
    return _lines(path, read_text(path))


def _lines(path: Path, content: str) -> Iterator[tuple[str, Any]]:
    # Not splitlines(): JSON strings may hold U+2028 and other line ends of Unicode as they are.
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            try:
                yield f"{path}:{number}", _parse(line)
            except BrokenRecordError as error:
                yield f"{path}:{number}", error


def _json_entries(path: Path) -> Iterator[tuple[str, Any]]:
    content = read_text(path)
    if not content.strip():
        return
    try:
        parsed = _parse(content)
    except BrokenRecordError as error:
        if not _begins_with_an_object(content):
            raise DataError(f"{path} is {error}; one object per line is read too") from error
        yield from _lines(path, content)
        return
    if isinstance(parsed, dict):
        yield from _entries_of_object(path, parsed)
    elif isinstance(parsed, list):
        yield from ((f"{path}[{number}]", record) for number, record in enumerate(parsed))
    else:
        yield str(path), parsed


def _begins_with_an_object(content: str) -> bool:
    """Whether the first line is an object of its own, as in many files of JSON lines that are named .json."""
    try:
        return isinstance(_parse(content.lstrip().partition("\n")[0]), dict)
    except BrokenRecordError:
        return False


def _entries_of_object(path: Path, parsed: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The records in an object: itself, or those under one of `_LISTS`, or columns of equal lengths."""
    values = list(parsed.values())
    key = next((key for key in _LISTS if isinstance(parsed.get(key), list)), None)
    if key is not None and not isinstance(parsed.get("text"), str):
        yield from ((f"{path}[{key}][{number}]", record) for number, record in enumerate(parsed[key]))
    elif (
        values
        and all(isinstance(value, list) and _is_column(value) for value in values)
        and len({len(value) for value in values}) == 1
    ):
        rows = zip(*values, strict=True)
        yield from ((f"{path}[{number}]", dict(zip(parsed, row, strict=True))) for number, row in enumerate(rows))
    else:
        yield str(path), parsed


def _is_column(values: list[Any]) -> bool:
    return bool(values) and not any(isinstance(value, list | dict) for value in values)


def _csv_rows(path: Path, column: str | None) -> Iterator[tuple[str, Any]]:
    content = read_text(path)
    header = content.lstrip().partition("\n")[0]
    # Spreadsheets write semicolons where the comma is in numbers.
    delimiter = "\t" if kind_of(path) == ".tsv" or ("\t" in header and "," not in header) else ","
    delimiter = ";" if delimiter == "," and header.count(";") > header.count(",") else delimiter
    csv.field_size_limit(2**31 - 1)
    reader = csv.DictReader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    try:
        names = list(reader.fieldnames or [])
        _check_column(path, column, names)
        for row in reader:
            name = f"{path}:{reader.line_num}"
            if None in row:
                yield name, BrokenRecordError(f"has more values than the {len(names)} columns")
            else:
                yield name, row if column is None else row[column]
    except csv.Error as error:
        raise DataError(f"can't read {path} as CSV: {error} near line {reader.line_num}") from error


def _check_column(path: Path, column: str | None, names: list[str]) -> None:
    if column is not None and names and column not in names:
        raise DataError(
            f'{path} has no column "{column}" (it has {", ".join(names[:5])}); name another one, as in '
            f"{path}?{names[0]}"
        )


def _parquet_rows(path: Path, column: str | None) -> Iterator[tuple[str, Any]]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            names = file.schema_arrow.names
            _check_column(path, column, names)
            growth, number = Growth(path.stat().st_size, path), 0
            for batch in file.iter_batches(64, columns=None if column is None else [column]):
                growth.add(batch.nbytes + batch.num_rows * _ROW_BYTES)
                for row in batch.to_pylist():
                    yield f"{path}[{number}]", row if column is None else row[column]
                    number += 1
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"can't read {path} as Parquet: {' '.join(str(error).split())[:300]}") from error


def _parse(content: str) -> Any:
    try:
        return parse_json(content)
    except JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in content else ""
        raise BrokenRecordError(f"not JSON ({error.msg}, {line}column {error.colno})") from error
    except ValueError as error:
        # Numbers of thousands of digits, and brackets thousands deep.
        raise BrokenRecordError("not usable JSON (numbers too long or nesting too deep)") from error


def text_of(record: Any, key: str = "text") -> str:
    """The text of a record, which is a string or an object that has it under `key`; a list is taken for paragraphs.

    Args:
        record: one of a file.
        key: the column that holds its text.

    Raises:
        BrokenRecordError: there is no text, or none that a tokenizer could take.
    """
    if isinstance(record, dict):
        if key not in record:
            keys = ", ".join(list(record)[:5]) or "none"
            raise BrokenRecordError(f'has no "{key}" (its keys: {keys})')
        record = record[key]
    if isinstance(record, list) and record and all(isinstance(part, str) for part in record):
        record = "\n\n".join(record)
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
    source: object, unit: str, good: int, broken: list[tuple[str, str]], wanted: str = TEXT_WANTED
) -> list[str]:
    """One warning for all broken records of a source, with three reasons at most; an error where nothing else is in it.

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
    firsts = {reason: where for where, reason in reversed(broken)}  # of each reason
    others = [(where, reason) for where, reason in broken[1:] if firsts[reason] == where][:2]
    told = [f"the first, {where}, {_sentence(reason)}", *(f"{name} {_sentence(other)}" for name, other in others)]
    return [f"{source}: left out {len(broken)} of {good + len(broken)} {unit}; {'; '.join(told)}"]


def _sentence(reason: str) -> str:
    return reason if reason.startswith("has") else f"is {reason}"
