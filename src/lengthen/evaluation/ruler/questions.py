"""RULER's question answering: a question whose document is hidden among others, from SQuAD's or HotpotQA's own file."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from lengthen.errors import DataError
from lengthen.evaluation.ruler.prompt_builder import PromptBuilder
from lengthen.files import parse_json

__all__ = ["DocumentQuestion", "DocumentQuestions", "question_answering", "read_hotpotqa", "read_squad"]

_TEMPLATE = """Answer the question from the given documents, with the answer only and no other words.

The documents:

{context}

Answer the question from the documents above, with the answer only and no other words.

Question: {question} Answer:"""
_FILLER_DOCUMENTS = 4


@dataclass(frozen=True)
class DocumentQuestion:
    """A question about documents.

    Attributes:
        text: the question.
        answers: any of them is right.
        documents: numbers of those that have to be there.
        related: numbers of those that are added first.
    """

    text: str
    answers: tuple[str, ...]
    documents: tuple[int, ...]
    related: tuple[int, ...]


@dataclass(frozen=True)
class DocumentQuestions:
    """All questions and documents of a file."""

    questions: list[DocumentQuestion]
    documents: list[str]


def read_squad(path: Path) -> DocumentQuestions:
    """Read SQuAD's JSON (1.1 or 2.0), without the questions that have no answer.

    Raises:
        DataError: not such a file.
    """
    return _read(path, "SQuAD", _squad)


def read_hotpotqa(path: Path) -> DocumentQuestions:
    """Read HotpotQA's JSON (distractor setting): each question with its ten paragraphs.

    Raises:
        DataError: not such a file.
    """
    return _read(path, "HotpotQA", _hotpotqa)


def question_answering(source: DocumentQuestions, index: int, rng: Random) -> PromptBuilder:
    """The sample numbered `index`; an item is a document more than the question's own.

    Args:
        source: questions and documents of a file.
        index: which question is asked.
        rng: draws the other documents and the order of all.
    """
    question = source.questions[index]
    needed = {*question.documents, *question.related}
    others = [number for number in range(len(source.documents)) if number not in needed]
    more = [*rng.sample(question.related, len(question.related)), *rng.sample(others, len(others))]
    order = rng.getrandbits(64)
    most = max(0, len(more) - _FILLER_DOCUMENTS)
    longest = _FILLER_DOCUMENTS * max((len(source.documents[number]) for number in more), default=0)

    def render(n_items: int, n_chars: int, n_dots: int) -> str:
        numbers = [*question.documents, *more[:n_items]]
        Random(f"{order} {n_items}").shuffle(numbers)
        last = range(n_items, min(n_items + _FILLER_DOCUMENTS, len(more)))
        shown = [_document(place, source.documents[number]) for place, number in enumerate(numbers, start=1)]
        cut = [_document(len(numbers) + 1 + place - n_items, source.documents[more[place]]) for place in last]
        context = "\n\n".join(shown) + "\n\n".join(["", *cut])[:n_chars] + " ." * n_dots
        return _TEMPLATE.format(context=context, question=question.text)

    return PromptBuilder(question.answers, render, least_items=0, most_items=most, max_chars=longest)


def _document(number: int, text: str) -> str:
    return f"Document {number}:\n{text}"


def _read(path: Path, name: str, parse: Callable[[Any], DocumentQuestions]) -> DocumentQuestions:
    try:
        found = parse(parse_json(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror}; give {name}'s JSON file") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not a JSON file of {name}; give the file as {name} publishes it") from error
    if not found.questions:
        raise DataError(f"{path} has no question with an answer; give {name}'s development set")
    return found


def _squad(data: Any) -> DocumentQuestions:
    articles = [article["paragraphs"] for article in data["data"]]
    documents = sorted({paragraph["context"] for article in articles for paragraph in article})
    number = {document: index for index, document in enumerate(documents)}
    questions = []
    for article in articles:
        numbers = {number[paragraph["context"]] for paragraph in article}
        for paragraph in article:
            own = number[paragraph["context"]]
            questions += [
                DocumentQuestion(entry["question"], _answers(entry["answers"]), (own,), tuple(sorted(numbers - {own})))
                for entry in paragraph["qas"]
                if entry["answers"] and not entry.get("is_impossible", False)
            ]
    return DocumentQuestions(questions, documents)


def _answers(answers: list[dict[str, str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(answer["text"] for answer in answers))


def _hotpotqa(data: Any) -> DocumentQuestions:
    def document(title: str, sentences: list[str]) -> str:
        return title + "\n" + "".join(sentences)

    documents = sorted({document(*paragraph) for entry in data for paragraph in entry["context"]})
    number = {text: index for index, text in enumerate(documents)}
    questions = []
    for entry in data:
        own = dict.fromkeys(number[document(*paragraph)] for paragraph in entry["context"])
        questions.append(DocumentQuestion(entry["question"], (str(entry["answer"]),), tuple(own), ()))
    return DocumentQuestions(questions, documents)
