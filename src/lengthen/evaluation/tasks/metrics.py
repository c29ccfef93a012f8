"""Scores of one answer against one reference: the metrics that LongBench and L-Eval define, from 0 to 1.

Each metric takes (prediction, reference, classes); only ``classification`` looks at the classes.

Source: arXiv 2308.14508 (LongBench), metrics.py and eval.py of its repository; arXiv 2307.11088 (L-Eval), Evaluation/
    of its repository; token F1 and exact match as in SQuAD's (arXiv 1606.05250) evaluation script.
"""

import difflib
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from typing import Any

from lengthen.errors import LengthenError, require

__all__ = ["METRICS", "check_metric", "score"]

Metric = Callable[[str, str, Sequence[str]], float]

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _normalized(text: str) -> str:
    """Lower-case, without punctuation, articles and repeated blanks: SQuAD's normalization."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split())


def _overlap_f1(predicted: Sequence[str], expected: Sequence[str]) -> float:
    same = (Counter(predicted) & Counter(expected)).total() if predicted and expected else 0
    return 2 * same / (len(predicted) + len(expected)) if same else 0.0


def _f1(prediction: str, reference: str, _classes: Sequence[str]) -> float:
    return _overlap_f1(_normalized(prediction).split(), _normalized(reference).split())


def _f1_zh(prediction: str, reference: str, _classes: Sequence[str]) -> float:
    """F1 of the words that jieba finds, without punctuation."""
    texts = (prediction, reference)
    words = [[re.sub(r"[^\w]|_", "", word.lower()) for word in _jieba().cut(text)] for text in texts]
    return _overlap_f1(*([word for word in sequence if word] for sequence in words))


def _exact_match(prediction: str, reference: str, _classes: Sequence[str]) -> float:
    return float(_normalized(prediction) == _normalized(reference))


def _rouge_l(prediction: str, reference: str, _classes: Sequence[str]) -> float:
    """F-measure of the package rouge-score, without stemming."""
    return _rouge_scorer().score(reference, prediction)["rougeL"].fmeasure


def _rouge_l_longbench(prediction: str, reference: str, _classes: Sequence[str]) -> float:
    """F-measure of the package rouge: sentences end at full stops, words at blanks, each different word counts once.

    What that package can't score (an answer without a word, or a sentence too long for its recursion) scores 0, as
    in LongBench's script.
    """
    try:
        return _rouge().get_scores([prediction], [reference])[0]["rouge-l"]["f"]
    except (ValueError, RecursionError):
        return 0.0


def _rouge_l_longbench_zh(prediction: str, reference: str, classes: Sequence[str]) -> float:
    """The same between words that jieba finds."""
    return _rouge_l_longbench(" ".join(_jieba().cut(prediction)), " ".join(_jieba().cut(reference)), classes)


def _classification(prediction: str, reference: str, classes: Sequence[str]) -> float:
    """One over the number of classes that the answer names, if the right one is among them.

    A class whose name is part of the right one's is not counted.
    """
    named = [name for name in classes if name in prediction and (name == reference or name not in reference)]
    return 1 / len(named) if reference in named else 0.0


def _share_of_numbers(prediction: str, number: str) -> float:
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(number) / len(numbers) if numbers else 0.0


def _retrieval(prediction: str, reference: str, _classes: Sequence[str]) -> float:
    """Share of the right paragraph's number among the numbers in the answer."""
    found = re.search(r"(?:Paragraph |段落)(\d+)", reference)
    return _share_of_numbers(prediction, found[1]) if found else 0.0


def _count(prediction: str, reference: str, _classes: Sequence[str]) -> float:
    return _share_of_numbers(prediction, reference)


def _code_similarity(prediction: str, reference: str, _classes: Sequence[str]) -> float:
    """Edit similarity of the answer's first line that is code, in hundredths as fuzzywuzzy rounds it.

    LongBench installs fuzzywuzzy without python-Levenshtein; its ratio is then difflib's.
    """
    lines = prediction.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    return round(100 * difflib.SequenceMatcher(None, line, reference).ratio()) / 100


def _contains(prediction: str, reference: str, _classes: Sequence[str]) -> float:
    """Whether the reference stands in the answer's first line of more than one character, blanks and case aside."""
    line = next((line for line in prediction.split("\n") if len(line) > 1), prediction)
    return float(reference.lower().replace(" ", "") in line.lower().replace(" ", ""))


def _right_letters(reference: str) -> set[str]:
    """The letters of a reference such as "(B) Because" or "ABD"."""
    return set(re.sub(r"[^A-D]", "", (reference.split() or [""])[0]))


def _choice(prediction: str, reference: str, _classes: Sequence[str]) -> float:
    """Whether the answer's first letter from A to D is the right one; none is wrong (L-Eval takes it for an A)."""
    found = re.search("[A-D]", prediction)
    return float(found is not None and {found[0]} == _right_letters(reference))


def _choices(prediction: str, reference: str, _classes: Sequence[str]) -> float:
    """1 for exactly the right letters, a quarter for some of them and no wrong one.

    They are the letters that the answer starts with if there are several, else those before a blank, a full stop or
    a bracket, up to the first "Question".
    """
    leading = re.match("[A-D]*", prediction)
    assert leading is not None
    chosen = set(leading[0])
    if len(leading[0]) < 2:
        chosen |= set(re.findall(r"([A-D])(?=[\s.)])", prediction[leading.end() :].split("Question")[0]))
    right = _right_letters(reference)
    if chosen and chosen < right:
        return 0.25
    return float(chosen == right)


def _digits(text: str) -> str:
    """The whole number after "The answer is", else of the last word with a digit before the first empty line."""
    found = re.search(r"The answer is (\S+)", text)
    words = [found[1]] if found else [w for w in text.split("\n\n")[0].split(" ") if any(map(str.isdigit, w))]
    return re.sub(r"\D", "", words[-1].split(".")[0]) if words else ""


def _number(prediction: str, reference: str, _classes: Sequence[str]) -> float:
    return float(bool(_digits(prediction)) and _digits(prediction) == _digits(reference))


def _truth(prediction: str, reference: str, _classes: Sequence[str]) -> float:
    """Whether the first "true" or "false" in the answer is the right one."""
    found = re.search("true|false", prediction.lower())
    return float(found is not None and found[0] == reference.strip().lower())


def _plain_output(text: str) -> str:
    """A program's output without commas, quotes, backslashes, blanks and the ".0" of whole floats."""
    return re.sub(r"[\s,'\\]|\.0", "", text).lower()


def _code_output(prediction: str, reference: str, _classes: Sequence[str]) -> float:
    """Whether the reference stands in the answer's last words: three more than it has itself.

    After "the final output" they are the first words. Other than L-Eval's script, this takes no filler words out.
    """
    count = len(reference.split()) + 3
    _, marked, rest = prediction.rpartition("the final output")
    words = rest.split()[:count] if marked else prediction.split()[-count:]
    return float(_plain_output(reference) in _plain_output(" ".join(words)))


METRICS: dict[str, Metric] = {
    "f1": _f1,
    "f1-zh": _f1_zh,
    "exact-match": _exact_match,
    "contains": _contains,
    "rouge-l": _rouge_l,
    "rouge-l-longbench": _rouge_l_longbench,
    "rouge-l-longbench-zh": _rouge_l_longbench_zh,
    "classification": _classification,
    "retrieval": _retrieval,
    "count": _count,
    "code-similarity": _code_similarity,
    "choice": _choice,
    "choices": _choices,
    "number": _number,
    "truth": _truth,
    "code-output": _code_output,
}

_PACKAGES = {
    "f1-zh": ("jieba",),
    "rouge-l": ("rouge_score",),
    "rouge-l-longbench": ("rouge",),
    "rouge-l-longbench-zh": ("rouge", "jieba"),
}


def score(metric: str, prediction: str, references: Sequence[str], classes: Sequence[str] = ()) -> float:
    """Score an answer: the best of its scores against each reference, from 0 to 1.

    Args:
        metric: one of `METRICS`.
        prediction: the model's answer.
        references: right answers, at least one.
        classes: names of all classes, for ``classification``.
    """
    return max(METRICS[metric](prediction, reference, classes) for reference in references)


def check_metric(metric: str) -> None:
    """Refuse an unknown metric, and one whose package is missing, before any time is spent on answers.

    Raises:
        LengthenError: the metric is neither known nor "auto", or needs a package that is not installed.
    """
    if metric != "auto" and metric not in METRICS:
        raise LengthenError(f"`metric={metric}` is unknown; choose one of auto, {', '.join(METRICS)}")
    require(f"metric {metric}", "tasks", *_PACKAGES.get(metric, ()))


@cache
def _rouge_scorer() -> Any:
    return import_module("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=False)


@cache
def _rouge() -> Any:
    return import_module("rouge").Rouge(metrics=["rouge-l"], stats=["f"])


@cache
def _jieba() -> Any:
    jieba = import_module("jieba")
    jieba.setLogLevel("ERROR")
    return jieba
