"""Documents streamed from datasets of the Hugging Face hub, by name: nothing but what is taken is downloaded."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from lengthen.data.documents import Document
from lengthen.data.records import BrokenRecordError, report_broken, text_of
from lengthen.errors import DataError

__all__ = ["HubSource", "HubStream", "is_hub_source", "parse_hub_source", "read_hub_records"]

T = TypeVar("T")

_PREFIX = "hf:"
_FORM = "hf:NAME[@REVISION][:CONFIG][:SPLIT][?COLUMN]"
_PATTERN = re.compile(
    r"hf:(?P<name>[^:@?]+)(@(?P<revision>[^:?]+))?((:(?P<config>[^:?]+))?:(?P<split>[^:?]+))?(\?(?P<column>.+))?"
)


@dataclass(frozen=True)
class HubSource:
    """A dataset as one `hf:` source names it.

    Attributes:
        name: OWNER/NAME on the hub, or a local folder of data files.
        revision: branch, tag or commit; None for the newest.
        config: of datasets that have several.
        split: such as "train".
        column: which one holds the text.
        data_files: the file of the dataset that is meant, where it has several of different kinds.
    """

    name: str
    revision: str | None = None
    config: str | None = None
    split: str = "train"
    column: str = "text"
    data_files: str | None = None

    def __str__(self) -> str:
        return f"{_PREFIX}{self.name}:{self.split}"


def is_hub_source(source: object) -> bool:
    """Whether a data source is a dataset by name and not a path."""
    return str(source).startswith(_PREFIX)


def parse_hub_source(text: str) -> HubSource:
    """Read `hf:NAME[@REVISION][:CONFIG][:SPLIT][?COLUMN]`; one part after the name is the split.

    Raises:
        DataError: it is not of this form.
    """
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise DataError(f"{text} is not of the form {_FORM}, such as hf:emozilla/pg19:train")
    return HubSource(**{key: value for key, value in match.groupdict().items() if value is not None})


def read_hub_records(
    source: HubSource, take: Callable[[Any], T], wanted: str, limit: int | None = None
) -> tuple[list[tuple[str, T]], list[str]]:
    """Read the rows of a dataset; the same as `lengthen.data.records.read_records` for files.

    Args:
        source: which dataset; its column is not looked at, as rows are taken whole.
        take: makes of a row what is wanted of it, or raises BrokenRecordError; such rows are left out.
        wanted: what each row should be, for messages.
        limit: rows that are taken, at most; None for all.

    Raises:
        DataError: the dataset can't be reached, or no row is usable.
    """
    good: list[tuple[str, T]] = []
    broken: list[tuple[str, str]] = []
    with _one_line(source):
        _, rows = _open(source)
        for number, row in enumerate(rows):
            if limit is not None and len(good) >= limit:
                break
            try:
                good.append((f"{source}[{number}]", take(row)))
            except BrokenRecordError as error:
                broken.append((f"{source}[{number}]", str(error)))
    if not good and not broken:
        raise DataError(f"{source} is empty; name another split")
    return good, report_broken(source, "rows", len(good), broken, wanted)


def _open(source: HubSource) -> tuple[Any, Any]:
    """The builder, which knows the files and their versions, and what load_dataset(streaming=True) returns."""
    from datasets import load_dataset_builder

    builder: Any = load_dataset_builder(
        source.name, source.config, revision=source.revision, data_files=source.data_files
    )
    return builder, builder.as_streaming_dataset(split=source.split)


class HubStream:
    """The documents of a dataset, in its order.

    Args:
        source: which dataset.
        limit: documents that are taken; None for all.

    Raises:
        DataError: the dataset, config or split is not there, or can't be reached; one line.
    """

    def __init__(self, source: HubSource, limit: int | None = None):
        self.source = source
        self.warnings: list[str] = []
        """Notes on records that were left out; complete when the documents are read."""
        self._limit = limit
        with _one_line(source):
            self._builder, self._rows = _open(source)
        columns = self._rows.column_names
        if columns is not None and source.column not in columns:
            raise DataError(
                f'{source} has no column "{source.column}" (it has {", ".join(columns)}); name one, as in '
                f"{source}?{columns[0]}"
            )

    @property
    def identity(self) -> str | None:
        """A string that changes with the content; None where nothing tells which content it is."""
        files = (self._builder.config.data_files or {}).get(self.source.split)
        versions = getattr(files, "origin_metadata", None)
        # For each file the commit on the hub, the ETag of a URL, or when a local file was written.
        if not files or not versions or not all(versions):
            return None
        content = [str(self.source), self.source.column, self.source.config, self._limit, list(files), versions]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def __iter__(self) -> Iterator[Document]:
        """The documents, numbered as they are taken; rows without text are left out.

        Raises:
            DataError: no row has text, or the stream breaks off.
        """
        broken: list[tuple[str, str]] = []

        def usable() -> Iterator[str]:
            for number, row in enumerate(self._rows):
                try:
                    yield text_of(row, self.source.column)
                except BrokenRecordError as error:
                    broken.append((f"row {number}", str(error)))

        taken = 0
        with _one_line(self.source):
            for text in islice(usable(), self._limit):
                yield Document(f"{self.source}[{taken}]", text)
                taken += 1
        if not taken and not broken:
            raise DataError(f"{self.source} is empty; name another split")
        self.warnings = report_broken(self.source, "rows", taken, broken)


@contextmanager
def _one_line(source: HubSource) -> Iterator[None]:
    """Turn what datasets, the hub and the network raise into one line, and silence what they print."""
    from datasets import disable_progress_bars, enable_progress_bars, is_progress_bar_enabled
    from datasets.exceptions import DatasetsError
    from datasets.utils.logging import get_verbosity, set_verbosity, set_verbosity_error
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import logging as hub_logging
    from pyarrow import ArrowException

    level, hub_level, bars = get_verbosity(), hub_logging.get_verbosity(), is_progress_bar_enabled()
    set_verbosity_error()
    hub_logging.set_verbosity_error()
    disable_progress_bars()
    try:
        yield
    # The bases are OSError and the errors of the HTTP client, which differs by version of the hub's package.
    except (*HfHubHTTPError.__bases__, DatasetsError, ArrowException, ValueError, ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"can't read {source}: {reason}; check the name, the network and HF_HUB_OFFLINE") from error
    finally:
        set_verbosity(level)
        hub_logging.set_verbosity(hub_level)
        if bars:
            enable_progress_bars()
