"""Tasks of lm-eval on a model that we loaded. Importing this module needs the extra ``tasks``.

Source: lm-eval 0.4 (EleutherAI's lm-evaluation-harness), ``simple_evaluate`` and ``HFLM``.
"""

import difflib
import logging
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from numbers import Real
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager

from lengthen.errors import ContextError, DataError, LengthenError, ModelError
from lengthen.progress import is_progress_shown

__all__ = ["check_tasks", "evaluate_tasks"]


class _CountingLM(HFLM):
    """HFLM with a context of our choice that knows which samples it had to cut, and of which task."""

    def __init__(self, model: Any, tokenizer: Any, context: int):
        super().__init__(pretrained=model, tokenizer=tokenizer, max_length=context, batch_size=1)
        self.truncated: dict[str, set[int]] = defaultdict(set)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        for request in requests:
            # The last token is only predicted, so one more than the context fits.
            self._note(request, "".join(request.args), self.max_length + 1)
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm or not is_progress_shown())

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        for request in requests:
            prompt, settings = request.args
            new = normalize_gen_kwargs(dict(settings), self.max_gen_toks)["max_gen_toks"]
            if new >= self.max_length:
                raise ContextError(
                    f"{request.task_name} generates up to {new} tokens, which leaves nothing of the {self.max_length} "
                    "of the context; lower `max_new_tokens` or raise `context`"
                )
            self._note(request, prompt, self.max_length - new)
        return super().generate_until(requests, disable_tqdm=disable_tqdm or not is_progress_shown())

    def _note(self, request: Any, text: str, room: int) -> None:
        if len(self.tok_encode(text)) > room:
            self.truncated[request.task_name].add(request.doc_id)


def evaluate_tasks(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str],
    context: int,
    include: Path | None = None,
    limit: int | None = None,
    max_new_tokens: int | None = None,
    chat: bool = False,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Measure a model on tasks of lm-eval, which are defined, prompted and scored there.

    lm-eval cuts too long prompts on the left, and reads data sets from Hugging Face's hub unless a task's own
    configuration names files.

    Args:
        model: a causal language model of transformers, or a PEFT model around one.
        tokenizer: its tokenizer.
        tasks: names of tasks, groups or tags; patterns such as ``longbench_*`` too.
        context: tokens of prompt and answer together.
        include: a folder with more task configurations (YAML).
        limit: the first N samples of each task.
        max_new_tokens: longest answer in tokens; default each task's own.
        chat: put the tokenizer's chat template around the prompts.

    Returns:
        Results: "task", "metric" (with lm-eval's filter, where it is not "none"), "score" and "stderr" (None where it
        has none), "samples", "truncated". Predictions: "task", "doc_id", "prompt" (the last 200 characters),
        "prediction", "answers", and the metrics of that sample.

    Raises:
        ModelError: `chat`, and the tokenizer has no template.
        DataError: an unknown task, or data that can't be read or fetched.
        ContextError: a task's answers alone fill the context.
    """
    if chat and not tokenizer.chat_template:
        raise ModelError("this model's tokenizer has no chat template; leave `chat` out")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = _manager(include)
    model.eval()
    lm = _CountingLM(model, tokenizer, context)
    try:
        loaded = lm_eval.simple_evaluate(
            lm,
            tasks=_known(manager, tasks),
            task_manager=manager,
            limit=limit,
            apply_chat_template=chat,
            gen_kwargs=None if max_new_tokens is None else {"max_gen_toks": max_new_tokens},
            bootstrap_iters=1000,
        )
    except LengthenError:
        raise
    except (OSError, ValueError, ImportError) as error:
        # datasets says ConnectionError (an OSError) or ValueError for what it can't fetch, FileNotFoundError for files.
        raise DataError(
            f"lm-eval can't run {', '.join(tasks)}: {_first_line(error)}; its data sets come from the hub, unless a "
            "task of `include` names files"
        ) from error
    return _results(loaded, lm.truncated), _predictions(loaded)


def check_tasks(tasks: Sequence[str], include: Path | None = None) -> None:
    """Refuse names that lm-eval does not know.

    Args:
        tasks: as in `evaluate_tasks`.
        include: as in `evaluate_tasks`.

    Raises:
        DataError: an unknown task, or `include` is no folder.
    """
    _known(_manager(include), tasks)


@cache
def _manager(include: Path | None) -> TaskManager:
    """The index of all task configurations; reading lm-eval's own, thousands of files, takes seconds."""
    if include is not None and not include.is_dir():
        raise DataError(f"`include={include}` is no folder; give one that holds task configurations (.yaml)")
    return TaskManager(include_path=None if include is None else str(include))


def _known(manager: TaskManager, tasks: Sequence[str]) -> list[str]:
    names = []
    for task in tasks:
        found = manager.match_tasks([task])
        if not found:
            near = difflib.get_close_matches(task, manager.all_tasks, n=3)
            hint = f"did you mean {', '.join(near)}?" if near else "`lm-eval ls tasks` lists them"
            raise DataError(f"`tasks={task}` is no task of lm-eval {lm_eval.__version__}; {hint}")
        names += found
    return list(dict.fromkeys(names))


def _results(loaded: Any, truncated: dict[str, set[int]]) -> list[dict[str, Any]]:
    results = []
    for task, measured in loaded["results"].items():
        for key, value in measured.items():
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, Real):
                continue
            stderr = measured.get(f"{metric}_stderr,{kind}")
            samples = loaded["n-samples"].get(task, {}).get("effective", measured.get("sample_len"))
            results.append(
                {
                    "task": task,
                    "metric": metric if kind == "none" else f"{metric},{kind}",
                    "score": float(value),
                    "stderr": stderr if isinstance(stderr, float) else None,
                    "samples": samples,
                    "truncated": len(truncated.get(task, ())),
                }
            )
    return results


def _predictions(loaded: Any) -> list[dict[str, Any]]:
    return [
        {
            "task": task,
            "doc_id": sample["doc_id"],
            "prompt": str(sample["arguments"][0][0])[-200:],
            "prediction": sample["filtered_resps"],
            "answers": sample["target"],
            **{metric: sample[metric] for metric in sample["metrics"]},
        }
        for task, samples in loaded["samples"].items()
        for sample in samples
    ]


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
