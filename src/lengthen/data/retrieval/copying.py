"""Copying: strings that go on from a given place, and passages that are repeated word for word from their beginning."""

from lengthen.data.retrieval.episode import Episode, Fact, Passages, question
from lengthen.data.retrieval.vocabulary import COMMON, Draw

__all__ = ["passages", "strings"]

STRINGS = (
    ("tape {k}: {s}", "tape {k}, copied from \"{cue}\" on: {cue}{joint}{v}"),
    ("The {k} sequence runs {s}.", "In the {k} sequence, \"{cue}\" is followed by: {v}."),
    ("{k} <- [{s}]", "{k}[{offset}:] is {v}"),
)  # fmt: skip
"""A statement of a string, and a question about what comes after its first `{offset}` items."""
REPEAT = (
    "Repeat the passage that begins with \"{cue}\".\n{cue} {v}",
    "Word for word, what came after \"{cue}\"? {v}",
    "Wie ging die Stelle weiter, die mit \"{cue}\" beginnt? {v}",
)  # fmt: skip

_CUE = 5  # words


def strings(draw: Draw, count: int, _passages: Passages) -> Episode:
    """Strings of random items; the questions ask for the rest of one after a cue inside it."""
    rng = draw.rng
    statement, asked = rng.choice(STRINGS)
    joint = rng.choice((" ", ", ", "-"))
    makes = (
        lambda: str(rng.randrange(100)),
        lambda: rng.choice(COMMON),
        draw.invented,
        lambda: f"{rng.getrandbits(16):04x}",
    )
    make = rng.choice(makes)
    names = draw.keys("word", max(1, min(6, count // 2)))
    questions, facts = [], []
    for name in names:
        items = [make() for _ in range(rng.randrange(6, 20))]
        text = joint.join(items)
        facts.append(Fact(statement.format(k=name, s=text)))
        starts = [at for at in range(2, len(items)) if text.count(joint.join(items[at - 2 : at])) == 1]
        if not starts:
            continue
        at = rng.choice(starts)
        cue, rest = joint.join(items[at - 2 : at]), joint.join(items[at:])
        questions.append(question(asked, rest, k=name, cue=cue, joint=joint, offset=str(at)))
    return Episode("strings", tuple(facts), tuple(questions[:3]), tuple(names))


def passages(draw: Draw, count: int, find: Passages) -> Episode:
    """Passages of the run's own documents in another place; the questions ask how one continues."""
    asked = draw.rng.choice(REPEAT)
    found = [find(12, 60) for _ in range(min(3, count))]
    cues: dict[str, str] = {}
    for passage in found:
        words = passage.split(" ") if passage else [draw.rng.choice(COMMON) for _ in range(draw.rng.randrange(12, 30))]
        cue, rest = " ".join(words[:_CUE]), " ".join(words[_CUE:])
        if not any(cue in f"{other} {more}" or other in f"{cue} {rest}" for other, more in cues.items()):
            cues[cue] = rest
    facts = tuple(Fact(f"{cue} {rest}") for cue, rest in cues.items())
    return Episode("passages", facts, tuple(question(asked, rest, cue=cue) for cue, rest in cues.items()), tuple(cues))
