"""HTML by functions: text is escaped unless it is `Html` already."""

import html
from typing import Any

__all__ = ["Html", "element", "joined", "table"]


class Html(str):
    """Text that is HTML."""


def joined(*parts: str) -> Html:
    """One piece of HTML from text, which is escaped, and HTML."""
    return Html("".join(part if isinstance(part, Html) else html.escape(part) for part in parts))


def element(name: str, *children: str, **attributes: Any) -> Html:
    """An element; in names of attributes, a final underscore goes and others become hyphens."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"' for key, value in attributes.items()
    )
    return Html(f"<{name}{given}>{joined(*children)}</{name}>")


def table(label: str, columns: list[str], rows: list[list[str]], texts: int = 1) -> Html:
    """A table that scrolls in its own box where the page is narrower.

    Args:
        label: what it shows, for who can't see it.
        columns: their names.
        rows: of cells.
        texts: so many columns from the left are text; the others are numbers, set to the right.
    """

    def row(name: str, cells: list[str]) -> Html:
        return element("tr", *(
            element(name, cell, **({} if index < texts else {"class_": "number"})) for index, cell in enumerate(cells)
        ))  # fmt: skip

    head = element("thead", row("th", columns))
    body = element("tbody", *(row("td", cells) for cells in rows))
    return element("div", element("table", head, body), class_="scroll", role="region", tabindex=0, aria_label=label)
