"""A figure as SVG inside a page."""

import io
import xml.etree.ElementTree as ET

import matplotlib
from matplotlib.figure import Figure

from lengthen.evaluation.plot import COLOURS
from lengthen.report.html import Html

__all__ = ["inline_svg"]

_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"
_NOTHING = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def inline_svg(figure: Figure, name: str, label: str) -> Html:
    """The figure as an SVG element that takes its colours and its font from the page.

    Args:
        figure: drawn with `COLOURS`, each of which becomes the page's variable of the same name, `--ink` and so on.
        name: unlike that of any other picture of the page; ids begin with it.
        label: what is seen, for who can't see it.
    """
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "lengthen"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=_NOTHING)
    root = ET.fromstring(buffer.getvalue())
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
    return Html(ET.tostring(root, encoding="unicode"))


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
        for variable, colour in COLOURS.items():
            style = style.replace(colour, f"var(--{variable})")
        node.set("style", style)
