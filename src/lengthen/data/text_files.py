"""Text files, also compressed ones: what they hold by their names, and their bytes as UTF-8, which nothing is guessed
about. Other encodings are refused by name, with the command that converts them.
"""

import bz2
import gzip
import lzma
import zlib
from pathlib import Path

from lengthen.errors import DataError, require

__all__ = ["COMPRESSED", "decoded", "kind_of", "read_bytes", "read_text"]

COMPRESSED = (".gz", ".bz2", ".xz", ".zst")

_BOM = "\ufeff"
_MARKED = (
    (b"\xff\xfe\0\0", "UTF-32"),  # begins with the mark of UTF-16
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
_LOOKED_AT = 4096


def kind_of(path: Path) -> str:
    """What a file holds, by the end of its name: ".jsonl" for a.jsonl and for a.jsonl.gz."""
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
    try:
        if suffix == ".zst":
            return _zstd(content, path)
        return {".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress}[suffix](content)
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"can't decompress {path}: {error}; it is cut short, or no {suffix} file") from error


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, without byte order marks.

    Raises:
        DataError: it can't be read, is binary, or in another encoding.
    """
    return decoded(read_bytes(path), path)


def decoded(content: bytes, name: object) -> str:
    """Bytes as text.

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


def _zstd(content: bytes, path: Path) -> bytes:
    require(f"reading {path}", "documents", "zstandard", error=DataError)
    import zstandard

    texts = []
    while content:  # frame by frame
        frame = zstandard.ZstdDecompressor().decompressobj()
        try:
            texts.append(frame.decompress(content))
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from error
        if not frame.eof:
            raise EOFError("the end is missing")
        content = frame.unused_data
    return b"".join(texts)
