"""Tasks in which one fact leads to the next: variables that copy each other, people who move and carry things."""

from dataclasses import dataclass, field

from lengthen.data.retrieval.episode import Episode, Fact, Passages, TrainedQuestion, listed, question
from lengthen.data.retrieval.vocabulary import NAMES, NOUNS, PLACES, Draw

__all__ = ["journeys", "variables"]


@dataclass(frozen=True)
class Assignments:
    """How variables get values.

    Attributes:
        first: of `{x}` from a value `{v}`.
        copy: of `{x}` from `{y}`.
        value: questions for the value of `{x}`.
        names: questions for all that have the value `{known}`.
        prose: whether statements may stand inside a paragraph.
    """

    first: str
    copy: str
    value: tuple[str, ...]
    names: tuple[str, ...]
    prose: bool = False


ASSIGNMENTS = (
    Assignments(
        "{x} := {v}", "{x} := {y}", ("In the end {x} comes to {v}", "{x} evaluates to {v}"),
        ("All names that come to {known}: {v}", "Names with {known} in them, first to last: {v}"),
    ),
    Assignments(
        "{x} = {v}", "{x} = {y}", ("print({x})  # {v}", "assert {x} == {v}"),
        ("# everything that equals {known}: {v}", "[name for name in scope if scope[name] == {known}] -> {v}"),
    ),
    Assignments(
        "let {x} = {v};", "let {x} = {y};", ("console.log({x}); // {v}", "Final content of {x}: {v}"),
        ("// all that hold {known}: {v}", "Which of the names hold {known}? {v}"),
    ),
    Assignments(
        "(define {x} {v})", "(define {x} {y})", ("> {x}\n{v}", "({x}) => {v}"),
        (";; symbols bound to {known}: {v}", "Symbols bound to {known}, in the order of their definitions: {v}"),
    ),
    Assignments(
        "SET {x} TO {v}", "SET {x} TO {y}", ("GET {x} returns {v}", "What does GET {x} return? {v}"),
        ("Keys set to {known}, directly or by way of others: {v}", "SCAN {known} -> {v}"),
    ),
    Assignments(
        "The marker {x} reads {v}.", "The marker {x} reads whatever {y} reads.",
        ("What does the marker {x} read? It reads {v}.", "Marker {x}: {v}"),
        ("Markers that read {known}: {v}.", "Tell me each marker that reads {known}. They are {v}."), prose=True,
    ),
    Assignments(
        "Register {x} receives {v}.", "Register {x} receives the content of {y}.",
        ("After all this, register {x} contains {v}.", "Dump of {x}: {v}"),
        ("Registers containing {known}: {v}.", "One finds {known} in the registers {v}."), prose=True,
    ),
    Assignments(
        "{x} bekommt den Wert {v}.", "{x} bekommt den Wert von {y}.",
        ("Welchen Wert hat {x}? {x} hat den Wert {v}.", "Wert von {x}: {v}"),
        ("Den Wert {known} haben: {v}.", "Folgende Namen haben den Wert {known}: {v}."), prose=True,
    ),
)  # fmt: skip


def variables(draw: Draw, count: int, _passages: Passages) -> Episode:
    """Chains (or trees) of assignments; the questions ask for a variable's value and a value's variables."""
    rng = draw.rng
    style, kind = rng.choice(ASSIGNMENTS), rng.choice(("number", "digits", "hexadecimal", "word"))
    chains = rng.randrange(1, 1 + max(1, min(5, count // 3)))
    total = max(2 * chains, count)
    names = _names(draw, total)
    values = [draw.value_of((kind,)) for _ in range(chains)]
    members: list[list[str]] = [[] for _ in range(chains)]
    straight = rng.random() < 0.6  # each copies the one before it; else any earlier one of its chain
    facts = []
    for place, name in enumerate(names):
        which = place if place < chains else rng.randrange(chains)
        if members[which]:
            source = members[which][-1] if straight else rng.choice(members[which])
            facts.append(style.copy.format(x=name, y=source))
        else:
            facts.append(style.first.format(x=name, v=values[which]))
        members[which].append(name)
    asked = []
    for which in rng.sample(range(chains), min(chains, rng.randrange(1, 4))):
        asked.append(question(rng.choice(style.names), listed(members[which]), known=values[which]))
    by_name = {name: values[which] for which in range(chains) for name in members[which]}
    for name in rng.sample(names, min(len(names), rng.randrange(2, 7))):
        asked.append(question(rng.choice(style.value), by_name[name], x=name))
    return Episode("variables", tuple(Fact(fact, style.prose) for fact in facts), tuple(asked), tuple(names))


def _names(draw: Draw, count: int) -> list[str]:
    """Names of variables, all of one look; never capital letters alone, as the evaluation has them."""
    rng = draw.rng
    look = rng.randrange(5)
    stem = draw.fresh(draw.invented)

    def make() -> str:
        if look == 0:
            return f"{rng.choice('xyzuvwabcXYZ')}{rng.randrange(200)}"
        if look == 1:
            return f"{stem}_{rng.randrange(1000)}"
        if look == 2:
            return draw.invented()
        if look == 3:
            return f"{rng.choice(NOUNS)}{rng.choice('ABCDEFGH')}"
        return "".join(rng.choices("abcdefghijkmnpqrstuvwxyz", k=2)) + str(rng.randrange(10, 100))

    return draw.several(make, count)


GOES = (
    "{p} walked into the {l}.", "{p} has just arrived at the {l}.", "{p} headed straight for the {l} and stayed there.",
    "Then {p} turned up in the {l}.", "{p} slipped away to the {l}.",
)  # fmt: skip
TAKES = ("{p} pocketed the {o}.", "{p} carries the {o} along from here on.", "{p} tucked the {o} under one arm.")
DROPS = (
    "{p} set the {o} aside right there.", "{p} parted with the {o} on the spot.",
    "{p} no longer wanted the {o} and laid it down.",
)  # fmt: skip
GIVES = ("{p} passed the {o} on to {q}.", "{q} received the {o} from {p}.")
JOURNEY_QUESTIONS = {
    "person": ("Where does {p} end up? In the {v}.", "Whereabouts of {p}: the {v}"),
    "first": ("Where did {p} show up first? In the {v}.", "First stop of {p}: the {v}"),
    "before": ("From which place did {p} come to the {l}? From the {v}.", "Stop of {p} before the {l}: the {v}"),
    "object": ("At which place is the {o} in the end? In the {v}.", "Whereabouts of the {o}: the {v}"),
    "holder": ("Who has the {o} by now? {v} has it.", "The {o} is in the hands of {v}."),
}


@dataclass
class _World:
    """Where everyone has been, and who has what."""

    stops: dict[str, list[str]] = field(default_factory=dict)
    holder: dict[str, str | None] = field(default_factory=dict)
    left_at: dict[str, str] = field(default_factory=dict)

    def place_of(self, thing: str) -> str:
        holder = self.holder[thing]
        return self.left_at[thing] if holder is None else self.stops[holder][-1]


def journeys(draw: Draw, count: int, _passages: Passages) -> Episode:
    """People walk between places, pick things up, lay them down and pass them on; the questions ask for the end."""
    rng = draw.rng
    people = draw.several(lambda: rng.choice(NAMES), rng.randrange(1, min(6, 2 + count // 3)))
    things = draw.several(lambda: rng.choice(NOUNS), rng.randrange(1, min(5, 2 + count // 4)))
    places = draw.several(lambda: rng.choice(PLACES), rng.randrange(4, 10))
    world, facts = _World(), []
    for person in people:  # everyone is somewhere before anything is carried
        world.stops[person] = [rng.choice(places)]
        facts.append(rng.choice(GOES).format(p=person, l=world.stops[person][-1]))
    while len(facts) < count:
        facts.append(_happen(draw, world, people, things, places))
    asked = _ask_about(draw, world)
    return Episode("journeys", tuple(Fact(fact, True) for fact in facts), tuple(asked), (*people, *things))


def _happen(draw: Draw, world: _World, people: list[str], things: list[str], places: list[str]) -> str:
    rng = draw.rng
    person, thing = rng.choice(people), rng.choice(things)
    action = rng.random()
    held = thing in world.holder and world.holder[thing] is not None
    if action < 0.5:
        place = rng.choice([place for place in places if place != world.stops[person][-1]])
        world.stops[person].append(place)
        return rng.choice(GOES).format(p=person, l=place)
    if not held:
        # A thing that was laid down can only be taken where it lies.
        if thing in world.left_at and world.left_at[thing] != world.stops[person][-1]:
            place = world.left_at[thing]
            world.stops[person].append(place)
            return rng.choice(GOES).format(p=person, l=place)
        world.holder[thing] = person
        return rng.choice(TAKES).format(p=person, o=thing)
    holder = world.holder[thing]
    assert holder is not None
    others = [other for other in people if world.stops[other][-1] == world.stops[holder][-1] and other != holder]
    if others and action < 0.75:
        other = rng.choice(others)
        world.holder[thing] = other
        return rng.choice(GIVES).format(p=holder, q=other, o=thing)
    world.holder[thing] = None
    world.left_at[thing] = world.stops[holder][-1]
    return rng.choice(DROPS).format(p=holder, o=thing)


def _ask_about(draw: Draw, world: _World) -> list[TrainedQuestion]:
    rng = draw.rng
    asked = []

    def ask(kind: str, answer: str, **fields: str) -> None:
        asked.append(question(rng.choice(JOURNEY_QUESTIONS[kind]), answer, **fields))

    for person in rng.sample(list(world.stops), min(len(world.stops), 3)):
        stops = world.stops[person]
        ask("person", stops[-1], p=person)
        once = [place for place in stops[1:] if stops.count(place) == 1]
        if once and rng.random() < 0.5:
            place = rng.choice(once)
            ask("before", stops[stops.index(place) - 1], p=person, l=place)
        if len(stops) > 1 and rng.random() < 0.3:
            ask("first", stops[0], p=person)
    for thing in world.holder:
        ask("object", world.place_of(thing), o=thing)
        holder = world.holder[thing]
        if holder is not None and rng.random() < 0.5:
            ask("holder", holder, o=thing)
    return rng.sample(asked, min(len(asked), 6))
