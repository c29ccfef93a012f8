"""Text of Word files (.docx, Office Open XML: ECMA-376, part 1, section 17), as it reads with all changes accepted.

Read are paragraphs, tables (nested ones too), text boxes, foot- and endnotes, and what stands inside of other elements
there: tracked insertions, content controls, fields, smart tags, links, formulas. Left out are deletions, hidden text,
prompts of empty content controls, comments, headers and footers.
"""

import posixpath
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

from lengthen.data.text_files import Archive

__all__ = ["word_text"]

_LEFT_OUT = {
    "del", "moveFrom", "delText", "delInstrText", "instrText", "pPr", "rPr", "sdtPr", "sdtEndPr", "tblPr", "trPr",
    "tcPr", "rt", "fldData",
}  # fmt: skip
_CHARACTERS = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}
_NOTES = {"footnoteReference": "footnotes", "endnoteReference": "endnotes"}
# Characters for the letters of symbol fonts (ECMA-376, part 1, 17.3.3.30): Symbol's Greek and commonest signs, the
# check boxes of Wingdings. All others are shown as a sign that can't be read.
_SYMBOLS = {
    "symbol": {
        **dict(zip(range(0x41, 0x5B), "ΑΒΧΔΕΦΓΗΙϑΚΛΜΝΟΠΘΡΣΤΥςΩΞΨΖ", strict=True)),
        **dict(zip(range(0x61, 0x7B), "αβχδεφγηιϕκλμνοπθρστυϖωξψζ", strict=True)),
        0xA3: "≤", 0xA5: "∞", 0xAE: "→", 0xB0: "°", 0xB1: "±", 0xB3: "≥", 0xB4: "×", 0xB7: "•", 0xB9: "≠", 0xBB: "≈",
    },
    "wingdings": {0x6F: "☐", 0xA8: "☐", 0xFB: "✗", 0xFC: "✓", 0xFD: "☒", 0xFE: "☑"},
}  # fmt: skip
_UNKNOWN = "\ufffd"
_BASED_ON = 20  # styles that are based on one another, at most


def word_text(archive: Archive) -> str:
    """The text of a Word file: paragraphs with an empty line between them, headings with Markdown's marks.

    Raises:
        DataError: it is made to fill the memory.
        Exception: it is broken, or no Word file.
    """
    return _Document(archive).text()


class _Document:
    def __init__(self, archive: Archive):
        self._archive = archive
        self._main = self._related("", "officeDocument")
        self._noted: list[tuple[str, str]] = []  # (part, id) of the notes in the order of their marks
        self._boxes: list[Any] = []  # text boxes of the paragraph that is being read

    def text(self) -> str:
        body = next((child for child in self._xml(self._main) if _tag(child) == "body"), None)
        if body is None:
            raise ValueError("the document has no body")
        blocks = list(self._blocks(body))
        # Notes may have notes of their own only by mistake, and then they are found here as well.
        for number, (part, name) in enumerate(self._noted, start=1):
            note = self._notes(part).get(name)
            blocks.append(f"[^{number}]: " + " ".join(self._blocks(note) if note is not None else ()))
        return "\n\n".join(blocks)

    def _blocks(self, parent: Any) -> Iterator[str]:
        for child in parent:
            tag = _tag(child)
            if tag == "p":
                text = self._paragraph(child)
                boxes, self._boxes = self._boxes, []
                if text:
                    yield text
                for box in boxes:
                    yield from self._blocks(box)
            elif tag == "tbl":
                text = "\n".join(self._rows(child))
                if text.strip():
                    yield text
            elif tag not in _LEFT_OUT and not _is_prompt(child):
                yield from self._blocks(child)

    def _paragraph(self, paragraph: Any) -> str:
        text = "".join(self._pieces(paragraph)).strip()
        level = self._level(paragraph) if text else None
        return text if level is None else f"{'#' * level} {text}"

    def _pieces(self, parent: Any) -> Iterator[str]:
        for child in parent:
            tag = _tag(child)
            if tag == "t":
                yield child.text or ""
            elif tag in _CHARACTERS:
                yield _CHARACTERS[tag]
            elif tag == "sym":
                yield _symbol(_attribute(child, "font"), _attribute(child, "char"))
            elif tag in _NOTES:
                self._noted.append((_NOTES[tag], _attribute(child, "id")))
                yield f"[^{len(self._noted)}]"
            elif tag == "txbxContent":
                self._boxes.append(child)
            elif tag == "AlternateContent":  # the same in several ways, of which the first is the newest
                yield from self._pieces(next(iter(child), ()))
            elif tag not in _LEFT_OUT and not _is_prompt(child) and not (tag == "r" and _is_hidden(child)):
                yield from self._pieces(child)

    def _rows(self, table: Any) -> Iterator[str]:
        for row in _inside(table, "tr"):
            if _child(_child(row, "trPr"), "del") is not None:
                continue
            cells = ("\n".join(self._blocks(cell)) for cell in _inside(row, "tc") if not _is_continued(cell))
            yield " | ".join(cells)

    def _level(self, paragraph: Any) -> int | None:
        """1 to 9 for a heading."""
        properties = _child(paragraph, "pPr")
        outline = _child(properties, "outlineLvl")
        if outline is not None and int(_attribute(outline, "val")) < 9:
            return int(_attribute(outline, "val")) + 1
        style = _attribute(_child(properties, "pStyle"), "val")
        return self._levels.get(style)

    @cached_property
    def _levels(self) -> dict[str, int]:
        """The levels of the styles that are headings, or are based on one."""
        name = self._related(self._main, "styles", required=False)
        styles = (
            {_attribute(each, "styleId"): each for each in self._xml(name) if _tag(each) == "style"} if name else {}
        )
        levels = {}
        for key in styles:
            style, steps = styles.get(key), 0
            while style is not None and steps < _BASED_ON:
                title = _attribute(_child(style, "name"), "val").lower()
                heading = re.fullmatch(r"heading ([1-9])", title)
                if heading or title == "title":
                    levels[key] = int(heading[1]) if heading else 1
                    break
                style, steps = styles.get(_attribute(_child(style, "basedOn"), "val")), steps + 1
        return levels

    def _notes(self, part: str) -> dict[str, Any]:
        name = self._related(self._main, part, required=False)
        return {_attribute(note, "id"): note for note in self._xml(name)} if name else {}

    def _related(self, name: str, kind: str, required: bool = True) -> str:
        """The part of the file that another one names as being of a kind."""
        folder, base = posixpath.split(name)
        listed = posixpath.join(folder, "_rels", f"{base}.rels")
        if listed in self._archive.names:
            for relation in self._xml(listed):
                if (relation.get("Type") or "").endswith(f"/{kind}"):
                    return posixpath.normpath(posixpath.join(folder, relation.get("Target"))).lstrip("/")
        if required:
            raise KeyError(f"there is no {kind} in it")
        return ""

    def _xml(self, name: str) -> Any:
        from lxml import etree

        parser = etree.XMLParser(resolve_entities=False, no_network=True, remove_comments=True, remove_pis=True)
        return etree.fromstring(self._archive.read(name), parser)


def _tag(element: Any) -> str:
    """The name without its namespace, of which there are two (transitional and strict)."""
    return str(element.tag).rpartition("}")[2]


def _attribute(element: Any, name: str) -> str:
    if element is None:
        return ""
    return next((str(value) for key, value in element.attrib.items() if key.rpartition("}")[2] == name), "")


def _child(element: Any, tag: str) -> Any:
    return None if element is None else next((child for child in element if _tag(child) == tag), None)


def _inside(parent: Any, tag: str) -> Iterable[Any]:
    """Rows of a table or cells of a row, those in content controls and insertions too."""
    for child in parent:
        if _tag(child) == tag:
            yield child
        elif _tag(child) not in {"tr", "tc", "tbl", *_LEFT_OUT}:
            yield from _inside(child, tag)


def _symbol(font: str, code: str) -> str:
    """The character of a symbol, whose number of four hexadecimal digits may be moved up by F000."""
    number = int(code, 16)
    if not 0xF000 <= number <= 0xF0FF and font.lower() not in _SYMBOLS:
        return chr(number)
    return _SYMBOLS.get(font.lower(), {}).get(number & 0xFF, _UNKNOWN)


def _is_continued(cell: Any) -> bool:
    """Whether a cell is only the lower part of one that stands in the row above."""
    merge = _child(_child(cell, "tcPr"), "vMerge")
    return merge is not None and _attribute(merge, "val") != "restart"


def _is_hidden(run: Any) -> bool:
    hidden = _child(_child(run, "rPr"), "vanish")
    return hidden is not None and _attribute(hidden, "val") not in ("0", "false", "off")


def _is_prompt(element: Any) -> bool:
    """Whether it is a content control that nobody has filled in."""
    return _tag(element) == "sdt" and _child(_child(element, "sdtPr"), "showingPlcHdr") is not None
