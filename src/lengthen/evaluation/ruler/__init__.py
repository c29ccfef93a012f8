"""RULER (arXiv 2404.06654): what of a context a model can use, by 13 tasks at exact lengths, made offline.

Tasks, their settings, the tokens kept for answers and the scores are the paper's. The wording of the prompts, the word
lists and the prose are our own, so scores are comparable with each other, and only about with published ones.
"""

from lengthen.evaluation.haystack import Essay
from lengthen.evaluation.ruler.questions import read_hotpotqa, read_squad
from lengthen.evaluation.ruler.run import RulerResult, TaskScore, make_prompts, ruler
from lengthen.evaluation.ruler.scoring import PUBLISHED_THRESHOLD, effective_context
from lengthen.evaluation.ruler.tasks import TASKS, RulerTexts
from lengthen.evaluation.ruler.threshold import base_id, base_threshold

__all__ = [
    "PUBLISHED_THRESHOLD",
    "TASKS",
    "Essay",
    "RulerResult",
    "RulerTexts",
    "TaskScore",
    "base_id",
    "base_threshold",
    "effective_context",
    "make_prompts",
    "read_hotpotqa",
    "read_squad",
    "ruler",
]
