"""Key-value tasks: one fact or many, keys with several values, several keys at once, from a value back to its key."""

from lengthen.data.retrieval.episode import Episode, Fact, Passages, TrainedQuestion, listed, question
from lengthen.data.retrieval.phrasings import PHRASINGS, Phrasing
from lengthen.data.retrieval.vocabulary import COMMON, Draw

__all__ = ["lookup", "many_values", "quotation", "single"]

_MOST_ASKED = 10
_FEW = ("noun", "town")  # kinds of keys of which there are too few to fill a sequence with

QUOTATIONS = (
    ('{k} once wrote: "{v}"', 'What did {k} once write? {k} wrote: "{v}"'),
    ('On the wall, in the hand of {k}, one could read: "{v}"', 'In the hand of {k} one could read: "{v}"'),
    ("<{k}> {v}", "Quote the chat message of <{k}>: {v}"),
    ("{k}'s motto - {v}", "Give {k}'s motto word for word: {v}"),
)
"""A statement, and its question. `{k}` is a person."""


def single(draw: Draw, _count: int, _passages: Passages) -> Episode:
    """One fact, one question."""
    return _lookup(draw, "single", 1, [1])


def lookup(draw: Draw, count: int, _passages: Passages) -> Episode:
    """Many keys, of which some are asked for: alone, several at once, or by their values."""
    return _lookup(draw, "lookup", count, [1] * count)


def many_values(draw: Draw, count: int, _passages: Passages) -> Episode:
    """Keys that have several values, all of which are asked for."""
    values: list[int] = []
    while sum(values) < max(2, count):
        values.append(draw.rng.choice((1, 2, 3, 4)))
    return _lookup(draw, "many_values", len(values), [max(2, values[0]), *values[1:]])


def quotation(draw: Draw, count: int, passages: Passages) -> Episode:
    """Sentences that people said, to be quoted."""
    statement, asked = draw.rng.choice(QUOTATIONS)
    people = draw.keys("person", min(count, 8))
    quotes = {}
    for person in people:
        words = passages(4, 24) or " ".join(draw.rng.choice(COMMON) for _ in range(draw.rng.randrange(4, 16)))
        quotes[person] = words.replace('"', "'")
    chosen = draw.rng.sample(people, min(len(people), 3))
    return Episode(
        "quotation",
        tuple(Fact(statement.format(k=person, v=quotes[person])) for person in people),
        tuple(question(asked, quotes[person], k=person) for person in chosen),
        tuple(people),
    )


def _lookup(draw: Draw, task: str, count: int, values_of: list[int]) -> Episode:
    phrasing = draw.rng.choice(PHRASINGS)
    kinds = phrasing.values if draw.rng.random() < 0.3 else (draw.rng.choice(phrasing.values),)
    keys = draw.keys(phrasing.key, count)
    values = {key: [draw.value_of(kinds) for _ in range(number)] for key, number in zip(keys, values_of, strict=True)}
    pairs = [(key, value) for key in keys for value in values[key]]
    draw.rng.shuffle(pairs)
    in_order: dict[str, list[str]] = {}
    for key, value in pairs:
        in_order.setdefault(key, []).append(value)

    def state(key: str, value: str) -> str:
        return phrasing.statement.format(k=key, v=value)

    return Episode(
        task,
        tuple(Fact(state(key, value), phrasing.prose) for key, value in pairs),
        tuple(_questions(draw, phrasing, in_order)),
        tuple(keys),
        None if phrasing.key in _FEW else lambda: state(draw.keys(phrasing.key, 1)[0], draw.value_of(kinds)),
    )


def _questions(draw: Draw, phrasing: Phrasing, values: dict[str, list[str]]) -> list[TrainedQuestion]:
    """Some questions of each form; no key is asked for twice in the same form."""
    several = [key for key in values if len(values[key]) > 1]
    alone = [key for key in values if len(values[key]) == 1]
    draw.rng.shuffle(several)
    draw.rng.shuffle(alone)
    asked = [question(phrasing.every, listed(values[key]), k=key) for key in several[:4]]
    room = draw.rng.randrange(2, _MOST_ASKED - len(asked) + 1)
    asked += [question(draw.rng.choice(phrasing.one), values[key][0], k=key) for key in alone[:room]]
    if len(alone) > 2 and draw.rng.random() < 0.3:
        keys = draw.rng.sample(alone, min(len(alone), draw.rng.randrange(2, 5)))
        asked.append(question(phrasing.many, listed([values[key][0] for key in keys]), k=listed(keys)))
    if draw.rng.random() < 0.3:
        key = draw.rng.choice(list(values))
        asked.append(question(phrasing.reverse, key, known=draw.rng.choice(values[key])))
    return asked
