"""Questions about long documents, from the JSONL files of LongBench, L-Eval, SQuALITY and QMSum as published."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lengthen.errors import DataError
from lengthen.evaluation.tasks.suites import (
    LEVAL,
    LEVAL_EXAM,
    LEVAL_GENERATION,
    LEVAL_JUDGED,
    LONGBENCH,
    QMSUM,
    SCI_FI_FACT,
    SQUALITY,
    PromptLayout,
)
from lengthen.files import parse_json

__all__ = ["Sample", "choose", "read_samples"]


@dataclass(frozen=True)
class Sample:
    """One question about one document.

    Attributes:
        task: the data set's name.
        layout: how it asks and is scored.
        document: the long text.
        question: what is asked, perhaps nothing ("summarize this" is in the layout).
        answers: the right ones; the best match counts.
        classes: names of all classes, where the task is to choose one.
    """

    task: str
    layout: PromptLayout
    document: str
    question: str
    answers: tuple[str, ...]
    classes: tuple[str, ...] = ()


def read_samples(paths: Sequence[Path]) -> list[Sample]:
    """Read the questions of JSONL files, and of all ``*.jsonl`` files in folders; each line says what format it has.

    Raises:
        DataError: a file can't be read, has no question, or has a line in none of the formats (which file, line and
            what is missing).
    """
    samples: list[Sample] = []
    for path in paths:
        files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not files:
            raise DataError(f"{path} has no .jsonl file; give a file or folder of LongBench, L-Eval, SQuALITY or QMSum")
        for file in files:
            samples += _file_samples(file)
    return samples


def choose(samples: Sequence[Sample], metric: str, most: int | None) -> tuple[list[Sample], int]:
    """Take the first `most` samples of each task that can be scored, and count those that can't.

    L-Eval leaves some answers to the judgment of people or of another model: with metric "auto" they have no score.

    Args:
        samples: of files.
        metric: one of `METRICS`, or "auto".
        most: samples of each task, the first ones; None for all.

    Raises:
        DataError: none is left.
    """
    kept = [sample for sample in samples if metric != "auto" or sample.layout is not LEVAL_JUDGED]
    if not kept:
        raise DataError(
            f"L-Eval leaves all {len(samples)} answers to human or model judgment; choose a `metric`, such as rouge-l"
        )
    seen: Counter[str] = Counter()
    chosen = []
    for sample in kept:
        if most is None or seen[sample.task] < most:
            chosen.append(sample)
        seen[sample.task] += 1
    return chosen, len(samples) - len(kept)


def _file_samples(path: Path) -> list[Sample]:
    samples: list[Sample] = []
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    samples += _line_samples(line, path.stem)
                except DataError as error:
                    raise DataError(f"{path}, line {number}: {error}") from None
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror}; give a JSONL file") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); give a JSONL file") from error
    if not samples:
        raise DataError(f"{path} has no question in it; give a JSONL file with one object a line")
    return samples


def _line_samples(line: str, file_name: str) -> list[Sample]:
    try:
        record = parse_json(line)
    except json.JSONDecodeError as error:
        raise DataError(f"not JSON ({error.msg} at column {error.colno}); each line has to be one object") from None
    if not isinstance(record, dict):
        raise DataError(f"a {type(record).__name__} instead of an object of LongBench, L-Eval, SQuALITY or QMSum")
    # The format that misses least: a complete one, or the one to name in the error.
    name = min(_FORMATS, key=lambda name: len(_FORMATS[name][0] - record.keys()))
    keys, parse = _FORMATS[name]
    missing = sorted(keys - record.keys())
    if len(missing) == len(keys):
        known = "; ".join(f"{name}: {', '.join(sorted(keys))}" for name, (keys, _) in _FORMATS.items())
        raise DataError(f"the keys {', '.join(sorted(record)) or '(none)'} are those of no known format ({known})")
    if missing:
        raise DataError(f"{name} misses {', '.join(missing)}")
    return list(parse(record, file_name))


def _longbench(record: dict[str, Any], _file_name: str) -> Iterator[Sample]:
    task = _text(record, "dataset").removesuffix("_e")
    if task not in LONGBENCH:
        raise DataError(f"dataset {task!r} is none of LongBench's ({', '.join(LONGBENCH)})")
    layout = LONGBENCH[task]
    classes = _texts(record, "all_classes") if layout.metric == "classification" else []
    answers = _texts(record, "answers")
    yield Sample(task, layout, _text(record, "context"), _text(record, "input"), tuple(answers), tuple(classes))


def _leval(record: dict[str, Any], file_name: str) -> Iterator[Sample]:
    document, evaluation = _text(record, "input"), _text(record, "evaluation")
    questions, answers = _texts(record, "instructions"), _texts(record, "outputs")
    if len(questions) != len(answers):
        raise DataError(f"{len(questions)} instructions but {len(answers)} outputs; each needs one")
    layout = _leval_layouts(file_name).get(evaluation)
    if layout is None:
        raise DataError(f"evaluation {evaluation!r} is none of L-Eval's (exam, f1, rouge, human, LLM)")
    for question, answer in zip(questions, answers, strict=True):
        fact = re.fullmatch(r"(.*?)\[fact:(.*)\]\s*", answer, re.IGNORECASE | re.DOTALL)
        yield Sample(file_name, layout, document, question, (fact[1].strip() if fact else answer,))
        if fact and file_name == "sci_fi":
            in_reality = question.replace("based on the world described in the document", "from what is really so")
            yield Sample(file_name, SCI_FI_FACT, "", in_reality, (fact[2].strip(),))


def _leval_layouts(file_name: str) -> dict[str, PromptLayout]:
    return {
        "exam": LEVAL.get(file_name, LEVAL_EXAM),
        "f1": LEVAL_GENERATION["f1"],
        "rouge": LEVAL_GENERATION["rouge-l"],
        "human": LEVAL_JUDGED,
        "LLM": LEVAL_JUDGED,
    }


def _squality(record: dict[str, Any], _file_name: str) -> Iterator[Sample]:
    for question in _objects(record, "questions"):
        answers = [_text(response, "response_text") for response in _objects(question, "responses")]
        yield Sample("squality", SQUALITY, _text(record, "document"), _text(question, "question_text"), tuple(answers))


def _qmsum(record: dict[str, Any], _file_name: str) -> Iterator[Sample]:
    turns = _objects(record, "meeting_transcripts")
    meeting = "\n".join(f"{_text(turn, 'speaker')}: {_text(turn, 'content')}" for turn in turns)
    for kind in ("general_query_list", "specific_query_list"):
        for query in _objects(record, kind, may_be_empty=True):
            yield Sample("qmsum", QMSUM, meeting, _text(query, "query"), (_text(query, "answer"),))


_FORMATS: dict[str, tuple[set[str], Callable[[dict[str, Any], str], Iterator[Sample]]]] = {
    "LongBench": ({"input", "context", "answers", "dataset"}, _longbench),
    "L-Eval": ({"instructions", "input", "outputs", "evaluation"}, _leval),
    "SQuALITY": ({"document", "questions"}, _squality),
    "QMSum": ({"meeting_transcripts", "general_query_list", "specific_query_list"}, _qmsum),
}


def _text(record: dict[str, Any], key: str) -> str:
    if not isinstance(record.get(key), str):
        raise DataError(f"{key!r} {_instead(record, key)}, not a text")
    return record[key]


def _texts(record: dict[str, Any], key: str) -> list[str]:
    value = record.get(key)
    if not isinstance(value, list) or not value or not all(isinstance(each, str) for each in value):
        raise DataError(f"{key!r} {_instead(record, key)}, not a list of texts")
    return value


def _objects(record: dict[str, Any], key: str, may_be_empty: bool = False) -> list[dict[str, Any]]:
    value = record.get(key)
    if not isinstance(value, list) or not (value or may_be_empty) or not all(isinstance(each, dict) for each in value):
        raise DataError(f"{key!r} {_instead(record, key)}, not a list of objects")
    return value


def _instead(record: dict[str, Any], key: str) -> str:
    if key not in record:
        return "is missing"
    shown = json.dumps(record[key], ensure_ascii=False)
    return f"is {shown if len(shown) <= 40 else shown[:37] + '...'}"
