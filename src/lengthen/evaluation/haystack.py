"""The irrelevant text around what is to be found: cut at tokens or at sentences, and where it comes from."""

import ast
import platform
import re
from bisect import bisect_left
from pathlib import Path
from typing import Any

from lengthen.data.documents import read_documents
from lengthen.data.stdlib import stdlib_documents
from lengthen.data.truncate import token_spans
from lengthen.errors import DataError

__all__ = ["NOISE", "Essay", "Haystack", "documentation", "read_haystack"]

_LONGEST_SENTENCE = 40  # words
# The end of a sentence, or an empty line.
_BOUNDARY = re.compile(r"(?<=[.!?])(?=\s)|(?<=[\u3002\uff01\uff1f])|\n\s*\n")


NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
"""The published noise of passkey retrieval and RULER, word for word: numbers are comparable only so."""


class Haystack:
    """A text that can be cut at any token, and goes on from its beginning where it ends.

    Args:
        tokenizer: whose tokens are counted.
        text: the prose; white space around it does not matter.
        source: where it comes from, for results.

    Attributes:
        tokens: how many the text has.
        sentences: tokens before each sentence, increasing; the first is 0.

    Raises:
        DataError: the text has no tokens.
    """

    def __init__(self, tokenizer: Any, text: str, source: str = ""):
        self.source = source
        self._text = text.strip() + "\n\n"
        self._ends = [end for _, end in token_spans(tokenizer, self._text)]
        self.tokens = len(self._ends)
        if not text.strip() or not self.tokens:
            raise DataError("the haystack is empty; give a file with text")
        places = (bisect_left(self._ends, match.start()) + 1 for match in _BOUNDARY.finditer(self._text))
        self.sentences = sorted({0, *(place for place in places if place < self.tokens)})

    def to_json(self) -> dict[str, Any]:
        """Its source and size, for a results file."""
        return {"source": self.source, "tokens": self.tokens}

    def take(self, start: int, count: int) -> str:
        """The text of `count` tokens from token `start` on, both 0 or more and both as large as wanted.

        Args:
            start: token of the haystack, whose end is followed by its beginning.
            count: tokens.
        """
        parts = []
        while count > 0:
            start %= self.tokens
            stop = min(start + count, self.tokens)
            parts.append(self._text[self._begin(start) : self._begin(stop)])
            start, count = stop, count - (stop - start)
        return "".join(parts)

    def near_sentence(self, place: int, reach: int) -> int:
        """The sentence start nearest to token `place`, or `place` itself where none is within `reach` tokens.

        Args:
            place: token of the haystack.
            reach: tokens.
        """
        lap, within = divmod(place, self.tokens)
        after = bisect_left(self.sentences, within)
        near = [*self.sentences[max(0, after - 1) : after + 1], self.tokens]
        best = min(near, key=lambda sentence: abs(sentence - within))
        return lap * self.tokens + best if abs(best - within) <= reach else place

    def _begin(self, token: int) -> int:
        """The character where a token begins: white space before a word goes with the word."""
        return self._ends[token - 1] if token else 0


class Essay:
    """Prose as a ring of sentences; sentences of more than 40 words (tables, code) are cut there.

    Args:
        text: to be split.

    Raises:
        DataError: it is empty.
    """

    def __init__(self, text: str):
        self.sentences: list[str] = []
        for sentence in re.split(r"(?<=[.!?])\s+", text):
            words = sentence.split()
            starts = range(0, len(words), _LONGEST_SENTENCE)
            self.sentences += [" ".join(words[start : start + _LONGEST_SENTENCE]) for start in starts]
        if not self.sentences:
            raise DataError("the haystack is empty; give a file with text")

    def take(self, start: int, count: int) -> list[str]:
        """`count` sentences from the one numbered `start` on; from the first one again after the last.

        Args:
            start: number of a sentence.
            count: sentences.
        """
        return [self.sentences[index % len(self.sentences)] for index in range(start, start + count)]


def documentation() -> tuple[str, str]:
    """The documentation of the Python that runs this: what it is, and its text.

    The language reference as the interactive help has it (about 465,000 characters in Python 3.11); where a
    distribution left that out, the docstrings of about an eighth of the standard library.
    """
    version = platform.python_version()
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return f"docstrings of Python {version}'s standard library", _docstrings()
    return f"help topics of Python {version} (pydoc_data)", "\n\n".join(topics[name].strip() for name in sorted(topics))


def _docstrings() -> str:
    found = []
    for path in stdlib_documents("validation"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                found.append(ast.get_docstring(node) or "")
    return "\n\n".join(filter(None, found))


def read_haystack(file: Path | None) -> tuple[str, str]:
    """A file's or folder's documents as one haystack: its name, and its text; without one, `documentation`.

    Raises:
        DataError: it can't be read as documents (see `lengthen.data.read_documents`).
    """
    if file is None:
        return documentation()
    documents, _ = read_documents([file])
    return str(file), "\n\n".join(document.text.strip() for document in documents)
