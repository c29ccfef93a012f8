"""Tasks over lists: how often a word was logged, the n-th item of a list, and the heading that a remark is under."""

from lengthen.data.retrieval.episode import Episode, Fact, Passages, listed, question
from lengthen.data.retrieval.vocabulary import COMMON, NOUNS, Draw

__all__ = ["counting", "positions", "sections"]

LOGS = (
    ("tally: {w}", " "), ("~ {w}", " ~ "), ("<log>{w}</log>", ", "), ("| {w} |", " | "), ("seen today: {w}", ", "),
    ("logger.info('{w}')", "', '"), ("{w};", "; "),
)  # fmt: skip
"""Lines that log words, and what stands between several of a line."""
COUNT = ("How many times was {w} logged? {v}", "Count of {w} in the log: {v}", "log.count('{w}') == {v}")
MOST = ("The word that was logged more often than any other: {v}", "Top of the log: {v}")
RANKED = ("The {n} words at the top of the log, the most frequent first: {v}", "log.most_common({n}) -> {v}")
COMMONEST = ("The {n} frequent words of the log, in the order in which they first appeared: {v}",)

_ORDINALS = (
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh",
    "twelfth",
)  # fmt: skip
_MOST_OFTEN = 9


def counting(draw: Draw, count: int, _passages: Passages) -> Episode:
    """Words logged in lines all over the text; the questions ask how often one was, and which were most often."""
    rng = draw.rng
    line, joint = rng.choice(LOGS)
    kinds = max(3, min(30, count))
    source = rng.choice((draw.invented, lambda: rng.choice(COMMON), lambda: rng.choice(NOUNS)))
    words = draw.several(source, kinds)
    asked = []
    if rng.random() < 0.5:  # a few words of different frequency before the rest
        top = rng.randrange(1, min(5, kinds))
        rest = rng.randrange(1, 4)
        times = sorted(rng.sample(range(rest + 1, rest + 1 + _MOST_OFTEN), top), reverse=True)
        times += [rng.randrange(1, rest + 1) for _ in range(kinds - top)]
        asked.append(question(rng.choice(MOST), words[0]))
        if top > 1:
            asked.append(question(rng.choice(RANKED), listed(words[:top]), n=str(top)))
    else:  # some that are all equally frequent, and others that come once
        top = rng.randrange(2, min(11, kinds))
        times = [rng.randrange(3, 7)] * top + [1] * (kinds - top)
    logged = [word for word, number in zip(words, times, strict=True) for _ in range(number)]
    rng.shuffle(logged)
    if not asked:
        frequent = sorted(words[:top], key=logged.index)
        asked.append(question(rng.choice(COMMONEST), listed(frequent), n=str(top)))
    for word in rng.sample(words, min(kinds, 3)):
        asked.append(question(rng.choice(COUNT), str(times[words.index(word)]), w=word))
    width = rng.choice((1, 1, 2, 4, 8, 16)) if len(logged) <= 2 * count else max(4, len(logged) // max(1, count))
    lines = [line.format(w=joint.join(logged[start : start + width])) for start in range(0, len(logged), width)]
    return Episode("counting", tuple(map(Fact, lines)), tuple(asked), ())


LISTS = (
    ("{k} packed, in this order: {items}.", ", "), ("queue {k}: {items}", " > "), ("{k}:\n- {items}", "\n- "),
    ("{k} = ['{items}']", "', '"), ("Reihenfolge bei {k}: {items}", ", "),
)  # fmt: skip
"""A list named `{k}`, and what stands between its items."""
ITEM = ("The {nth} item of {k}: {v}", "Which item of {k} comes {nth}? {v}")
LAST = ("The last item of {k}: {v}", "What closes the list of {k}? {v}")
NEXT = ("In {k}, what comes right after {item}? {v}", "{k}: after {item} follows {v}")


def positions(draw: Draw, count: int, _passages: Passages) -> Episode:
    """Short lists; the questions ask for items by their place and by their neighbor."""
    rng = draw.rng
    statement, joint = rng.choice(LISTS)
    names = draw.keys(rng.choice(("person", "word", "label")), max(1, min(8, count // 2)))
    kind = rng.choice(("word", "thing", "number", "mixed", "name"))
    lists = {name: [draw.value_of((kind,)) for _ in range(rng.randrange(3, len(_ORDINALS) + 1))] for name in names}
    asked = []
    for name in rng.sample(names, min(len(names), 4)):
        items = lists[name]
        form = rng.randrange(3)
        if form == 0:
            asked.append(question(rng.choice(LAST), items[-1], k=name))
        elif form == 1:
            place = rng.randrange(len(items) - 1)
            asked.append(question(rng.choice(NEXT), items[place + 1], k=name, item=items[place]))
        else:
            place = rng.randrange(len(items))
            asked.append(question(rng.choice(ITEM), items[place], k=name, nth=_ORDINALS[place]))
    facts = tuple(Fact(statement.format(k=name, items=joint.join(lists[name]))) for name in names)
    return Episode("positions", facts, tuple(asked), tuple(names))


HEADERS = ("=== Part {s} ===", "[[{s}]]", "-- begin of folio {s} --", "### Entry {s}", "(page {s} of the copy)")
MENTIONS = (
    "Here somebody scribbled: {k}.", "A remark about the {k} belongs here.", "Compare what is said of the {k}.",
    "(see also: {k})",
)  # fmt: skip
WHERE = ("Under which heading is the {k} brought up? Under {v}.", "Heading above the remark on the {k}: {v}")
WHAT = ("What is brought up in the remark under {s}? The {v}.", "Remark under {s}: {v}")


def sections(draw: Draw, count: int, _passages: Passages) -> Episode:
    """Headings all over the text and remarks between them; the questions ask for a remark's heading."""
    rng = draw.rng
    header = rng.choice(HEADERS)
    number = max(2, min(20, count // 2))
    if rng.random() < 0.5:
        first = rng.randrange(1, 30)
        labels = [str(first + place) for place in range(number)]
    else:
        labels = draw.keys(rng.choice(("label", "word")), number)
    remarks = dict(zip(draw.keys("thing", number), labels, strict=True))
    mention = rng.choice(MENTIONS)
    facts = []
    for key, label in remarks.items():
        facts += [Fact(header.format(s=label)), Fact(mention.format(k=key), prose=True)]
    asked = []
    for key in rng.sample(list(remarks), min(number, 4)):
        if rng.random() < 0.7:
            asked.append(question(rng.choice(WHERE), remarks[key], k=key))
        else:
            asked.append(question(rng.choice(WHAT), key, s=remarks[key]))
    return Episode("sections", tuple(facts), tuple(asked), (*remarks, *(header.format(s=s) for s in labels)))
