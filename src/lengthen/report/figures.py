"""Elements of the page: pictures as SVG, tables, and sections that hold them."""

import io
import xml.etree.ElementTree as ET  # nosec B405
from dataclasses import dataclass, field

import matplotlib
from matplotlib.figure import Figure

from lengthen.evaluation.plot_style import COLORS

__all__ = ["Picture", "ReportSection", "Table", "inline_svg", "picture"]

_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"
_NOTHING = dict.fromkeys(("Creator", "Date", "Format", "Type"))


@dataclass(frozen=True)
class Picture:
    """A picture under its caption.

    Attributes:
        svg: an SVG element whose accessible name says in words what is seen.
        caption: what it shows.
        source: the file that it was drawn from.
    """

    svg: str
    caption: str
    source: str


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        label: what it shows.
        columns: their names.
        rows: of cells.
        text_columns: so many columns from the left are text; the others are numbers, set to the right.
    """

    label: str
    columns: list[str]
    rows: list[list[str]]
    text_columns: int = 1

    @property
    def is_wide(self) -> bool:
        """Whether it needs the whole width of the page."""
        return sum(max(map(len, cells)) for cells in zip(self.columns, *self.rows, strict=True)) > 60


@dataclass(frozen=True)
class ReportSection:
    """A heading with what was measured under it.

    Attributes:
        title: the heading.
        note: what it says, in a sentence or two.
        pictures: of it.
        tables: of it.
    """

    title: str
    note: str = ""
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


def picture(figure: Figure, name: str, caption: str, label: str, source: str) -> Picture:
    """A figure with its caption and source; `name` and `label` as `inline_svg` takes them.

    Args:
        figure: of matplotlib.
        name: of the picture in the page.
        caption: under it.
        label: of the picture, for those who don't see it.
        source: the command that measured it.
    """
    return Picture(inline_svg(figure, name, label), caption, source)


def inline_svg(figure: Figure, name: str, label: str) -> str:
    """The figure as an SVG element that takes its colors and its font from the page.

    Args:
        figure: drawn with `COLORS`, each of which becomes the page's variable of the same name, `--ink` and so on.
        name: unlike that of any other picture of the page; ids begin with it.
        label: what is seen, for screen readers.
    """
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "lengthen"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=_NOTHING)
    # No document of others, but what matplotlib wrote just now.
    root = ET.fromstring(buffer.getvalue())  # nosec B314
    for parent in list(root.iter()):
        for child in list(parent):
            # matplotlib's style sheet would be the whole page's.
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):
                parent.remove(child)
    for node in root.iter():
        _adapt(node, name)
    for size in ("width", "height"):  # the page's, by the viewBox
        del root.attrib[size]
    root.set("role", "img")
    root.set("aria-label", label)
    return ET.tostring(root, encoding="unicode")


def _adapt(node: ET.Element, name: str) -> None:
    node.tag = node.tag.removeprefix(_SVG)  # HTML needs no namespaces
    if "id" in node.attrib:
        node.set("id", f"{name}-{node.get('id')}")
    if _HREF in node.attrib:
        node.set("href", f"#{name}-{node.attrib.pop(_HREF).removeprefix('#')}")
    if "clip-path" in node.attrib:
        node.set("clip-path", node.attrib["clip-path"].replace("url(#", f"url(#{name}-"))
    style = node.get("style")
    if style is not None:
        for variable, color in COLORS.items():
            style = style.replace(color, f"var(--{variable})")
        node.set("style", style)
