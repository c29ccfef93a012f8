"""The recipe that an extension takes: what measured best on SmolLM2-135M, and how it changes with the base.

That is the recipe `smollm2-16k`. YaRN leaves what a base finds almost as it was before anything is trained; sequences
of 3,072 tokens whose positions jump cover the whole target; and most of what is trained on are questions about facts in
the user's own documents, as text alone lowers perplexity and loses retrieval.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from transformers import PreTrainedConfig

from lengthen.extension.request import ExtendRequest
from lengthen.recipe import Recipe, SourceRecipe, apply_overrides, parse_recipe

__all__ = ["draft", "learning_rate", "wanted_steps", "with_task"]

SEQUENCE = 3072  # tokens
_STEPS, _RATE, _WIDTH = 90, 2e-3, 576  # that measured best, and the hidden size that they were measured on
_LEAST_RATE = 1e-4
_TASKS: dict[str, dict[str, float]] = {"needle": {}, "lookup": {"python": 1.0}}
_WARMUP = 0.05  # of the steps


def learning_rate(config: PreTrainedConfig) -> float:
    """The peak for LoRA and norms: 2e-3 up to SmolLM2-135M's hidden size of 576, and less in proportion to more.

    A step of Adam moves each number of LoRA's matrices by about the rate, whatever the width; what a layer gives then
    changes in proportion to the width (arXiv 2203.03466, table 3). 4,096, the width of models of 7 and 8 billion
    parameters, gets 2.8e-4, close to the 2e-4 that QLoRA took for them (arXiv 2305.14314, table 9).
    """
    width = config.get_text_config().hidden_size
    return float(f"{min(_RATE, max(_LEAST_RATE, _RATE * _WIDTH / width)):.1e}")


def wanted_steps(rate: float) -> int:
    """Optimizer steps that suffice: 90 at a rate of 2e-3, more where each moves less."""
    return max(_STEPS // 2, round(_STEPS * _RATE / rate))


def draft(request: ExtendRequest, config: PreTrainedConfig, given: Mapping[str, Any] = MappingProxyType({})) -> Recipe:
    """The recipe for a request.

    Args:
        request: what was asked for; its overrides have the last word.
        config: the base's.
        given: what was decided by looking at data and device, by "section.key".

    Raises:
        RecipeError: the overrides don't go with the rest.
    """
    rate = learning_rate(config)
    steps = wanted_steps(rate)
    length = min(SEQUENCE, request.to)
    content: dict[str, Any] = {
        "model": request.model,
        "context": {"target": request.to, "method": "yarn"},
        "attention": {"kind": "full"},
        "adapter": {"rank": 16, "alpha": 32, "targets": "attention", "embeddings": False, "norms": True},
        "data": {
            "train": list(request.data),
            "beside": [{"kind": "retrieval", "weight": 0.8, "answer_weight": 3, "text_weight": 0.3}],
            "sequence_length": length,
            "skip_wise": length < request.to,
        },
        "training": {
            "steps": steps,
            "accumulation": 2,
            "learning_rate": rate,
            "schedule": "linear",
        },
    }
    for key, value in given.items():
        section, _, name = key.rpartition(".")
        (content.setdefault(section, {}) if section else content)[name] = value
    apply_overrides(content, request.overrides)
    training = content["training"]
    if isinstance(training, dict) and isinstance(training.get("steps"), int):
        training.setdefault("warmup_steps", max(1, round(_WARMUP * training["steps"])))
    return parse_recipe(content, "of the extension")


def with_task(recipe: Recipe, task: str) -> Recipe:
    """The recipe for a base with this retrieval task: sources of questions that name no tasks train similar ones.

    A base that knows code and little else learns nothing from questions in sentences, and loses what it has.

    Args:
        recipe: of the extension.
        task: of `lengthen.evaluation.compare.verdict.RETRIEVAL`.
    """

    def asked(source: SourceRecipe) -> SourceRecipe:
        if source.kind != "retrieval" or source.tasks:
            return source
        return source.model_copy(update={"tasks": _TASKS[task]})

    data = recipe.data
    train = [asked(each) if isinstance(each, SourceRecipe) else each for each in data.train]
    beside = [asked(each) for each in data.beside]
    return recipe.model_copy(update={"data": data.model_copy(update={"train": train, "beside": beside})})
