"""Answers a retrieval sequence's questions from its text alone, by parsing statements; it shares the templates only."""

import ast
import json
import re
from collections import Counter
from functools import cache
from itertools import product

from lengthen.data.retrieval import chains, copying, lists, lookups, python, records
from lengthen.data.retrieval.phrasings import PHRASINGS

KEYS = {
    "thing": r"[a-z]+ [a-z]+",
    "noun": r"[a-z]+",
    "town": r"[A-Z][a-z]+",
    "person": r"[A-Z][a-z]+ [A-Z][a-z]+",
    "label": r"[A-Z]{2}-\d{3}",
    "word": r"[a-z]+",
    "identifier": r"\w+",
}
NAME = r"[A-Za-z_]\w*"
LINE = re.MULTILINE


@cache
def regex(template, prose=False, **groups):
    """A pattern for a template: `{x}` is what `groups` say, else anything in a line; without prose, whole lines."""
    parts = re.split(r"\{(\w+)(?:!r)?\}", template)
    pattern, seen = "", set()
    for index, part in enumerate(parts):
        if index % 2 == 0:
            pattern += re.escape(part)
        elif part in seen:
            pattern += f"(?P={part})"
        else:
            seen.add(part)
            pattern += f"(?P<{part}>{groups.get(part, '.+?')})"
    return re.compile(pattern if prose else f"^{pattern}$", LINE)


@cache
def question_regex(template, **groups):
    """A pattern for what stands before an answer, from its beginning to its end."""
    prompt = template.split("{v}")[0].rstrip(" ")
    return re.compile(regex(prompt, True, **groups).pattern + r"\Z")


def joined(items):
    """A list as it is written: dates have commas of their own."""
    return ("; " if any("," in item for item in items) else ", ").join(items)


def answers(prompt, text):
    """Every answer that some task's statements in the text give to a question; lists are joined by commas."""
    return {answer for solve in SOLVERS for answer in solve(prompt, text) if answer is not None}


def _lookups(prompt, text):
    for phrasing in PHRASINGS:
        key = KEYS[phrasing.key]
        pairs = None
        for form, templates in (
            ("one", phrasing.one),
            ("every", [phrasing.every]),
            ("many", [phrasing.many]),
            ("reverse", [phrasing.reverse]),
        ):
            for template in templates:
                keys = rf"{key}(?:, {key})*" if form == "many" else key
                asked = question_regex(template, k=keys).fullmatch(prompt)
                if not asked:
                    continue
                if pairs is None:
                    pairs = {}
                    # A value before everything else is one word, or the sentence before would belong to it.
                    first = {"v": r"[^\s\"]+"} if phrasing.statement.lstrip('"').startswith("{v}") else {}
                    for match in regex(phrasing.statement, phrasing.prose, k=key, **first).finditer(text):
                        pairs.setdefault(match["k"], []).append(match["v"])
                    # What has another key for its value is a copied variable.
                    pairs = {k: values for k, values in pairs.items() if not set(values) & set(pairs)}
                if form == "reverse":
                    owners = [k for k, values in pairs.items() if asked["known"] in values]
                    yield owners[0] if len(owners) == 1 else None
                elif form == "many":
                    values = [list(dict.fromkeys(pairs.get(each, []))) for each in asked["k"].split(", ")]
                    yield joined([each[0] for each in values]) if all(len(each) == 1 for each in values) else None
                elif asked["k"] in pairs:
                    values = list(dict.fromkeys(pairs[asked["k"]]))
                    assert form == "every" or len(values) == 1, (prompt, values)
                    yield joined(values)


def _quotations(prompt, text):
    for statement, question in lookups.QUOTATIONS:
        asked = question_regex(question, k=KEYS["person"]).fullmatch(prompt)
        if asked:
            said = regex(statement.replace("{k}", asked["k"])).findall(text)
            yield said[0] if len(said) == 1 else None


def _variables(prompt, text):
    for style in chains.ASSIGNMENTS:
        for kind, templates in (("value", style.value), ("names", style.names)):
            for template in templates:
                asked = question_regex(template, x=NAME).fullmatch(prompt)
                if not asked:
                    continue
                values = {}
                places = {
                    m.start(): (m["x"], m["y"], None)
                    for m in regex(style.copy, style.prose, x=NAME, y=NAME).finditer(text)
                }
                for match in regex(style.first, style.prose, x=NAME).finditer(text):
                    places.setdefault(match.start(), (match["x"], None, match["v"]))
                copies = {}
                for _, (name, source, value) in sorted(places.items()):
                    if source is not None and source in copies | values:
                        copies[name] = source
                        values[name] = values[source]
                    else:
                        values[name] = value if source is None else source
                if kind == "value":
                    yield values.get(asked["x"])
                else:
                    members = [name for name in values if values[name] == asked["known"]]
                    yield ", ".join(members) or None


def _journeys(prompt, text):  # noqa: C901 - a story is replayed, event by event
    forms = {}
    for kind, templates in chains.JOURNEY_QUESTIONS.items():
        for template in templates:
            asked = question_regex(template, p=r"\w+", o=r"\w+", l=r"\w+").fullmatch(prompt)
            if asked:
                forms[kind] = asked
    if not forms:
        return
    word = {"p": r"[A-Z]\w+", "q": r"[A-Z]\w+", "o": r"[a-z]+", "l": r"[a-z]+"}
    events = []
    for kind, templates in (
        ("go", chains.GOES),
        ("take", chains.TAKES),
        ("drop", chains.DROPS),
        ("give", chains.GIVES),
    ):
        for template in templates:
            events += [
                (match.start(), kind, match.groupdict()) for match in regex(template, True, **word).finditer(text)
            ]
    stops, holder, left = {}, {}, {}
    for _, kind, who in sorted(events, key=lambda event: event[0]):
        if kind == "go":
            stops.setdefault(who["p"], []).append(who["l"])
        elif kind == "take":
            assert who["o"] not in holder or holder[who["o"]] is None
            assert who["o"] not in left or left[who["o"]] == stops[who["p"]][-1]  # taken where it lies
            holder[who["o"]] = who["p"]
        elif kind == "drop":
            assert holder[who["o"]] == who["p"]
            holder[who["o"]], left[who["o"]] = None, stops[who["p"]][-1]
        else:
            assert holder[who["o"]] == who["p"]
            assert stops[who["p"]][-1] == stops[who["q"]][-1]
            holder[who["o"]] = who["q"]
    for kind, asked in forms.items():
        visited = stops.get(asked["p"], []) if "p" in asked.groupdict() else []
        if kind == "person" and visited:
            yield visited[-1]
        elif kind == "first" and visited:
            yield visited[0]
        elif kind == "before" and visited:
            assert visited.count(asked["l"]) == 1
            yield visited[visited.index(asked["l"]) - 1]
        elif kind == "object" and asked["o"] in holder:
            owner = holder[asked["o"]]
            yield left[asked["o"]] if owner is None else stops[owner][-1]
        elif kind == "holder":
            yield holder.get(asked["o"])


def _counting(prompt, text):
    groups = (("count", lists.COUNT), ("most", lists.MOST), ("ranked", lists.RANKED), ("commonest", lists.COMMONEST))
    for kind, template in ((kind, each) for kind, templates in groups for each in templates):
        asked = question_regex(template, w=r"[a-z]+", n=r"\d+").fullmatch(prompt)
        if not asked:
            continue
        for line, joint in lists.LOGS:
            words = rf"[a-z]+(?:{re.escape(joint)}[a-z]+)*"
            logged = [word for match in regex(line, w=words).finditer(text) for word in match["w"].split(joint)]
            counts = Counter(logged)
            ranked = sorted(counts.values(), reverse=True)
            if kind == "count":
                yield str(counts[asked["w"]]) if asked["w"] in counts else None
            elif kind == "most" and counts and ranked.count(ranked[0]) == 1:
                yield max(counts, key=counts.get)
            elif kind == "ranked" and len(set(ranked[: int(asked["n"]) + 1])) > int(asked["n"]):
                yield ", ".join(sorted(counts, key=lambda w: -counts[w])[: int(asked["n"])])
            elif kind == "ranked" and len(ranked) == int(asked["n"]) == len(set(ranked)):
                yield ", ".join(sorted(counts, key=lambda w: -counts[w]))
            elif kind == "commonest" and counts and ranked.count(ranked[0]) == int(asked["n"]):
                yield ", ".join(word for word in counts if counts[word] == ranked[0])


def _positions(prompt, text):
    groups = (("item", lists.ITEM), ("last", lists.LAST), ("next", lists.NEXT))
    names = "|".join(KEYS[kind] for kind in ("person", "label", "word"))
    ordinals = [
        "first",
        "second",
        "third",
        "fourth",
        "fifth",
        "sixth",
        "seventh",
        "eighth",
        "ninth",
        "tenth",
        "eleventh",
        "twelfth",
    ]
    for kind, template in ((kind, each) for kind, templates in groups for each in templates):
        asked = question_regex(template, k=names, nth="[a-z]+").fullmatch(prompt)
        if not asked:
            continue
        for statement, joint in lists.LISTS:
            items = rf"[^\n]+(?:{re.escape(joint)}[^\n]+)*" if "\n" in joint else r"[^\n]+"
            made = regex(statement, k=re.escape(asked["k"]), items=items).findall(text)
            for _, found in made[:1]:
                found = found.split(joint)
                if kind == "item":
                    place = ordinals.index(asked["nth"]) if asked["nth"] in ordinals else len(found)
                    yield found[place] if place < len(found) else None
                elif kind == "last":
                    yield found[-1]
                elif asked["item"] in found[:-1]:
                    yield found[found.index(asked["item"]) + 1]


def _sections(prompt, text):
    for kind, templates in (("where", lists.WHERE), ("what", lists.WHAT)):
        for template in templates:
            asked = question_regex(template, k=KEYS["thing"], s=r"[\w-]+").fullmatch(prompt)
            if not asked:
                continue
            for header, mention in product(lists.HEADERS, lists.MENTIONS):
                headings = [(m.start(), m["s"]) for m in regex(header, s=r"[\w-]+").finditer(text)]
                remarks = [(m.start(), m["k"]) for m in regex(mention, True, k=KEYS["thing"]).finditer(text)]
                under = {k: max((h for h in headings if h[0] < at), default=(0, None))[1] for at, k in remarks}
                if kind == "where":
                    yield under.get(asked["k"])
                else:
                    there = [k for k in under if under[k] == asked["s"]]
                    yield there[0] if len(there) == 1 else None


def _parse_records(text):
    for line in re.findall(r'^\{"id": .*\}$', text, LINE):
        record = json.loads(line)
        yield record.pop("id"), record
    for name, record in re.findall(r"^records\[('.*?')\] = (\{.*\})$", text, LINE):
        yield ast.literal_eval(name), ast.literal_eval(record)
    for name, body in re.findall(r"^(\S+):\n((?:  \w+: .+\n)+)", text + "\n", LINE):
        yield name, dict(re.findall(r"^  (\w+): (.+)$", body, LINE))
    for name, body in re.findall(r"^\[(\S+)\]\n((?:\w+=.+\n)+)", text + "\n", LINE):
        yield name, dict(re.findall(r"^(\w+)=(.+)$", body, LINE))
    for fields, values in re.findall(r"^\|id\|(.+)\|\n\|[-|]+\|\n\|(.+)\|$", text, LINE):
        name, *values = values.split("|")
        yield name, dict(zip(fields.split("|"), values, strict=True))
    for fields, values in re.findall(r"^id,(.+)\n(.+)$", text, LINE):
        name, *values = values.split(",")
        yield name, dict(zip(fields.split(","), values, strict=True))


def _records(prompt, text):
    for kind, templates in (("field", records.FIELD), ("owner", records.OWNER)):
        for template in templates:
            plain = template.replace("{k!r}", "'{k}'").replace("{f!r}", "'{f}'")
            asked = question_regex(plain, k=r"[\w-]+", f=r"\w+").fullmatch(prompt)
            if not asked:
                continue
            made = dict(_parse_records(text))
            if kind == "field":
                yield made.get(asked["k"], {}).get(asked["f"])
            else:
                owners = [name for name in made if made[name].get(asked["f"]) == asked["known"]]
                yield owners[0] if len(owners) == 1 else None


def _strings(prompt, text):
    for statement, question in copying.STRINGS:
        asked = question_regex(question, k=KEYS["word"], joint=",? ?|-", offset=r"\d+").fullmatch(prompt)
        if not asked:
            continue
        for key, string in regex(statement, k=re.escape(asked["k"])).findall(text):
            assert key == asked["k"]
            for joint in (", ", "-", " "):
                if joint in string:
                    items = string.split(joint)
                    break
            if "offset" in asked.groupdict():
                yield joint.join(items[int(asked["offset"]) :])
            else:
                assert string.count(asked["cue"]) == 1
                yield string.split(asked["cue"])[1].removeprefix(joint)


def _passages(prompt, text):
    for template in copying.REPEAT:
        asked = question_regex(template).fullmatch(prompt)
        if asked:
            lines = [line for line in text.splitlines() if line.startswith(asked["cue"])]
            yield lines[0].removeprefix(asked["cue"]).strip() if len(set(lines)) == 1 else None


def _python(prompt, text):
    for statement, forms in python.STYLES:
        for form in forms:
            asked = question_regex(form, k=NAME, o=NAME).fullmatch(prompt)
            if asked:
                about = {name: re.escape(found) for name, found in asked.groupdict().items()}
                groups = {"o": NAME, "v": r"\d+|'[^'\n]*'"} | about
                values = {match["v"] for match in regex(statement, **groups).finditer(text)}
                yield values.pop() if len(values) == 1 else None


SOLVERS = (
    _lookups, _quotations, _variables, _journeys, _counting, _positions, _sections, _records, _strings, _passages,
    _python,
)  # fmt: skip
