"""Text of PDF, EPUB, HTML and Word files, with marks that tell where in the document a passage stands.

Marks are lines of their own: `[page 3]` before each page of a PDF, `[section 3]` before each file of an EPUB's spine
(usually a chapter); pages and sections without text have none. Headings of EPUB, HTML and Word files become Markdown's
(`## Methods`), list items lines with "- ", table rows lines with " | " between cells. Scripts, styles and pictures are
left out. The packages are those of the extra `documents`.
"""

import posixpath
import re
import threading
import zipfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from lengthen.errors import DataError

__all__ = ["EXTRACTED", "extract_text"]

EXTRACTED = (".pdf", ".epub", ".html", ".htm", ".xhtml", ".docx")

_PDF_PASSWORD = 4  # FPDF_ERR_PASSWORD
_PDF_IMAGE = 3  # FPDF_PAGEOBJ_IMAGE
_PDFIUM = threading.Lock()  # the library is not thread-safe
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
    suffix = path.suffix.lower()
    warnings: list[str] = []
    if suffix == ".pdf":
        text, warnings = _pdf(path)
    elif suffix == ".epub":
        text = _epub(path)
    elif suffix == ".docx":
        text = _docx(path)
    else:
        text = _html(_content(path), path)
    if not text.strip():
        raise DataError(f"{path} has no text; leave it out")
    return text, warnings


def _need(module: str, package: str, path: Path) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise DataError(
            f"reading {path} needs the package {package}, which is missing: pip install 'lengthen[documents]'"
        ) from error


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror or error}; check its permissions") from error


def _pdf(path: Path) -> tuple[str, list[str]]:
    pdfium = _need("pypdfium2", "pypdfium2", path)
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
    texts = [text for text, _ in pages]
    scanned = [number for number, (text, pictured) in enumerate(pages, start=1) if pictured and not text]
    if not any(texts):
        raise DataError(
            f"{path} has {len(pages)} pages and no text, as scanned documents do; recognise the text first, such as "
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
    # How pdfium writes a hyphen at the end of a line that is no part of the word.
    text = re.sub("[\ufffe\x02]\\s*", "", text).replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
    return text.strip(), any(True for _ in page.get_objects(filter=[_PDF_IMAGE]))


def _marked(unit: str, texts: list[str]) -> str:
    """Texts with a line `[unit number]` before each that is not empty."""
    return "\n\n".join(f"[{unit} {number}]\n{text}" for number, text in enumerate(texts, start=1) if text)


def _docx(path: Path) -> str:
    docx = _need("docx", "python-docx", path)
    if _content(path).startswith(_OLE):
        raise DataError(f"{path} is protected by a password, or an old .doc; save it as .docx without a password")
    try:
        document = docx.Document(str(path))
        return "\n\n".join(filter(None, map(_docx_block, document.iter_inner_content())))
    # What is not a zip file, not this kind of one, or cut short.
    except (ValueError, KeyError, zipfile.BadZipFile, docx.opc.exceptions.OpcError, SyntaxError) as error:
        raise DataError(f"{path} is broken or no Word file; open it in a word processor and save it again") from error


def _docx_block(block: Any) -> str:
    """A paragraph, with Markdown's marks where it is a heading, or the rows of a table."""
    if hasattr(block, "rows"):
        # A merged cell comes once for each place that it takes.
        rows = ({id(cell._tc): cell.text.strip() for cell in row.cells} for row in block.rows)
        return "\n".join(" | ".join(cells.values()) for cells in rows)
    text = block.text.strip()
    style = block.style.name if block.style is not None else ""
    level = re.fullmatch(r"Heading (\d)", style or "")
    if not text or (level is None and style != "Title"):
        return text
    return f"{'#' * (int(level[1]) if level else 1)} {text}"


def _epub(path: Path) -> str:
    _need("lxml.etree", "lxml", path)
    try:
        with zipfile.ZipFile(path) as archive:
            protected = _epub_protected(archive)
            sections = []
            for name in _epub_spine(archive):
                if name in protected:
                    raise DataError(f"{path} is protected (DRM), so its text can't be read; give a free copy")
                sections.append(_html(archive.read(name), f"{path}/{name}").strip())
    # RuntimeError: the zip file itself asks for a password.
    except (zipfile.BadZipFile, KeyError, IndexError, SyntaxError, ValueError, RuntimeError, OSError) as error:
        raise DataError(f"{path} is broken or no EPUB ({error}); open it in a reader and save it again") from error
    return _marked("section", sections)


def _xml(archive: zipfile.ZipFile, name: str) -> Any:
    from lxml import etree

    parser = etree.XMLParser(resolve_entities=False, no_network=True)
    return etree.fromstring(archive.read(name), parser)


def _epub_spine(archive: zipfile.ZipFile) -> list[str]:
    """Names of the files that are read one after another: EPUB 3.3, sections 4.2.6.3 and 5."""
    package = _xml(archive, "META-INF/container.xml").xpath("//*[local-name()='rootfile']/@full-path")[0]
    root = _xml(archive, package)
    items = {item.get("id"): item for item in root.xpath("//*[local-name()='item']")}
    chosen = [items[each] for each in root.xpath("//*[local-name()='itemref']/@idref")]
    folder = posixpath.dirname(package)
    # Pictures may stand in the spine too.
    pages = [item.get("href") for item in chosen if "html" in (item.get("media-type") or "html")]
    return [posixpath.normpath(posixpath.join(folder, unquote(href.split("#")[0]))) for href in pages]


def _epub_protected(archive: zipfile.ZipFile) -> set[str]:
    """Names of encrypted files; fonts often are in free books too."""
    if "META-INF/encryption.xml" not in archive.namelist():
        return set()
    return set(map(unquote, _xml(archive, "META-INF/encryption.xml").xpath("//*[local-name()='CipherReference']/@URI")))


_LEFT_OUT = ("script", "style", "head", "template", "noscript", "svg", "object", "iframe", "button", "select")
_BLOCKS = {
    "address", "article", "aside", "blockquote", "body", "caption", "dd", "details", "div", "dl", "dt", "fieldset",
    "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "html", "li", "main",
    "nav", "ol", "p", "pre", "section", "summary", "table", "tbody", "tfoot", "thead", "tr", "ul",
}  # fmt: skip
_TIGHT = {"li", "tr", "dt", "dd"}
_VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
_CHARSET = re.compile(rb"(?:charset|encoding)\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)
_SELF_CLOSED = re.compile(r"<([A-Za-z][\w:-]*)((?:\s[^<>]*)?)/>")


def _html(content: bytes, name: object) -> str:
    """Text of an HTML or XHTML file: paragraphs with an empty line between them."""
    etree = _need("lxml.etree", "lxml", Path(str(name)))
    markup = _decoded(content, name)
    if not markup.strip():
        return ""
    # XHTML closes empty elements (<title/>) in a way that HTML takes for an opening.
    markup = _SELF_CLOSED.sub(
        lambda found: found[0] if found[1].lower() in _VOID else f"<{found[1]}{found[2]}></{found[1]}>", markup
    )
    parser = etree.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True, huge_tree=True)
    try:
        root = etree.fromstring(markup.encode("utf-8", "replace"), parser)
    except etree.ParserError:
        root = None
    if root is None:
        return ""
    etree.strip_elements(root, *_LEFT_OUT, with_tail=False)
    text = ""
    for block, tight in _blocks(etree, root):
        text += ("" if not text else "\n" if tight else "\n\n") + block
    return text


def _blocks(etree: Any, root: Any) -> Iterator[tuple[str, bool]]:
    """Each block of a tree, and whether it follows its predecessor without an empty line."""
    line, tag, tight = "", "", False
    for event, element in etree.iterwalk(root, events=("start", "end")):
        is_break = event == "end" and element.tag == "br"
        if element.tag in _BLOCKS or is_break:
            block = _block(line, tag)
            if block:
                yield block, tight or tag in _TIGHT
            # A block's own text may be in elements inside it that are blocks again, such as <li><p>.
            line, tag, tight = "", _outermost(element, event), is_break and bool(block)
            if is_break and tag != "pre":
                tag = ""
        if event == "start" and element.tag in ("td", "th") and line.strip():
            line += " | "
        text = element.text if event == "start" else element.tail
        if text:
            is_code = any(each.tag == "pre" for each in _around(element, event))
            line += text if is_code else re.sub(r"\s+", " ", text)


def _around(element: Any, event: str) -> Iterator[Any]:
    """The elements in which the text stands that comes with this event, the innermost first."""
    if event == "start":
        yield element
    yield from element.iterancestors()


def _outermost(element: Any, event: str) -> str:
    """The tag that decides how a block looks: its heading, list item or row, else its own."""
    tags = [str(each.tag) for each in _around(element, event)]
    marked = [tag for tag in tags if tag in ("li", "tr", "pre") or re.fullmatch("h[1-6]", tag)]
    return marked[0] if marked else (tags or [""])[0]


def _block(line: str, tag: str) -> str:
    if tag == "pre":
        return line.strip("\n")
    text = line.strip()
    if not text:
        return ""
    if re.fullmatch("h[1-6]", tag):
        return f"{'#' * int(tag[1])} {text}"
    return f"- {text}" if tag == "li" else text


def _decoded(content: bytes, name: object) -> str:
    for mark, encoding in ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if content.startswith(mark):
            return content.decode(encoding, "replace")
    declared = _CHARSET.search(content[:2048])
    for encoding in ("utf-8", declared[1].decode() if declared else ""):
        try:
            return content.decode(encoding)
        except (UnicodeDecodeError, LookupError):
            continue
    raise DataError(f"{name} is not UTF-8 and names no encoding that it is in; convert it, such as with `iconv`")
