"""One sequence as text: facts inserted into a haystack, questions behind them, and the role of every part.

haystack ... fact ... haystack ... fact ... question: answer ... haystack ... question: answer
|-- text --|template|-- text --|template|template|answer|-- text --|template   |answer|
"""

import random
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Literal

from lengthen.data.retrieval.episode import Episode, Fact, TrainedQuestion

__all__ = ["INTRODUCTIONS", "Placement", "RetrievalExample", "TextPiece", "assemble"]

Role = Literal["text", "template", "answer"]
Place = Literal["paragraph", "line", "sentence"]

# Where a fact may stand: behind these, the first kind that is there often enough. White space between words is always.
_BREAKS: dict[Place, re.Pattern[str]] = {
    "paragraph": re.compile(r"\n\s*\n"),
    "line": re.compile(r"\n+"),
    "sentence": re.compile(r"(?<=[.!?;:])[\"')\u201d\u2019]*\s+"),
}
_ANY_SPACE = re.compile(r"\s+")
_ORDER: tuple[Place, ...] = ("paragraph", "line", "sentence")
_LEAST_BREAKS = 12
_EARLY = 0.1
INTRODUCTIONS = (
    "Keep the facts in this text in mind; you will need them below.\n\n",
    "What follows has some statements in it that do not belong there. Note them.\n\n",
    "Read carefully. At the end there are questions.\n\n",
    "Document:\n\n",
    "# notes\n\n",
    "Merke dir, was hier eingestreut ist.\n\n",
)
"""Beginnings of sequences."""

_HEADINGS = ("", "", "", "Questions\n", "Now answer.\n", "What do you remember?\n", "---\n", "# check\n")


@dataclass(frozen=True)
class TextPiece:
    """A part of an example.

    Attributes:
        text: not empty.
        role: text of the haystack, template (facts, questions), or answer.
    """

    text: str
    role: Role


@dataclass(frozen=True)
class RetrievalExample:
    """A sequence as text.

    Attributes:
        pieces: in order.
        tasks: of its episodes.
        questions: in the order in which they are asked.
    """

    pieces: tuple[TextPiece, ...]
    tasks: tuple[str, ...]
    questions: tuple[TrainedQuestion, ...]

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(piece.text for piece in self.pieces)


@dataclass(frozen=True)
class Placement:
    """Where facts and questions are placed.

    Attributes:
        lead: characters at the beginning of the haystack that no fact stands in.
        early: share of the sequences whose facts stand in the first tenth.
        middle: share of the sequences that ask some questions before the end.
    """

    lead: int = 0
    early: float = 0.2
    middle: float = 0.25


def assemble(
    rng: random.Random, haystack: str, role: Role, episodes: Sequence[Episode], placement: Placement
) -> RetrievalExample:
    """Put episodes into a haystack.

    Args:
        rng: draws places and order.
        haystack: the text around, not empty.
        role: "text" for prose to be trained on too, "template" for fillers that can't be predicted.
        episodes: their facts keep their order, and mix with those of other episodes.
        placement: where they go.
    """
    breaks = _breaks(rng, haystack, placement.lead)
    middle = rng.random() < placement.middle
    stop = rng.uniform(0.4, 0.9) if middle else 1.0
    inserted: list[tuple[int, int, Fact]] = []
    for episode in episodes:
        places = _places(rng, breaks, stop, len(episode.facts), placement.early)
        # The second number keeps what stands in one place in the order of its episode.
        numbers = count(len(inserted))
        inserted += zip(places, numbers, episode.facts, strict=False)
    inserted.sort(key=lambda each: each[:2])
    questions = [question for episode in episodes for question in episode.questions]
    rng.shuffle(questions)
    asked_early = rng.randrange(1, len(questions) + 1) if middle else 0
    turn = max([_place_at(breaks, stop), *(place for place, _, _ in inserted)])

    joint = rng.choice(("", "", "\n"))  # a blank line between questions, or none

    pieces: list[TextPiece] = []
    done = 0
    for place, _, fact in inserted:
        pieces += [TextPiece(haystack[done:place], role), *_set_apart(haystack, place, fact)]
        done = place
    pieces.append(TextPiece(haystack[done:turn], role))
    if asked_early:
        pieces += [TextPiece("\n\n", "template"), *_asked(questions[:asked_early], joint), TextPiece("\n", "template")]
    pieces.append(TextPiece(haystack[turn:], role))
    if questions[asked_early:]:
        pieces += [TextPiece("\n\n" + rng.choice(_HEADINGS), "template"), *_asked(questions[asked_early:], joint)]
    tasks = tuple(episode.task for episode in episodes)
    return RetrievalExample(tuple(piece for piece in pieces if piece.text), tasks, tuple(questions))


def _breaks(rng: random.Random, haystack: str, lead: int) -> list[int]:
    """Characters that a fact may stand before."""
    wanted = rng.choices(_ORDER, (0.5, 0.25, 0.25))[0]
    for kind in _ORDER[_ORDER.index(wanted) :]:
        found = [match.end() for match in _BREAKS[kind].finditer(haystack, lead)]
        if len(found) >= _LEAST_BREAKS:
            return found
    return [match.end() for match in _ANY_SPACE.finditer(haystack, lead)] or [len(haystack)]


def _place_at(breaks: Sequence[int], share: float) -> int:
    """The break nearest behind a share of the way from the first to the last break."""
    wanted = breaks[0] + share * (breaks[-1] - breaks[0])
    return breaks[min(bisect_left(breaks, wanted), len(breaks) - 1)]


def _places(rng: random.Random, breaks: Sequence[int], stop: float, count: int, early: float) -> list[int]:
    """Where the facts of an episode stand, ascending: all over, in the first tenth, or near each other."""
    draw = rng.random()
    if draw < early:
        first, last = 0.0, _EARLY * stop
    elif draw < early + 0.15:
        first = rng.uniform(0, stop)
        last = min(stop, first + 0.1)
    else:
        first, last = 0.0, stop
    return sorted(_place_at(breaks, rng.uniform(first, last)) for _ in range(count))


def _set_apart(haystack: str, place: int, fact: Fact) -> list[TextPiece]:
    """A fact with the white space that sets it apart: on lines of its own, or as a sentence between others."""
    before = haystack[:place]
    space = before[len(before.rstrip()) :] or "\n"
    if fact.prose and "\n" not in space:
        return [TextPiece(f"{fact.text}{space}", "template")]
    ahead = "" if "\n" in space or not before else "\n"
    return [TextPiece(f"{ahead}{fact.text}\n{space.replace(' ', '')[1:] if ahead == '' else ''}", "template")]


def _asked(questions: Sequence[TrainedQuestion], joint: str) -> list[TextPiece]:
    pieces = []
    for number, question in enumerate(questions):
        pieces.append(TextPiece((joint if number else "") + question.prompt, "template"))
        pieces.append(TextPiece(question.trained, "answer"))
    return pieces
