"""The verdict of an extension in five lines, the next commands, and advice where it is not good."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from lengthen.evaluation.compare import Comparison
from lengthen.evaluation.compare.verdict import RETRIEVAL, TOO_FEW, WORSE_PERPLEXITY
from lengthen.extension.events import Phase
from lengthen.extension.plan import as_time
from lengthen.extension.request import ExtendRequest
from lengthen.recipe import Recipe
from lengthen.results import rows_of

__all__ = ["ExtensionVerdict", "make_verdict"]


@dataclass(frozen=True)
class ExtensionVerdict:
    """Whether the target was reached, in words and numbers.

    Attributes:
        usable, base_usable: the longest usable lengths of run and base, tokens; None where none is.
        target: what was asked for.
        is_good: whether the whole target is usable and everything short is kept.
        lines: five, for people.
        next: commands that use the run.
        advice: what to try, cheapest first; empty where it is good.
    """

    usable: int | None
    base_usable: int | None
    target: int
    is_good: bool
    lines: tuple[str, ...]
    next: tuple[str, ...]
    advice: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.lines)


def make_verdict(
    found: Comparison,
    recipe: Recipe,
    request: ExtendRequest,
    folder: Path,
    seconds: Mapping[Phase, float],
    peak_bytes: int | None,
) -> ExtensionVerdict:
    """Make the verdict of a comparison.

    Args:
        found: run and base side by side.
        recipe: of the run.
        request: what was asked for.
        folder: of the run.
        seconds: of each phase.
        peak_bytes: of memory while it was trained; None where that is not known.
    """
    judged, target = found["verdict"], recipe.context.target
    is_good = judged["usable"] == target and not (judged["below"] or judged["lost"] or judged["undecided"])
    first, _, _ = judged["sentence"].partition("; short ability")
    lines = (
        first,
        _found_line(found),
        _short_line(found),
        _perplexity_line(found),
        _cost_line(seconds, peak_bytes),
    )
    return ExtensionVerdict(
        usable=judged["usable"],
        base_usable=judged["base_usable"],
        target=target,
        is_good=is_good,
        lines=lines,
        next=_next(folder),
        advice=() if is_good else tuple(_advice(found, recipe, request, folder)),
    )


def _found_line(found: Comparison) -> str:
    task = found["verdict"]["task"]
    rows = rows_of(found["scores"], task)
    if task is None or not rows:
        return "found: nothing was asked"
    cells = (f"{row['run']['score']:.0%} at {row['tokens']:,} (base {row['base']['score']:.0%})" for row in rows)
    return f"{RETRIEVAL[task]} found: {', '.join(cells)}"


def _short_line(found: Comparison) -> str:
    judged = found["verdict"]
    fates = [f"lost {', '.join(judged['lost'])}"] if judged["lost"] else []
    if judged["undecided"]:
        fates.append(f"undecided {', '.join(judged['undecided'])} ({TOO_FEW})")
    if not fates:
        fates = [f"kept ({', '.join(judged['kept'])})" if judged["kept"] else "not measured"]
    return f"short ability: {'; '.join(fates)}"


def _perplexity_line(found: Comparison) -> str:
    if not found["perplexity"]:
        return "perplexity: not measured"
    whole = found["perplexity"][0]  # of whole documents
    if whole["run"] is None or whole["base"] is None or whole["ratio"] is None:
        return "perplexity: beyond all numbers"
    base = "the base's with a sliding window" if whole["beyond_base"] else "the base's"
    ratio = f"{whole['ratio']:.3f} of {base} ({whole['base']:.2f})"
    return f"perplexity on {whole['to']:,} tokens: {whole['run']:.2f}, {ratio}"


def _cost_line(seconds: Mapping[Phase, float], peak_bytes: int | None) -> str:
    parts = f"{as_time(sum(seconds.values()))} in all, {as_time(seconds.get('train', 0))} of it training"
    return f"cost: {parts}" + (f"; {peak_bytes / 1e9:.1f} GB of memory" if peak_bytes else "")


def _next(folder: Path) -> tuple[str, ...]:
    return (
        f"lengthen chat {folder}",
        f"lengthen report {folder}",
        f"lengthen export {folder} {folder}-merged",
        f"lengthen serve {folder}",
        f"lengthen export {folder} {folder}-vllm --for vllm",
        f"lengthen export {folder} {folder}-ollama --for ollama",
    )


def _command(request: ExtendRequest, out: str) -> str:
    """The command that asks for the same in another folder."""
    data = [part for path in request.data for part in ("--data", path)]
    data += [part for path in request.eval_data for part in ("--eval-data", path)]
    words = ["lengthen", "extend", request.model, "--to", str(request.to), *data, "--hours", f"{request.hours:g}"]
    asked = ["--task", request.task] if request.task else []
    return shlex.join([*words, *asked, "--out", out, *request.overrides])


def _advice(found: Comparison, recipe: Recipe, request: ExtendRequest, folder: Path) -> list[str]:
    """Advice, cheapest first: what costs nothing, then another run, then another base."""
    judged, target, training = found["verdict"], recipe.context.target, recipe.training
    again = _command(request, f"{folder}-again")
    advice = []
    if judged["base_usable"] is None:
        advice.append(
            "the base itself finds too little to say what is usable: judge by perplexity, or begin with a base that "
            "finds what it is asked for within its own context"
        )
    elif judged["usable"] is not None and judged["usable"] < target:
        advice.append(f"use it up to {judged['usable']:,} tokens, where it finds what is hidden")
    if judged["undecided"]:
        advice.append(
            f"measure more, to decide what is undecided: lengthen eval compare {folder} --trials 20, with --data of "
            "more documents"
        )
    if judged["lost"]:
        advice.append(f"half of the adapter may keep what was lost: lengthen eval compare {folder} --adapter-scale 0.5")
        advice.append(f"a lower rate loses less: {again} training.learning_rate={training.learning_rate / 2:g}")
        advice.append(f"hold the run to its base on short text: {again} training.restoration.share=0.25")
    if judged["usable"] != target and judged["base_usable"] is not None:
        advice.append(f"more steps: {again} training.steps={2 * (training.steps or 1)}")
        context = max((row["to"] for row in found["perplexity"] if not row["beyond_base"]), default=0)
        if target // 2 > context:
            advice.append(f"less at once: {_command(replace(request, to=target // 2), f'{folder}-shorter')}")
    ratio = found["perplexity"][0]["ratio"] if found["perplexity"] else None
    if ratio is not None and ratio > WORSE_PERPLEXITY:
        advice.append(f"more text beside the questions: {again} 'data.beside=[{{kind: retrieval, weight: 0.5}}]'")
    return advice
