"""BABILong's first three tasks made offline: facts of a small world, scattered in order over long prose.

Who is where (qa1), where a thing is that someone carries (qa2), and where it was before (qa3). The world, its sentences
and its questions follow the definitions of bAbI; the generator and the haystack are our own, so scores are comparable
with each other, and only about with published ones.

Source: arXiv 1502.05698 (bAbI, tasks 1 to 3) and arXiv 2406.10149 (BABILong).
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from lengthen.evaluation.haystack import Haystack
from lengthen.evaluation.prompts import Prompt, encode, make_prompt, prompt_of_length

__all__ = ["TASKS", "BabilongTask", "Story", "babilong_prompt"]

_PEOPLE = ("Mary", "John", "Daniel", "Sandra")
_PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
_THINGS = ("apple", "football", "milk")
_MOVES = ("went to", "moved to", "travelled to", "journeyed to")
_TAKES = ("picked up", "took", "grabbed")
_DROPS = ("put down", "dropped", "left")

_TASK = "Somewhere in the following text stand short sentences about people, places and things. A question follows it."
# The room for an answer: one word that some tokenizers cut in several.
_ANSWER_TOKENS = 8
# Where no length fits, another beginning of the haystack may.
_BEGINNINGS = 5


@dataclass(frozen=True)
class Story:
    """A story, and a question about it.

    Attributes:
        facts: sentences, in the order in which they happened.
        question: it ends where the answer begins.
        answer: a place.
    """

    facts: list[str]
    question: str
    answer: str


class _World:
    """People, their places and things; each event is written down as a sentence."""

    def __init__(self, generator: random.Random):
        self._generator = generator
        self.facts: list[str] = []
        self.place: dict[str, str] = {}
        self.holder: dict[str, str] = {}
        self.visited: dict[str, list[str]] = {}

    def move(self, person: str) -> None:
        place = self._generator.choice([each for each in _PLACES if each != self.place.get(person)])
        self.place[person] = place
        self.facts.append(f"{person} {self._generator.choice(_MOVES)} the {place}.")
        for thing, holder in self.holder.items():
            if holder == person:
                self.visited[thing].append(place)

    def take(self, person: str, thing: str) -> None:
        self.holder[thing] = person
        places = self.visited.setdefault(thing, [])
        if places[-1:] != [self.place[person]]:
            places.append(self.place[person])
        self.facts.append(f"{person} {self._generator.choice(_TAKES)} the {thing}.")

    def drop(self, thing: str) -> None:
        self.facts.append(f"{self.holder.pop(thing)} {self._generator.choice(_DROPS)} the {thing}.")


def _who(generator: random.Random) -> Story:
    """One supporting fact: where a person went last."""
    world = _World(generator)
    for _ in range(10):
        world.move(generator.choice(_PEOPLE))
    person = generator.choice(sorted(world.place))
    return Story(world.facts, f"Where is {person}? {person} is in the", world.place[person])


def _what(generator: random.Random) -> Story:
    """Two supporting facts: who has a thing, and where that person went, or where it was put down."""
    world, thing = _carried(generator, moves=2)
    return Story(world.facts, f"Where is the {thing}? The {thing} is in the", world.visited[thing][-1])


def _before(generator: random.Random) -> Story:
    """Three supporting facts: where a thing was before it came to its last place."""
    while True:
        world, thing = _carried(generator, moves=3)
        *_, before, last = world.visited[thing]
        if world.visited[thing].count(last) == 1:  # else there would be two answers
            break
    question = f"Where was the {thing} before the {last}? Before the {last} the {thing} was in the"
    return Story(world.facts, question, before)


def _carried(generator: random.Random, moves: int) -> tuple[_World, str]:
    """A thing that one person carries through so many moves, while others move and take other things."""
    world = _World(generator)
    carrier, *others = generator.sample(_PEOPLE, len(_PEOPLE))
    thing, decoy, _ = generator.sample(_THINGS, len(_THINGS))
    for person in (carrier, *others):
        world.move(person)
    world.take(others[0], decoy)
    world.take(carrier, thing)
    for _ in range(moves):
        for person in generator.sample(others, 2):
            world.move(person)
        world.move(carrier)
    if generator.random() < 0.5:  # it stays where its carrier leaves it
        world.drop(thing)
        world.move(carrier)
    return world, thing


@dataclass(frozen=True)
class BabilongTask:
    """One task.

    Attributes:
        story: draws one.
        choices: places that an answer can be.
    """

    story: Callable[[random.Random], Story]
    choices: int = len(_PLACES)


TASKS = {"babilong_qa1": BabilongTask(_who), "babilong_qa2": BabilongTask(_what), "babilong_qa3": BabilongTask(_before)}
"""By name."""


def babilong_prompt(tokenizer: Any, haystack: Haystack, task: str, tokens: int, generator: random.Random) -> Prompt:
    """Make one prompt: the facts in their order, each at a random place of the haystack, and the question.

    Args:
        tokenizer: of the model.
        haystack: the prose.
        task: a key of `TASKS`.
        tokens: of prompt and answer, for which eight are kept.
        generator: draws all that is random.

    Returns:
        A prompt with the question once for each place, the right one first.

    Raises:
        DataError: no prompt of this length can be made.
    """
    story = TASKS[task].story(generator)
    depths = sorted(generator.random() for _ in story.facts)

    def build(start: int, size: int) -> str:
        pieces, done = [_TASK], 0
        for depth, fact in zip(depths, story.facts, strict=True):
            cut = max(done, min(size, haystack.near_sentence(start + round(size * depth), size // 40) - start))
            pieces += [haystack.take(start + done, cut - done), fact]
            done = cut
        return "\n".join([*filter(None, pieces), haystack.take(start + done, size - done), story.question])

    starts = generator.choices(haystack.sentences, k=_BEGINNINGS)
    text = prompt_of_length(tokenizer, [partial(build, start) for start in starts], tokens, _ANSWER_TOKENS)
    places = [story.answer, *(place for place in _PLACES if place != story.answer)]
    before = text.removesuffix(story.question)
    assert len(encode(tokenizer, text)) == tokens - _ANSWER_TOKENS
    return make_prompt(tokenizer, before, [(story.question, place) for place in places])
