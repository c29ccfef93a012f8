"""Records with several fields in the notations of data: JSON, Python, YAML, INI, CSV and tables."""

import json
from collections.abc import Callable

from lengthen.data.retrieval.episode import Episode, Fact, Passages, question
from lengthen.data.retrieval.vocabulary import COMMON, Draw

__all__ = ["records"]

Record = dict[str, str]
_VALUES = ("number", "digits", "hexadecimal", "word", "phrase", "mixed", "thing")


def _yaml(name: str, record: Record) -> str:
    return "\n".join([f"{name}:", *(f"  {key}: {value}" for key, value in record.items())])


def _ini(name: str, record: Record) -> str:
    return "\n".join([f"[{name}]", *(f"{key}={value}" for key, value in record.items())])


NOTATIONS: dict[str, Callable[[str, Record], str]] = {
    "json": lambda name, record: json.dumps({"id": name, **record}),
    "python": lambda name, record: f"records[{name!r}] = {record!r}",
    "yaml": _yaml,
    "ini": _ini,
    "table": lambda name, record: "\n".join(
        [f"|{'|'.join(['id', *record])}|", "|" + "---|" * (1 + len(record)), f"|{'|'.join([name, *record.values()])}|"]
    ),
    "csv": lambda name, record: f"id,{','.join(record)}\n{name},{','.join(record.values())}",
}
"""By name: how a record is written."""
FIELD = (
    "records[{k!r}][{f!r}] == {v}", "Field {f} of record {k}: {v}", "jq 'select(.id == \"{k}\") | .{f}'\n{v}",
    "What does record {k} have in its field {f}? {v}",
)  # fmt: skip
OWNER = ("Which record has {known} in its field {f}? {v}", "Id of the record whose {f} is {known}: {v}")


def records(draw: Draw, count: int, _passages: Passages) -> Episode:
    """Records with the same fields; the questions ask for a record's field, and for the record of a field's value."""
    rng = draw.rng
    write = NOTATIONS[rng.choice(list(NOTATIONS))]
    fields = rng.sample(COMMON, rng.randrange(1, 6))
    kinds = {name: rng.choice(_VALUES) for name in fields}
    names = draw.keys(rng.choice(("label", "word", "identifier")), min(20, count))
    made = {name: {field: draw.value_of((kinds[field],)) for field in fields} for name in names}
    asked = []
    for name in rng.sample(names, min(len(names), rng.randrange(2, 9))):
        field = rng.choice(fields)
        if rng.random() < 0.75:
            asked.append(question(rng.choice(FIELD), made[name][field], k=name, f=field))
        else:
            asked.append(question(rng.choice(OWNER), name, f=field, known=made[name][field]))
    return Episode("records", tuple(Fact(write(name, made[name])) for name in names), tuple(asked), tuple(names))
