"""One task inside a sequence: the facts that it scatters and the questions that it asks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

__all__ = ["Episode", "Fact", "Passages", "TrainedQuestion", "listed", "question"]

Passages = Callable[[int, int], str | None]
"""Gives a passage of so many words at least and at most from the run's own documents; None where there is none."""


@dataclass(frozen=True)
class Fact:
    """A statement that is put into the text.

    Attributes:
        text: a sentence, a line or several lines.
        prose: whether it may stand inside a paragraph, else it gets lines of its own.
    """

    text: str
    prose: bool = False


@dataclass(frozen=True)
class TrainedQuestion:
    """A question with its answer.

    Attributes:
        prompt: the question and the beginning of its answer, without a space at its end.
        space: between prompt and answer, trained as a part of the answer: at inference nothing stands behind a prompt.
        answer: what is asked for.
        end: what closes the answer, trained too: where an answer ends belongs to it.
    """

    prompt: str
    space: str
    answer: str
    end: str

    @property
    def trained(self) -> str:
        """The text after the prompt."""
        return self.space + self.answer + self.end


@dataclass(frozen=True)
class Episode:
    """A task with its facts and questions.

    Attributes:
        task: its name.
        facts: in the order in which they have to stand in the text.
        questions: in any order, all about these facts only.
        cues: strings that must not be in the text around, or the questions would have a second answer.
        filler: makes another line that looks like the facts and changes no answer; None where there is no such line.
    """

    task: str
    facts: tuple[Fact, ...]
    questions: tuple[TrainedQuestion, ...]
    cues: tuple[str, ...]
    filler: Callable[[], str] | None = field(default=None, compare=False)


def question(template: str, answer: str, **fields: str) -> TrainedQuestion:
    """A question from its template, in which `{v}` is the answer's place and other names are replaced by `fields`.

    Args:
        template: the question, and where its answer begins.
        answer: the right one.
    """
    prompt, end = (part.format(**fields) for part in template.split("{v}"))
    bare = prompt.rstrip(" ")
    return TrainedQuestion(bare, prompt[len(bare) :], answer, end + "\n")


def listed(items: Sequence[str]) -> str:
    """Several items in one answer or question, with semicolons between them where an item has a comma itself."""
    return ("; " if any("," in item for item in items) else ", ").join(items)
