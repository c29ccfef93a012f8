"""Text of HTML and XHTML pages as one reads it: without scripts, marks for layout, and readings beside characters.

Headings get Markdown's marks, list items begin with "- ", and table rows have " | " between their cells.
"""

import re
from collections.abc import Iterator
from typing import Any

from lengthen.errors import DataError

__all__ = ["html_text"]

# Elements without text; and readings (ruby) and sources of formulas, which repeat the text beside them.
_LEFT_OUT = (
    "script", "style", "head", "template", "noscript", "svg", "object", "iframe", "button", "select", "canvas", "audio",
    "video", "rt", "rp", "rtc", "annotation", "annotation-xml",
)  # fmt: skip
_BLOCKS = {
    "address", "article", "aside", "blockquote", "body", "caption", "dd", "details", "div", "dl", "dt", "fieldset",
    "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "html", "li", "main",
    "nav", "ol", "p", "pre", "section", "summary", "table", "tbody", "tfoot", "thead", "tr", "ul",
}  # fmt: skip
_MARKED = re.compile("li|tr|pre|h[1-6]")
_TIGHT = {"li", "tr", "dt", "dd"}
_VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
_CHARSET = re.compile(rb"(?:charset|encoding)\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)
_SELF_CLOSED = re.compile(r"<([A-Za-z][\w:-]*)((?:\s[^<>]*)?)/>")


def html_text(content: bytes, name: object) -> str:
    """Text of an HTML or XHTML file: paragraphs with an empty line between them.

    Args:
        content: the file.
        name: of it, for messages.

    Raises:
        DataError: it is in no encoding that it names, nor in UTF-8; elements lie too deep in each other to be parsed.
    """
    from lxml import etree

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
    # The parser stops where they begin, and gives what it has.
    if any(error.level_name == "FATAL" for error in parser.error_log):
        raise DataError(f"{name} can't be read to its end: {parser.error_log.last_error.message}; repair the page")
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
    around = _Around()
    for event, element in etree.iterwalk(root, events=("start", "end")):
        own = str(element.tag)
        if event == "start":
            around.enter(own)
        else:
            around.leave(own)
        is_break = event == "end" and own == "br"
        if own in _BLOCKS or is_break:
            block = _block(line, tag)
            if block:
                yield block, tight or tag in _TIGHT
            # A block's own text may be in elements inside it that are blocks again, such as <li><p>.
            line, tag, tight = "", around.look(is_break), is_break and bool(block)
        if event == "start" and own in ("td", "th") and line.strip():
            line += " | "
        text = (element.text if event == "start" else element.tail) or ""
        line += text if around.keeps_space else re.sub(r"\s+", " ", text)


class _Around:
    """The tags of the elements that a walk is in, and those of them that decide how a block looks."""

    def __init__(self) -> None:
        self._tags: list[str] = []
        self._marked: list[str] = []

    def enter(self, tag: str) -> None:
        self._tags.append(tag)
        if _MARKED.fullmatch(tag):
            self._marked.append(tag)

    def leave(self, tag: str) -> None:
        self._tags.pop()
        if _MARKED.fullmatch(tag):
            self._marked.pop()

    def look(self, after_break: bool) -> str:
        """The properties that decide how the next block looks; a line break keeps only preformatted text as it is."""
        tag = (self._marked or self._tags or [""])[-1]
        return "" if after_break and tag != "pre" else tag

    @property
    def keeps_space(self) -> bool:
        return "pre" in self._marked


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
    """The markup, by its byte order mark, as UTF-8, or by the encoding it names.

    A name means what it means to browsers (WHATWG Encoding, section 4.2): iso-8859-1 and us-ascii are Windows-1252,
    gb2312 is GBK, and so on, as most pages so labeled are.
    """
    import webencodings

    for mark, encoding in (
        (b"\xef\xbb\xbf", "utf-8-sig"),
        (b"\xff\xfe\0\0", "utf-32"),
        (b"\xff\xfe", "utf-16"),
        (b"\xfe\xff", "utf-16"),
    ):
        if content.startswith(mark):
            return content.decode(encoding, "replace")
    declared = _CHARSET.search(content[:2048])
    known = webencodings.lookup(declared[1].decode()) if declared else None
    if known and known.name == "gbk":  # which browsers read as GB 18030, the larger one
        known = webencodings.lookup("gb18030")
    for codec in (webencodings.UTF8, known):
        if codec is not None:
            try:
                return str(codec.codec_info.decode(content, "strict")[0])
            except UnicodeDecodeError:
                continue
    said = f"names {declared[1].decode()}" if declared else "names no encoding"
    raise DataError(f"{name} is not UTF-8 and {said}, which it is not in either; convert it, such as with `iconv`")
