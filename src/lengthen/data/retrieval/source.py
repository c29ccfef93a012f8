"""Retrieval sequences in tokens: of exact lengths, each a function of seed and index, every token with a weight."""

import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from lengthen.data.blocks import Block
from lengthen.data.retrieval.documents import SurroundingText
from lengthen.data.retrieval.episode import Episode
from lengthen.data.retrieval.example import INTRODUCTIONS, Placement, RetrievalExample, Role, assemble
from lengthen.data.retrieval.lookups import single
from lengthen.data.retrieval.tasks import ONCE, SHARES, TASKS
from lengthen.data.retrieval.vocabulary import Draw, NoneLeftError
from lengthen.data.skip_wise import skip_positions
from lengthen.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["LEAST_TOKENS", "EncodedSequence", "Retrieval", "Settings"]

LEAST_TOKENS = 256
"""A sequence of fewer tokens has hardly room for facts and text around them."""

Haystack = Callable[[int], str]
"""The text around, of about so many tokens; the same number gives the same text, and more go on behind it."""

_LEAD = 48  # tokens at the beginning that may be cut off to reach a length exactly
_TOKENS_PER_FACT = 40
_TOKENS_PER_EPISODE = 4096
_MOST_COST = 0.5  # share of a sequence that facts and questions may take
_INTRODUCED = 0.25  # share of the sequences that begin with a word about what is to come
_TRIES = 60
_FITS = 8


@dataclass(frozen=True)
class Settings:
    """Settings of the sequences.

    Attributes:
        tasks: by name (see `TASKS`), how often each comes.
        facts: the most facts of an episode, about.
        answer_weight: loss weight of an answer's tokens.
        text_weight: of the text around; facts and questions have none.
        bare: share of the sequences that are lists of facts without any text around.
        early: share of the episodes whose facts stand in the first tenth of the text.
        middle: share of the sequences that ask some questions before the end.
        lengths: where given, a block is of several sequences whose lengths are drawn evenly in the logarithm, from the
            first to the second number of tokens.
    """

    tasks: dict[str, float] = field(default_factory=lambda: dict(SHARES))
    facts: int = 40
    answer_weight: float = 3.0
    text_weight: float = 0.3
    bare: float = 0.15
    early: float = 0.2
    middle: float = 0.25
    lengths: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class EncodedSequence:
    """One sequence in tokens.

    Attributes:
        input_ids: int64, (T,).
        weights: float32, (T,): loss weight of each token.
        example: what it was made of; its beginning is cut, and may have an introduction before it.
    """

    input_ids: np.ndarray
    weights: np.ndarray
    example: RetrievalExample


class Retrieval:
    """Makes blocks of retrieval sequences; a block is a function of seed and index alone.

    Args:
        tokenizer: of the model.
        documents: the text around; None makes lists of facts only.
        sequence_length: T, tokens of a block.
        settings: see there.
        seed: of all draws.
        target: the context whose positions are to be covered by one jump (see `skip_positions`); None for none.

    Raises:
        DataError: sequences would be too short or longer than a block, or a task is unknown.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        documents: SurroundingText | None,
        sequence_length: int,
        settings: Settings,
        seed: int,
        target: int | None = None,
    ):
        shortest, longest = settings.lengths or (sequence_length, sequence_length)
        if shortest < LEAST_TOKENS or longest > sequence_length:
            raise DataError(
                f"retrieval sequences of {shortest} to {longest} tokens were asked for, in blocks of "
                f"{sequence_length}; lengths from {LEAST_TOKENS} to the block's are possible"
            )
        unknown = [name for name in settings.tasks if name not in TASKS]
        if unknown or sum(settings.tasks.values()) == 0:
            raise DataError(
                f"the retrieval tasks {', '.join(unknown) or 'have no weight, so none'} can't be made; choose from "
                f"{', '.join(TASKS)}"
            )
        self.sequence_length = sequence_length
        self._tokenizer, self._documents, self._settings = tokenizer, documents, settings
        self._seed, self._target = seed, target
        self._prefix = _special_prefix(tokenizer)

    def block(self, index: int) -> Block:
        """The block numbered `index`, of exactly `sequence_length` tokens, each of its sequences a segment.

        Args:
            index: any number from 0 on.

        Raises:
            DataError: no sequence of such a length can be made with this tokenizer.
        """
        made = self.sequences(index)
        weights = np.concatenate([part.weights for part in made])
        positions = None
        if self._target is not None:
            positions = skip_positions(self.sequence_length, self._target, np.random.default_rng((self._seed, index)))
        return Block(
            np.concatenate([part.input_ids for part in made]),
            tuple(len(part.input_ids) for part in made),
            positions=positions,
            trained=weights > 0,
            loss_weights=weights,
        )

    def sequences(self, index: int) -> list[EncodedSequence]:
        """The sequences of that block.

        Args:
            index: of the block.

        Raises:
            DataError: no sequence of such a length can be made with this tokenizer.
        """
        rng = random.Random(f"retrieval {self._seed} {index}")
        return [self._sequence(rng, length) for length in self._lengths(rng)]

    def _lengths(self, rng: random.Random) -> list[int]:
        if self._settings.lengths is None:
            return [self.sequence_length]
        shortest, longest = self._settings.lengths
        lengths, room = [], self.sequence_length
        while room:
            length = min(room, round(shortest * (longest / shortest) ** rng.random()))
            if room - length < LEAST_TOKENS:
                length = room
            lengths.append(length)
            room -= length
        return lengths

    def _sequence(self, rng: random.Random, length: int) -> EncodedSequence:
        room = length // _TOKENS_PER_FACT
        bare = self._documents is None or rng.random() < self._settings.bare
        for attempt in range(_TRIES):
            draw = Draw(rng)
            episodes = self._episodes(draw, length, max(1, room))
            # A cue that is everywhere in these documents must not stop the run: the last tries are without them.
            with suppress(NoneLeftError):  # of lines like the facts, in a long sequence without any text around
                encoded = self._fit(draw, episodes, length, bare or attempt > _TRIES // 2)
                if encoded is not None:
                    return encoded
            room = room * 3 // 4
        raise DataError(
            f"no retrieval sequence of exactly {length} tokens could be made with this tokenizer; choose a longer one"
        )

    def _episodes(self, draw: Draw, length: int, room: int) -> list[Episode]:
        """Episodes with at most about `room` facts together; long sequences have more of them."""
        rng, tasks = draw.rng, self._settings.tasks
        number = rng.choices((1, 2, 3), (0.5, 0.3, 0.2))[0] + length // _TOKENS_PER_EPISODE
        number = min(number, max(1, room // 4))
        most = max(1, min(self._settings.facts, room // number))
        names = rng.choices(list(tasks), list(tasks.values()), k=number)
        # Two of these would ask the same question with two answers; the others have keys of their own.
        names = [name for at, name in enumerate(names) if name not in ONCE or name not in names[:at]]

        def passage(least: int, longest: int) -> str | None:
            return None if self._documents is None else self._documents.passage(rng, least, longest)

        def facts() -> int:
            """Few and many: half of the draws are even in the logarithm, half are even."""
            return round(most ** rng.random() if rng.random() < 0.5 else rng.uniform(1, most))

        episodes = []
        for name in names:
            with suppress(NoneLeftError):  # a long sequence has room for more episodes than there are places or towns
                episodes.append(TASKS[name](draw, facts(), passage))
        return episodes

    def _fit(self, draw: Draw, episodes: list[Episode], length: int, bare: bool) -> EncodedSequence | None:
        """A sequence of exactly `length` tokens; None where the episodes are too long or the text has their cues."""
        first = [*self._prefix, *(self._introduction(draw.rng) if draw.rng.random() < _INTRODUCED else [])]
        wanted = length - len(first)
        cost = self._count(_joined(episodes))
        if not any(episode.questions for episode in episodes) or cost > _MOST_COST * wanted:
            return None
        haystack = self._fillers(draw, episodes) if bare else self._window(draw)
        room, seed = wanted - cost + _LEAD // 2, draw.rng.getrandbits(64)
        settings = self._settings
        for _ in range(_FITS):
            text = haystack(room)
            if any(cue in text for episode in episodes for cue in episode.cues):
                return None
            # Characters of the tokens that may be cut.
            lead = len(text) * _LEAD // max(room, _LEAD)
            placement = Placement(lead, settings.early, settings.middle)
            role: Role = "template" if bare else "text"
            example = assemble(random.Random(seed), text, role, episodes, placement)
            ids, weights, starts = self._encode(example)
            over = len(ids) - wanted
            if over >= 0 and (over == 0 or starts[over] <= lead):
                kept = np.concatenate([np.zeros(len(first), dtype=np.float32), weights[over:]])
                return EncodedSequence(np.array([*first, *ids[over:]], dtype=np.int64), kept, example)
            room += _LEAD // 3 - over
            if room < _LEAD:
                return None
        return None

    def _window(self, draw: Draw) -> Haystack:
        assert self._documents is not None
        documents = self._documents
        start = draw.rng.randrange(len(documents))
        return lambda tokens: documents.window(start, tokens)

    def _fillers(self, draw: Draw, episodes: Sequence[Episode]) -> Haystack:
        """Lines like the facts, with keys of their own, as the text around."""
        make = next((episode.filler for episode in episodes if episode.filler is not None), None)
        while make is None:
            make = single(draw, 1, lambda _least, _most: None).filler
        lines = [make() for _ in range(16)]
        per_line = self._count("\n".join(lines)) / len(lines)

        def take(tokens: int) -> str:
            count = max(1, round(tokens / per_line))
            lines.extend(make() for _ in range(count - len(lines)))
            return "\n".join(lines[:count]) + "\n"

        return take

    def _introduction(self, rng: random.Random) -> list[int]:
        return self._ids(rng.choice(INTRODUCTIONS))

    def _count(self, text: str) -> int:
        return len(self._ids(text))

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _encode(self, example: RetrievalExample) -> tuple[list[int], np.ndarray, list[int]]:
        """Ids, loss weights (float32), and the character at which each token begins."""
        by_role = {"text": self._settings.text_weight, "template": 0.0, "answer": self._settings.answer_weight}
        if not self._tokenizer.is_fast:  # no offsets: each piece by itself
            ids: list[int] = []
            weights: list[float] = []
            starts: list[int] = []
            start = 0
            for piece in example.pieces:
                found = self._ids(piece.text)
                ids += found
                weights += [by_role[piece.role]] * len(found)
                starts += [start + len(piece.text) * at // len(found) for at in range(len(found))]
                start += len(piece.text)
            return ids, np.array(weights, dtype=np.float32), starts
        encoded = self._tokenizer(example.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        offsets = np.array(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        answer = _characters_before(example, "answer")
        text = _characters_before(example, "text")
        first, last = offsets[:, 0], offsets[:, 1]
        weights_T = np.where(text[last] - text[first] == last - first, by_role["text"], 0.0)
        # A token that begins with the space before an answer is the answer's.
        weights_T = np.where(answer[last] > answer[first], by_role["answer"], weights_T)
        return encoded["input_ids"], weights_T.astype(np.float32), first.tolist()


def _characters_before(example: RetrievalExample, role: Role) -> np.ndarray:
    """How many characters of a role stand before each character, and in all, int64."""
    marks = np.concatenate([np.full(len(piece.text), piece.role == role) for piece in example.pieces])
    return np.concatenate([[0], np.cumsum(marks)])


def _joined(episodes: Sequence[Episode]) -> str:
    facts = [fact.text for episode in episodes for fact in episode.facts]
    asked = [q.prompt + q.trained for episode in episodes for q in episode.questions]
    return "\n".join([*facts, *asked])


def _special_prefix(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The tokens that the tokenizer puts before every text, such as a begin token."""
    whole, plain = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False))
    begin = next(at for at in range(len(whole)) if whole[at : at + len(plain)] == plain)
    return list(whole[:begin])
