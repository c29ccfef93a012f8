"""Documents from files and folders: plain text, Markdown, LaTeX, Python, records, all in UTF-8, and Parquet.

PDF, EPUB, HTML and Word files come as text through `lengthen.data.extract`, and notebooks as their cells. Other text is
taken as it is (line ends stay, only a byte order mark goes); nothing is decoded "as well as possible", since a book
with wrong letters trains a model on wrong letters.
"""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lengthen.data.extract import EXTRACTED, extract_text
from lengthen.data.records import RECORDS, TEXT_WANTED, BrokenRecordError, read_records, split_column, text_of
from lengthen.data.text_files import COMPRESSED, kind_of, read_text
from lengthen.errors import DataError
from lengthen.files import parse_json

__all__ = ["SUPPORTED", "BrokenRecordError", "Document", "files_in", "others_in", "read_documents"]

SUPPORTED = (".txt", ".md", ".rst", ".tex", ".py", ".ipynb", *RECORDS, *EXTRACTED)


@dataclass(frozen=True)
class Document:
    """One document.

    Attributes:
        name: the file it comes from, with the line or entry where a file holds several; for messages.
        text: the whole text.
    """

    name: str
    text: str


def read_documents(
    paths: Sequence[str | Path], limit: int | None = None, on_read: Callable[[], None] = lambda: None
) -> tuple[list[Document], list[str]]:
    """Read every document of the named files and folders, in the order named.

    A folder is read recursively in the order of its paths; hidden files and folders, other extensions and empty
    files inside it are left out. JSON lines hold one object with "text", or one string, per line; a JSON file
    holds a list of these (perhaps under "data" or the like), columns, or one object; CSV and Parquet files have a
    column "text". FILE?COLUMN reads another one. Text and records may be compressed (.gz, .bz2, .xz, .zst).

    Args:
        paths: files that end in one of `SUPPORTED`, and folders of these.
        limit: documents that are taken of each path, the first ones; None for all.
        on_read: called after each file.

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
    for path, column in map(split_column, paths):
        if not path.exists():
            raise DataError(f"{path} does not exist; check the name")
        if path.is_dir():
            found, said = _read_folder(path, limit, column, on_read)
        else:
            found, said = _read_file(path, limit, column)
            on_read()
            if not found:
                raise DataError(f"{path} is empty; leave it out or give a file with text")
        documents += found[:limit]
        warnings += said
    return documents, warnings


def _read_folder(
    folder: Path, limit: int | None, column: str | None, on_read: Callable[[], None]
) -> tuple[list[Document], list[str]]:
    documents: list[Document] = []
    warnings: list[str] = []
    empty: list[Path] = []
    for path in files_in(folder, SUPPORTED):
        if limit is not None and len(documents) >= limit:
            break
        found, said = _read_file(path, limit, column)
        on_read()
        documents += found
        warnings += said
        if not found:
            empty.append(path)
    if not documents:
        raise DataError(
            f"{folder} has no documents; put files ({', '.join(SUPPORTED)}) with text into it, "
            "and name token files (.bin) themselves"
        )
    warnings += others_in(folder)
    if empty:
        # Empty files are ordinary in a source tree (__init__.py), so here they are no error.
        warnings.append(f"{folder}: empty files left out: {len(empty)}, the first {empty[0]}")
    return documents, warnings


def others_in(folder: Path) -> list[str]:
    """One warning where a folder has files that are no documents, nor anything else that is read here.

    Raises:
        DataError: a folder in it can't be listed.
    """
    others = Counter(kind_of(path) or "no extension" for path in files_in(folder) if kind_of(path) not in SUPPORTED)
    counts = ", ".join(f"{count:,} {kind}" for kind, count in others.most_common(5))
    return [f"{folder}: files of other kinds left out: {others.total():,} ({counts})"] if others else []


def files_in(folder: Path, kinds: Sequence[str] | None = None) -> list[Path]:
    """All visible files of a folder, or those of these kinds (see `kind_of`), sorted by path; links to folders are not
    followed.

    Args:
        folder: with all that is below it.
        kinds: suffixes such as ".txt"; None for all.

    Raises:
        DataError: a folder in it can't be listed.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"can't list {error.filename}: {error.strerror}; check its permissions") from error

    files = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted((file for file in files if kinds is None or kind_of(file) in kinds), key=lambda file: file.parts)


def _read_file(path: Path, limit: int | None, column: str | None) -> tuple[list[Document], list[str]]:
    """Read at most `limit` documents of one file; no documents means that it is empty."""
    kind = kind_of(path)
    if kind not in SUPPORTED:
        raise DataError(f"{path} has extension {path.suffix or '(none)'}; documents are {', '.join(SUPPORTED)}")
    if kind in RECORDS:
        table_column = (column or "text") if kind in (".csv", ".tsv", ".parquet") else None
        found, warnings = read_records(path, partial(text_of, key=column or "text"), TEXT_WANTED, limit, table_column)
        return [Document(name, text) for name, text in found], warnings
    if column is not None:
        raise DataError(f"{path} has no columns; leave ?{column} out")
    if kind in EXTRACTED:
        if path.suffix.lower() in COMPRESSED:
            raise DataError(f"{path} is compressed; decompress it first")
        text, warnings = extract_text(path)
        return [Document(str(path), text)], warnings
    text = read_text(path)
    if kind == ".ipynb" and text.strip():
        text = _notebook(path, text)
    return ([Document(str(path), text)] if text.strip() else []), []


def _notebook(path: Path, content: str) -> str:
    """The cells of a Jupyter notebook: text as it is, code between fences, without what it printed."""
    try:
        notebook = parse_json(content)
        sheets = notebook.get("worksheets", [notebook])  # of before nbformat 4
        cells = [cell for sheet in sheets for cell in sheet["cells"]]
        language = notebook.get("metadata", {}).get("kernelspec", {}).get("language", "python")
        texts = []
        for cell in cells:
            source = cell.get("source", cell.get("input", ""))
            text = source if isinstance(source, str) else "".join(source)
            if text.strip():
                texts.append(f"```{language}\n{text}\n```" if cell["cell_type"] == "code" else text)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is no notebook (JSON with cells); open it in Jupyter and save it again") from error
    return "\n\n".join(texts)
