"""What is found of facts in languages and of kinds that no training question has: a run beside its base.

    python benchmarks/unseen_questions.py --haystack books/validation --json docs/results/usable/unseen.json

Five facts in each text, at depths from 0 to 1, each asked for; the text is English. Training questions are in English,
some in German, French and Spanish, and their values are numbers (not of five digits), hexadecimal, words, names, towns,
dates, times, identifiers and labels (`lengthen.data.retrieval.vocabulary.VALUES`). Four minutes for SmolLM2-135M on one
core.
"""

import argparse
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lengthen.evaluation.compare import Probe, compare, find_pair
from lengthen.evaluation.haystack import Haystack, read_haystack
from lengthen.evaluation.prompts import Prompt, encode, make_prompt
from lengthen.evaluation.retrieval.needle import DEPTHS, hide
from lengthen.files import write_json
from record import record


@dataclass(frozen=True)
class Kind:
    """A kind of fact: a line with {key} and {value} in it, what the value follows after a space, keys, and values."""

    fact: str
    question: str
    keys: str
    value: Callable[[random.Random], str]


def number(rng: random.Random) -> str:
    return str(rng.randrange(10_000, 100_000))


def version(rng: random.Random) -> str:
    return ".".join(str(rng.randrange(most)) for most in (10, 40, 100))


def roman(rng: random.Random) -> str:
    left, text = rng.randrange(100, 4000), ""
    for worth, letters in (
        (1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"), (50, "L"), (40, "XL"), (10, "X"),
        (9, "IX"), (5, "V"), (4, "IV"), (1, "I"),
    ):  # fmt: skip
        text, left = text + left // worth * letters, left % worth
    return text


def position(rng: random.Random) -> str:
    return f"{rng.uniform(0, 90):.2f} {rng.choice('NS')}, {rng.uniform(0, 180):.2f} {rng.choice('EW')}"


KINDS = {
    "Italian": Kind(
        "Il numero segreto della stazione di {key} è {value}.",
        "Domanda: qual è il numero segreto della stazione di {key}? "
        "Risposta: il numero segreto della stazione di {key} è",
        "Torino Bari Siena Pisa Trento Lecce Padova Rimini Como Ancona",
        number,
    ),
    "Portuguese": Kind(
        "A oficina de {key} tem o número {value}.",
        "Pergunta: que número tem a oficina de {key}? Resposta: a oficina de {key} tem o número",
        "Joana Tiago Beatriz Rui Leonor Duarte Sofia Nuno Catarina Gonçalo",
        number,
    ),
    "Dutch": Kind(
        "Het geheime getal van {key} is {value}.",
        "Vraag: wat is het geheime getal van {key}? Antwoord: het geheime getal van {key} is",
        "Utrecht Leiden Gouda Zwolle Breda Delft Tilburg Arnhem Haarlem Venlo",
        number,
    ),
    "version numbers": Kind(
        "The library {key} is pinned at release {value}.",
        "At which release is the library {key} pinned? The library {key} is pinned at release",
        "zlib numpy curl sqlite boost nginx redis pandas flask ncurses",
        version,
    ),
    "Roman numerals": Kind(
        "On the statue of the {key} one reads the year {value}.",
        "Which year does one read on the statue of the {key}? On the statue of the {key} one reads the year",
        "bishop sailor miner poet duchess surgeon drummer weaver pilgrim astronomer",
        roman,
    ),
    "positions on a map": Kind(
        "The wreck of the {key} lies at {value}.",
        "Where does the wreck of the {key} lie? The wreck of the {key} lies at",
        "Albatross Borealis Calliope Dolphin Endeavour Fortuna Galatea Hesperus Icarus Juno",
        position,
    ),
}


def make(tokenizer: Any, haystack: Haystack, tokens: int, kind: Kind, rng: random.Random) -> Prompt:
    """A prompt of about so many tokens, as no length has to be exact here."""
    keys = rng.sample(kind.keys.split(), len(DEPTHS))
    values = [kind.value(rng) for _ in keys]
    facts = [kind.fact.format(key=key, value=value) for key, value in zip(keys, values, strict=True)]
    questions = [kind.question.format(key=key) for key in keys]
    size = tokens - sum(len(encode(tokenizer, f"\n{fact}\n")) for fact in facts) - 64
    start = rng.choice(haystack.sentences)
    text = "\n".join([*hide(haystack, start, size, list(zip(DEPTHS, facts, strict=True))), ""])
    return make_prompt(tokenizer, text, list(zip(questions, values, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2-135m-instruct")
    parser.add_argument("--adapter", default="docs/results/usable/adapter")
    parser.add_argument("--haystack", type=Path, help="prose; default the documentation of this Python")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    pair = find_pair(options.base, options.base, adapter=options.adapter)
    haystack = Haystack(pair.tokenizer, read_haystack(options.haystack)[1], str(options.haystack))
    probes = []
    for name, kind in KINDS.items():
        rngs = [random.Random(f"{name} {number}") for number in range(options.prompts)]
        prompts = [make(pair.tokenizer, haystack, options.tokens, kind, rng) for rng in rngs]
        probes.append(Probe(name, options.tokens, prompts, DEPTHS))
    found = compare(pair, probes, [])
    print("| | base | run | run - base, 95% | nats a token: base / run |\n|---|---|---|---|---|")
    for row in (row for row in found["scores"] if row["depth"] is None):
        base, run = row["base"], row["run"]
        print(
            f"| {row['task']} | {base['score']:.2f} | {run['score']:.2f} | {row['low']:+.2f} to {row['high']:+.2f} "
            f"| {base['nats']:.2f} / {run['nats']:.2f} |"
        )
    if options.json:
        write_json(options.json, {**record(), "results": found["scores"]})


if __name__ == "__main__":
    main()
