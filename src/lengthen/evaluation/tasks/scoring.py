"""Let a model answer questions about long documents, and score the answers."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lengthen.data.control_tokens import ControlTokens
from lengthen.data.truncate import cut_middle, token_spans
from lengthen.errors import ContextError, LengthenError, ModelError
from lengthen.evaluation.answers import greedy_generate
from lengthen.evaluation.prompts import encode
from lengthen.evaluation.tasks.files import Sample
from lengthen.evaluation.tasks.metrics import check_metric, score
from lengthen.progress import progress_bar
from lengthen.upstream import chat_prompt

__all__ = ["Scored", "answer_samples", "summarize"]


@dataclass(frozen=True)
class Scored:
    """One answer.

    Attributes:
        task: the data set's name.
        metric: what it was scored by.
        question: what was asked.
        prediction: the model's answer.
        answers: the right ones.
        score: from 0 to 1.
        prompt_tokens: what the model read.
        truncated: whether the document was cut in the middle to fit the context.
    """

    task: str
    metric: str
    question: str
    prediction: str
    answers: tuple[str, ...]
    score: float
    prompt_tokens: int
    truncated: bool

    def to_json(self) -> dict[str, Any]:
        """The result as a JSON object."""
        return asdict(self)


def answer_samples(
    model: Any,
    tokenizer: Any,
    samples: Sequence[Sample],
    context: int,
    metric: str = "auto",
    max_new_tokens: int | None = None,
    chat: bool = False,
) -> list[Scored]:
    """Ask each question, take the likeliest tokens as its answer, and score it.

    A document that does not fit the context loses its middle, never the question (LongBench's way).

    Args:
        model: a causal language model of transformers, or a PEFT model around one.
        tokenizer: its tokenizer.
        samples: from `choose`.
        context: tokens of prompt and answer together.
        metric: one of `METRICS`, or "auto" for each data set's own.
        max_new_tokens: longest answer in tokens; default each data set's own.
        chat: put the tokenizer's chat template around the prompts, but for those that continue a text.

    Raises:
        LengthenError: an unknown metric, or its package is missing.
        ModelError: `chat`, and the tokenizer has no template.
        ContextError: no room for a question and its answer.
    """
    if chat and not tokenizer.chat_template:
        raise ModelError("this model's tokenizer has no chat template; leave `chat` out")
    metrics = [sample.layout.metric if metric == "auto" else metric for sample in samples]
    for each in dict.fromkeys(metrics):
        check_metric(each)
    if metric == "classification" and not all(sample.classes for sample in samples):
        raise LengthenError("`metric=classification` is for files with all_classes; choose another, or auto")
    scored, control = [], ControlTokens(tokenizer)
    model.eval()
    with progress_bar("answers", len(samples), "questions") as advance:
        for sample, chosen in zip(samples, metrics, strict=True):
            layout = sample.layout
            limit = max_new_tokens or layout.max_new_tokens
            ids, truncated = _prompt_ids(tokenizer, sample, context - limit, chat and not layout.bare, control)
            (prediction,) = greedy_generate(model, tokenizer, [ids], limit)
            counted = prediction.lstrip("\n").split("\n")[0] if layout.first_line else prediction
            result = score(chosen, counted, sample.answers, sample.classes)
            scored.append(
                Scored(sample.task, chosen, sample.question, prediction, sample.answers, result, len(ids), truncated)
            )
            advance(1)
    return scored


def summarize(scored: Sequence[Scored]) -> list[dict[str, Any]]:
    """The mean score of each task and metric: "task", "metric", "score" (0 to 1), "samples", "truncated"."""
    groups: dict[tuple[str, str], list[Scored]] = {}
    for each in scored:
        groups.setdefault((each.task, each.metric), []).append(each)
    return [
        {
            "task": task,
            "metric": metric,
            "score": sum(answer.score for answer in group) / len(group),
            "samples": len(group),
            "truncated": sum(answer.truncated for answer in group),
        }
        for (task, metric), group in groups.items()
    ]


def _prompt_ids(
    tokenizer: Any, sample: Sample, room: int, chat: bool, control: ControlTokens
) -> tuple[list[int], bool]:
    """The ids of a prompt of at most `room` tokens, and whether its document had to be cut."""

    def ids_with(document: str) -> list[int]:
        after = sample.layout.after.replace("{words}", str(len(sample.answers[0].split())))
        prompt = sample.layout.before + document + after.replace("{question}", sample.question)
        if not chat:
            return encode(tokenizer, prompt)
        messages = [{"role": "user", "content": prompt}]
        text = chat_prompt(tokenizer, control.shield(messages), add_generation_prompt=True, tokenize=False)
        return control.ids(text)

    ids = ids_with(sample.document)
    if len(ids) <= room:
        return ids, False
    least = len(ids_with(""))
    if least > room:
        raise ContextError(
            f"{sample.task}: a question takes {least} tokens without its document, but with room for the answer the "
            f"context leaves {max(room, 0)}; raise `context`, or lower `max_new_tokens`"
        )
    document = sample.document
    shorter: list[list[int]] = []

    def excess_without(left: int, right: int, _tokens: int) -> int:
        shorter.append(ids_with(document[:left] + document[right:]))
        return len(shorter[-1]) - room

    if cut_middle(token_spans(tokenizer, document), len(ids) - room, excess_without) is None:
        return ids_with(""), True
    return shorter[-1], True
