"""Text files, also compressed ones: what they hold by their names, and their bytes as UTF-8, which nothing is guessed
about. Other encodings are refused by name, with the command that converts them.
"""

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lengthen.errors import DataError, require

__all__ = ["COMPRESSED", "Archive", "Growth", "decoded", "kind_of", "read_bytes", "read_text"]

COMPRESSED = (".gz", ".bz2", ".xz", ".zst")

_BOM = "\ufeff"
_MARKED = (
    (b"\xff\xfe\0\0", "UTF-32"),  # begins with the mark of UTF-16
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
_LOOKED_AT = 4096
# Text is compressed to a tenth or so; what becomes far more than it was is made to fill the memory.
_LARGE, _MOST_TIMES = 64 * 2**20, 100
_PIECE = 1 << 12  # bytes of a compressed file at a time; a zstd block of a few bytes can stand for 128 KiB


def kind_of(path: Path) -> str:
    """The kind of a file's content, by the end of its name: ".jsonl" for a.jsonl and for a.jsonl.gz."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes = suffixes[:-1]
    return suffixes[-1] if suffixes else ""


def read_bytes(path: Path) -> bytes:
    """The bytes of a file, decompressed.

    Raises:
        DataError: it can't be read, or is not what its name says.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror or error}; check its permissions") from error
    suffix = path.suffix.lower()
    if suffix not in COMPRESSED:
        return content
    growth = Growth(len(content), path)
    try:
        if suffix == ".zst":
            return growth.join(_zstd(content, path))
        kinds: dict[str, Callable[[Any], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
        with kinds[suffix](io.BytesIO(content)) as file:
            return growth.join(iter(lambda: file.read(1 << 20), b""))
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"can't decompress {path}: {error}; it is cut short, or no {suffix} file") from error


class Growth:
    """The size of decompressed content, until that is too much.

    Args:
        size: of the file, bytes.
        name: of it, for messages.
    """

    def __init__(self, size: int, name: object):
        self._left, self._name = max(_LARGE, _MOST_TIMES * size), name

    def add(self, count: int) -> None:
        """Count decompressed bytes.

        Raises:
            DataError: they are too many.
        """
        self._left -= count
        if self._left < 0:
            raise DataError(
                f"{self._name} becomes more than {_MOST_TIMES} times as large when it is decompressed, which what is "
                "made to fill the memory does; if it is right as it is, decompress it first"
            )

    def join(self, pieces: Iterator[bytes]) -> bytes:
        """All pieces, each counted.

        Raises:
            DataError: they are too many.
        """
        whole = bytearray()
        for piece in pieces:
            self.add(len(piece))
            whole += piece
        return bytes(whole)


class Archive:
    """A zip file in memory, whose members are read until they are too much for its size.

    Args:
        content: the file.
        name: of it, for messages.

    Raises:
        BadZipFile: it is none.
    """

    def __init__(self, content: bytes, name: object):
        self._zip, self._growth = zipfile.ZipFile(io.BytesIO(content)), Growth(len(content), name)

    @property
    def names(self) -> list[str]:
        """Names of the members."""
        return self._zip.namelist()

    def read(self, name: str) -> bytes:
        """A member.

        Raises:
            DataError: all that was read is too much.
            KeyError: there is none of this name.
            BadZipFile, EOFError, OSError, RuntimeError, zlib.error, lzma.LZMAError: it is broken, or needs a password.
        """
        with self._zip.open(name) as member:
            return self._growth.join(iter(lambda: member.read(1 << 20), b""))


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, without byte order marks.

    Raises:
        DataError: it can't be read, is binary, or in another encoding.
    """
    return decoded(read_bytes(path), path)


def decoded(content: bytes, name: object) -> str:
    """Bytes as text.

    Args:
        content: of a file.
        name: of the file, for messages.

    Raises:
        DataError: they are not UTF-8; with the encoding they seem to be in.
    """
    encoding = next((encoding for mark, encoding in _MARKED if content.startswith(mark)), None) or _unmarked(content)
    if encoding is not None:
        raise DataError(f"{name} is {encoding}, not UTF-8; convert it, such as with `iconv -f {encoding} -t UTF-8`")
    nul = content.find(b"\0")
    if nul >= 0:
        raise DataError(f"{name} is binary (a NUL byte at offset {nul}); give text files")
    try:
        return content.decode("utf-8").lstrip(_BOM)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name} is not UTF-8 (byte 0x{content[error.start]:02x} at offset {error.start}); {_advice(content)}"
        ) from error


def _unmarked(content: bytes) -> str | None:
    """UTF-16 or UTF-32 without a mark, told by where the zero bytes of its Latin letters, digits and spaces are."""
    head = content[:_LOOKED_AT]
    zero = [sum(byte == 0 for byte in head[place::4]) for place in range(4)]
    each = max(1, len(head) // 4)
    if len(content) < 4 or len(content) % 2:
        return None
    for encoding, zeros in (
        ("UTF-32LE", (1, 2, 3)),
        ("UTF-32BE", (0, 1, 2)),
        ("UTF-16LE", (1, 3)),
        ("UTF-16BE", (0, 2)),
    ):
        others = [place for place in range(4) if place not in zeros]
        if all(zero[place] > 0.7 * each for place in zeros) and not any(zero[place] for place in others):
            return encoding
    return None


def _advice(content: bytes) -> str:
    try:
        content.decode("cp1252")
    except UnicodeDecodeError:
        return "find out its encoding and convert it, such as with `iconv -f ENCODING -t UTF-8`"
    # Latin-1 has control characters where Windows has quotes and dashes, and is the same elsewhere.
    return "if it is in a western European language, convert it with `iconv -f WINDOWS-1252 -t UTF-8`"


def _zstd(content: bytes, path: Path) -> Iterator[bytes]:
    require(f"reading {path}", "documents", "zstandard", error=DataError)
    import zstandard

    frame, at = zstandard.ZstdDecompressor().decompressobj(), 0
    try:
        while at < len(content):
            if frame.eof:
                frame = zstandard.ZstdDecompressor().decompressobj()
            piece = content[at : at + _PIECE]
            yield frame.decompress(piece)
            at += len(piece) - len(frame.unused_data)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error
    if content and not frame.eof:
        raise EOFError("the end is missing")
