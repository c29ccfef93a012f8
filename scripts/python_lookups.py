"""Look-ups written as Python, for pretraining `tiny`: values given to names in source code, asked for later in it."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Lookups", "Window"]

_LEAST_AROUND = 8  # tokens of source code in a window
_CONSONANTS, _VOWELS = "bcdfghjklmnprstvwz", "aeiou"

# A statement and the questions about it. `{k}` is a name or a key, `{v}` the value; a question ends in it.
_STYLES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("{k} = {v}", ("print({k})  # {v}", "assert {k} == {v}", ">>> {k}\n{v}", "# {k} is {v}", "{k}  # {v}")),
    ("self.{k} = {v}", ("self.{k} == {v}", "print(self.{k})  # {v}", "assert self.{k} == {v}")),
    ("{K} = {v}", ("if {K} == {v}", "print({K})  # {v}", "# the value of {K}: {v}")),
    (
        '{d}["{k}"] = {v}',
        ('print({d}["{k}"])  # {v}', '{d}["{k}"] == {v}', '>>> {d}["{k}"]\n{v}', 'assert {d}["{k}"] == {v}'),
    ),
    ("{d}['{k}'] = {v}", ("{d}['{k}']  # {v}", "print({d}['{k}'])  # {v}", "assert {d}['{k}'] == {v}")),
    ('    "{k}": {v},', ('{d}["{k}"]  # {v}', '    "{k}": {v}', 'print({d}.get("{k}"))  # {v}')),
    ("    '{k}': {v},", ("{d}['{k}'] == {v}", "    '{k}': {v}")),
    ("def {k}():\n    return {v}", ("{k}()  # {v}", "assert {k}() == {v}", ">>> {k}()\n{v}", "print({k}())  # {v}")),
    ("# {k}: {v}", ("# {k}: {v}", "# see {k}: {v}")),
    ("# {k} has number {v}", ("# the number of {k} is {v}", "# which number has {k}? {v}")),
    ("{d}.append(('{k}', {v}))", ("dict({d})['{k}']  # {v}", "('{k}', {v}) in {d}", "for {k}: {v}")),
    ("{d}.set('{k}', {v})", ("{d}.get('{k}')  # {v}", "assert {d}.get('{k}') == {v}")),
    ("{d} {k} -> {v}", ("{d} {k} -> {v}", "{k} -> {v}")),
    ("{k}: int = {v}", ("int({k})  # {v}", "{k} == {v}")),
    ("parser.add_argument('--{k}', default={v})", ("args.{k}  # {v}", "--{k} {v}")),
)  # fmt: skip


@dataclass(frozen=True)
class Window:
    """Token ids of one window, (T,), and the loss weight of each."""

    ids: np.ndarray
    weights: np.ndarray


class Lookups:
    """Makes windows of source code with facts in it, and questions at the end.

    Args:
        encode: text to token ids, without special tokens.
        streams: token ids of documents, the text around.
        breaks: for each token id, whether it begins with a line break: facts go before these.
        tokens: T, of a window.
        answer_weight: loss weight of an answer's tokens; the text around has 1, facts and questions a little.
    """

    def __init__(
        self,
        encode: Callable[[str], list[int]],
        streams: Sequence[np.ndarray],
        breaks: np.ndarray,
        tokens: int,
        answer_weight: float = 4.0,
    ):
        self._encode, self._streams, self._breaks = encode, streams, breaks
        self._tokens, self._answer_weight = tokens, answer_weight
        self._lengths = [len(stream) for stream in streams]

    def window(self, rng: random.Random) -> Window:
        """One window of exactly `tokens` tokens."""
        while True:
            facts, questions = self._facts(rng)
            stated = [self._encode(f"\n{fact}") for fact in facts]
            asked = [(self._encode(f"\n{prompt}"), self._encode(answer)) for prompt, answer in questions]
            cost = sum(map(len, stated)) + sum(len(head) + len(tail) for head, tail in asked)
            if cost + _LEAST_AROUND <= self._tokens:
                return self._assemble(rng, stated, asked, self._tokens - cost)

    def _facts(self, rng: random.Random) -> tuple[list[str], list[tuple[str, str]]]:
        styles = rng.sample(_STYLES, 1 if rng.random() < 0.7 else 2)
        value, name = (
            rng.choice((_number, _number, _number, _string, _mixed)),
            rng.choice((_word, _word, _identifier, _capital)),
        )
        owner, used = _word(rng), set()
        facts, questions = [], []
        for _ in range(rng.choice((1, 1, 2, 3, 4, 5, 6))):
            key = name(rng)
            if key.lower() in used:
                continue
            used.add(key.lower())
            statement, forms = rng.choice(styles)
            given = value(rng)
            fields = {"k": key, "K": key.upper(), "d": owner}
            facts.append(statement.format(v=given, **fields))
            prompt = rng.choice(forms).format(v="\0", **fields).split("\0")[0]
            # The answer takes the space before it, as tokens do.
            bare = prompt.rstrip(" ")
            questions.append((bare, prompt[len(bare) :] + given))
        rng.shuffle(questions)
        return facts, questions[: rng.randrange(1, 1 + min(4, len(questions)))]

    def _assemble(
        self, rng: random.Random, stated: list[list[int]], asked: list[tuple[list[int], list[int]]], room: int
    ) -> Window:
        stream = self._streams[rng.choices(range(len(self._streams)), self._lengths)[0]]
        start = rng.randrange(0, len(stream) - room + 1)
        around = stream[start : start + room]
        places = np.nonzero(self._breaks[around])[0].tolist() or [room]
        # Now and then right before the questions: near copies are learned first.
        places = sorted(rng.choice(places) if rng.random() < 0.8 else room for _ in stated)
        ids: list[int] = []
        weights: list[float] = []

        def add(tokens: Sequence[int], weight: float) -> None:
            ids.extend(tokens)
            weights.extend([weight] * len(tokens))

        done = 0
        for place, fact in zip(places, stated, strict=True):
            add(around[done:place].tolist(), 1.0)
            add(fact, 0.3)
            done = place
        add(around[done:].tolist(), 1.0)
        for head, tail in asked:
            add(head, 0.3)
            add(tail, self._answer_weight)
        return Window(np.array(ids, dtype=np.int64), np.array(weights, dtype=np.float32))


def _word(rng: random.Random) -> str:
    return "".join(rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(rng.randrange(2, 5)))


def _capital(rng: random.Random) -> str:
    return _word(rng).capitalize()


def _identifier(rng: random.Random) -> str:
    return f"{_word(rng)}_{_word(rng)}" if rng.random() < 0.6 else f"{_word(rng)}{rng.randrange(100)}"


def _number(rng: random.Random) -> str:
    return str(rng.randrange(10 ** rng.randrange(1, 7)))


def _string(rng: random.Random) -> str:
    return f"'{_word(rng)}'" if rng.random() < 0.5 else f'"{_word(rng)} {_word(rng)}"'


def _mixed(rng: random.Random) -> str:
    draw = rng.random()
    if draw < 0.4:
        return _number(rng)
    if draw < 0.6:
        return hex(rng.randrange(16**4))
    if draw < 0.8:
        return _string(rng)
    return f"{rng.randrange(100)}.{rng.randrange(100)}"
