"""Text of PDF, EPUB, HTML and Word files, with marks that tell where in the document a passage stands.

Marks are lines of their own: `[page 3]` before each page of a PDF, `[section 3]` before each file of an EPUB's spine
(usually a chapter); pages and sections without text have none. Headings of EPUB, HTML and Word files become Markdown's
(`## Methods`), list items lines with "- ", table rows lines with " | " between cells. Scripts, styles and pictures are
left out, and so are characters that only say where a word may be broken. The packages are those of the extra
`documents`.
"""

import posixpath
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from lengthen.data.html import html_text
from lengthen.data.text_files import Archive
from lengthen.data.word import word_text
from lengthen.errors import DataError, LengthenError, one_line, require

__all__ = ["EXTRACTED", "extract_text"]

_PDF_PASSWORD = 4  # FPDF_ERR_PASSWORD
_PDF_IMAGE = 3  # FPDF_PAGEOBJ_IMAGE
_PDFIUM = threading.Lock()  # the library is not thread-safe
# pdfium writes one of these two for a hyphen between letters at the end of a line, and leaves the line end out.
_HYPHEN_AT_END = re.compile("[\ufffe\x02]\\s*")
_LETTERS, _LONGEST_WORD = re.compile(r"\w*"), 100
_WORD = re.compile(r"[^\W\d_]+")
# Where a word may be broken, and where nothing is: soft hyphen, zero-width space, word joiner, byte order mark.
_LAYOUT = dict.fromkeys((0xAD, 0x200B, 0x2060, 0xFEFF))
_OLE = bytes.fromhex("d0cf11e0a1b11ae1")  # what old and encrypted Office files begin with


def extract_text(path: Path) -> tuple[str, list[str]]:
    """The text of a file that ends in one of `EXTRACTED`.

    Args:
        path: the file.

    Returns:
        The text, and one warning (a line) where pages seem to be pictures of text.

    Raises:
        DataError: the file is missing, broken, protected or without text, or the package that reads it is missing.
    """
    if not path.is_file():
        raise DataError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; check the name")
    text, warnings = _READERS[path.suffix.lower()](path)
    text = text.translate(_LAYOUT)
    if not text.strip():
        raise DataError(f"{path} has no text; leave it out")
    return text, warnings


def _need(module: str, path: Path) -> Any:
    require(f"reading {path}", "documents", module.split(".")[0], error=DataError)
    return import_module(module)


def _need_html(path: Path) -> None:
    _need("lxml.etree", path)
    _need("webencodings", path)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror or error}; check its permissions") from error


def _pdf(path: Path) -> tuple[str, list[str]]:
    pdfium = _need("pypdfium2", path)
    content = _content(path)
    with _PDFIUM:
        try:
            with pdfium.PdfDocument(content) as pdf:
                pages = [_pdf_page(page) for page in pdf]
        except pdfium.PdfiumError as error:
            if getattr(error, "err_code", None) == _PDF_PASSWORD:
                raise DataError(
                    f"{path} is protected by a password; save it without one, such as with `qpdf --decrypt`"
                ) from error
            raise DataError(f"{path} is broken or no PDF ({error}); open it in a viewer and save it again") from error
    texts = _dehyphenated([text for text, _ in pages])
    scanned = [number for number, (text, pictured) in enumerate(pages, start=1) if pictured and not text]
    if not any(texts):
        raise DataError(
            f"{path} has {len(pages)} pages and no text, as scanned documents do; recognize the text first, such as "
            "with `ocrmypdf`"
        )
    warnings = []
    if scanned:
        warnings.append(
            f"{path}: {len(scanned)} of {len(pages)} pages are pictures without text and left out, the first "
            f"page {scanned[0]}"
        )
    return _marked("page", texts), warnings


def _pdf_page(page: Any) -> tuple[str, bool]:
    """Text of a page, and whether there is a picture on it."""
    text = page.get_textpage().get_text_bounded()
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
    return text.strip(), any(True for _ in page.get_objects(filter=[_PDF_IMAGE]))


def _dehyphenated(pages: list[str]) -> list[str]:
    """Pages with the lines joined that end in a hyphen.

    The hyphen goes where the document has the word without it elsewhere (extraordi-nary); else it is a part of what
    it stands in (self-employed, COVID-19, an address), as far as anybody can tell.
    """
    words = {word.lower() for page in pages for word in _WORD.findall(page)}

    def joined(page: str) -> str:
        pieces = _HYPHEN_AT_END.split(page)
        text = [pieces[0]]
        for before, after in pairwise(pieces):
            end = _LETTERS.match(before[: -_LONGEST_WORD - 1 : -1])
            start = _LETTERS.match(after[:_LONGEST_WORD])
            assert end is not None
            assert start is not None
            text += ["" if (end[0][::-1] + start[0]).lower() in words else "-", after]
        return "".join(text)

    return [joined(page) for page in pages]


def _marked(unit: str, texts: list[str]) -> str:
    """Texts with a line `[unit number]` before each that is not empty."""
    return "\n\n".join(f"[{unit} {number}]\n{text}" for number, text in enumerate(texts, start=1) if text)


def _html(path: Path) -> tuple[str, list[str]]:
    _need_html(path)
    return html_text(_content(path), path), []


def _docx(path: Path) -> tuple[str, list[str]]:
    _need("lxml.etree", path)
    content = _content(path)
    if content.startswith(_OLE):
        raise DataError(f"{path} is protected by a password, or an old .doc; save it as .docx without a password")
    with _opening(path, "Word file", "a word processor"):
        return word_text(Archive(content, path)), []


def _epub(path: Path) -> tuple[str, list[str]]:
    _need_html(path)
    with _opening(path, "EPUB", "a reader"):
        archive = Archive(_content(path), path)
        protected = _epub_protected(archive)
        sections = []
        for name in _epub_spine(archive):
            if name in protected:
                raise DataError(f"{path} is protected (DRM), so its text can't be read; give a free copy")
            sections.append(html_text(archive.read(name), f"{path}/{name}").strip())
    return _marked("section", sections), []


@contextmanager
def _opening(path: Path, kind: str, program: str) -> Iterator[None]:
    """Turn whatever a broken archive leads to into one error: zipfile, its decompressors and lxml raise many kinds,
    and what is not where it should be in the XML raises others here.
    """
    try:
        yield
    except LengthenError:
        raise
    except Exception as error:
        raise DataError(
            f"{path} is broken or no {kind} ({one_line(error)}); open it in {program} and save it again"
        ) from error


def _xml(archive: Archive, name: str) -> Any:
    from lxml import etree

    parser = etree.XMLParser(resolve_entities=False, no_network=True)
    return etree.fromstring(archive.read(name), parser)


def _epub_spine(archive: Archive) -> list[str]:
    """Names of the files that are read one after another: EPUB 3.3, sections 4.2.6.3 and 5."""
    package = _xml(archive, "META-INF/container.xml").xpath("//*[local-name()='rootfile']/@full-path")[0]
    root = _xml(archive, package)
    items = {item.get("id"): item for item in root.xpath("//*[local-name()='item']")}
    chosen = [items[each] for each in root.xpath("//*[local-name()='itemref']/@idref")]
    folder = posixpath.dirname(package)
    # Pictures may stand in the spine too.
    pages = [item.get("href") for item in chosen if "html" in (item.get("media-type") or "html")]
    return [posixpath.normpath(posixpath.join(folder, unquote(href.split("#")[0]))) for href in pages]


def _epub_protected(archive: Archive) -> set[str]:
    """Names of encrypted files; fonts often are in free books too."""
    if "META-INF/encryption.xml" not in archive.names:
        return set()
    return set(map(unquote, _xml(archive, "META-INF/encryption.xml").xpath("//*[local-name()='CipherReference']/@URI")))


_READERS: dict[str, Callable[[Path], tuple[str, list[str]]]] = {
    ".pdf": _pdf,
    ".epub": _epub,
    ".html": _html,
    ".htm": _html,
    ".xhtml": _html,
    ".docx": _docx,
}
"""By suffix: a function of a file that gives its text, and warnings."""

EXTRACTED = tuple(_READERS)
"""Suffixes of the files that `extract_text` reads."""
