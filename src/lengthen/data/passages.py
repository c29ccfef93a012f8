"""Documents cut into passages of about the same length."""

from dataclasses import dataclass
from itertools import pairwise

from lengthen.data.documents import Document

__all__ = ["LEAST_CHARS", "Passage", "passages_of", "passages_of_document"]

LEAST_CHARS = 200
"""Of a passage; in less is little to ask about."""


@dataclass(frozen=True)
class Passage:
    """A part of a document.

    Attributes:
        document: its name.
        start, stop: of the part, characters of the document.
        text: the part.
    """

    document: str
    start: int
    stop: int
    text: str

    def part(self, start: int, stop: int) -> "Passage":
        """A part of the part.

        Args:
            start, stop: characters of this one.
        """
        return Passage(self.document, self.start + start, self.start + stop, self.text[start:stop])


def passages_of(text: str, size: int) -> list[tuple[int, int]]:
    """Cut a text into passages of about the same length, at paragraphs where there are some, else lines or words.

    Args:
        text: the whole text.
        size: characters that a passage has at most.

    Returns:
        Start and stop of each in characters; together they are the text.
    """
    cuts = [0]
    while cuts[-1] < len(text):
        left = len(text) - cuts[-1]
        even = -(-left // -(-left // size))
        cuts.append(cuts[-1] + (left if left <= size else _break(text[cuts[-1] : cuts[-1] + even])))
    return list(pairwise(cuts))


def _break(window: str) -> int:
    """Where to cut: behind the last gap in the second half of the window."""
    for gap in ("\n\n", "\n", " "):
        found = window.rfind(gap, len(window) // 2)
        if found >= 0:
            return found + len(gap)
    return len(window)


def passages_of_document(document: Document, size: int, most: int | None = None) -> list[Passage]:
    """The passages of a document that have something in them.

    Args:
        document: with its name.
        size: characters that a passage has at most.
        most: passages that are taken, spread evenly; None for all.
    """
    found = (Passage(document.name, start, stop, document.text[start:stop])
             for start, stop in passages_of(document.text, size))  # fmt: skip
    return _spread([passage for passage in found if len(passage.text.strip()) >= LEAST_CHARS], most)


def _spread(passages: list[Passage], most: int | None) -> list[Passage]:
    if most is None or len(passages) <= most:
        return passages
    return [passages[index * len(passages) // most] for index in range(most)]
