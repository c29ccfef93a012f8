"""Base and run measured on the same questions, each side once, whatever stops the process in between."""

import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from lengthen.context import base_context
from lengthen.data.token_store import TokenStore
from lengthen.evaluation.compare import (
    Comparison,
    Measurement,
    Pair,
    Questionnaire,
    Side,
    comparison_header,
    find_pair,
    judge,
    measure,
)
from lengthen.evaluation.haystack import Haystack
from lengthen.evaluation.retrieval.needle import DEPTHS
from lengthen.extension.measured_file import fingerprint, load_measured, save_measured
from lengthen.extension.pipeline import Pipeline
from lengthen.extension.questions import SEED, choose_task, documents_to_measure, haystack_of, make_asked
from lengthen.models.load import load_config, load_tokenizer
from lengthen.models.resolve import resolve_model
from lengthen.progress import progress_bar
from lengthen.provenance import command_line, versions
from lengthen.recipe import Recipe

__all__ = ["Measuring", "try_base"]


class Measuring:
    """The questions of an extension, made once in a process, and the answers of each side.

    Args:
        pipeline: of the extension.
    """

    def __init__(self, pipeline: Pipeline):
        self._pipeline = pipeline

    def measure_base(self) -> None:
        """Measure the base, and with scaled positions where the plan says so.

        Raises:
            LengthenError: it can't be loaded, or its answers can't be written.
            Interrupted: the extension was stopped; a side that is done is kept.
        """
        pipeline = self._pipeline
        asked, _ = self._questions
        pair = _base_of(pipeline.recipe)
        with pair.models() as models:
            with models.base() as model:
                self._measure(asked, "base", model, pair.tokenizer)
            if pipeline.planned.questions.scaled:
                with models.scaled() as model:
                    self._measure(asked, "scaled", model, pair.tokenizer)

    def measure_run(self) -> None:
        """Measure what was trained.

        Raises:
            LengthenError: it can't be loaded, or its answers can't be written.
            Interrupted: the extension was stopped.
        """
        asked, _ = self._questions
        pair = self._pair()
        with pair.models() as models, models.run() as model:
            self._measure(asked, "run", model, pair.tokenizer)

    def compare(self) -> tuple[Comparison, dict[str, Any]]:
        """The comparison of all sides, and the content of the results file.

        A side whose answers are gone, or were to questions of another version, is measured again.

        Raises:
            LengthenError: as `measure_base` and `measure_run`.
            Interrupted: the extension was stopped.
        """
        questions = self._pipeline.planned.questions
        asked, haystack = self._questions
        of = fingerprint(asked)
        measured: dict[Side, Measurement] = {}
        sides: list[Side] = ["base", "scaled", "run"] if questions.scaled else ["base", "run"]
        for side in sides:
            kept = load_measured(self._kept(side), of)
            if kept is None:
                if side == "run":
                    self.measure_run()
                else:
                    self.measure_base()
                kept = load_measured(self._kept(side), of)
            assert kept is not None
            measured[side] = kept
        pair = self._pair()
        found = judge(asked, measured, pair.base_id)
        header = comparison_header(
            pair,
            asked.probes,
            haystack,
            asked.names,
            lengths=questions.lengths,
            depths=DEPTHS,
            trials=questions.trials,
            seed=SEED,
        )
        return found, {**header, "kind": "compare", **found, "command": command_line(), "versions": versions()}

    def _pair(self) -> Pair:
        recipe = self._pipeline.recipe
        return find_pair(str(self._pipeline.folder), dtype=recipe.training.dtype, quantize=recipe.quantize)

    @cached_property
    def _questions(self) -> tuple[Questionnaire, Haystack]:
        pipeline, recipe = self._pipeline, self._pipeline.recipe
        config = load_config(resolve_model(recipe.model), recipe.context.base)
        tokenizer = load_tokenizer(recipe.model)
        store = documents_to_measure(pipeline.request, recipe, tokenizer, config, pipeline.check_stop)
        haystack, context = haystack_of(store, tokenizer), base_context(config)
        questions, target = pipeline.planned.questions, recipe.context.target
        return make_asked(questions, store, haystack, tokenizer, context, target), haystack

    def _kept(self, side: Side) -> Path:
        return self._pipeline.folder / "measured" / f"{side}.npz"

    def _measure(self, asked: Questionnaire, side: Side, model: Any, tokenizer: Any) -> None:
        """Measure a side, unless that was done before the process was stopped."""
        pipeline, of = self._pipeline, fingerprint(asked)
        if load_measured(self._kept(side), of) is not None:
            return
        total, done, began = asked.tokens(side), 0, time.monotonic()
        with progress_bar(f"measuring {side}", total, "tokens") as advance:

            def on_tokens(tokens: int) -> None:
                nonlocal done
                done += tokens
                advance(tokens)
                pipeline.moved(done, total, "tokens", (time.monotonic() - began) / done * max(0, total - done))
                pipeline.check_stop()

            save_measured(self._kept(side), measure(asked, side, model, tokenizer, on_tokens), of)


def try_base(recipe: Recipe, documents: TokenStore, on_prompt: Callable[[], None]) -> str:
    """Ask a base a few questions of each kind within its own context; returns the kind that it is to be asked.

    Args:
        recipe: of the run.
        documents: the text around what is hidden.
        on_prompt: called after each prompt.

    Raises:
        LengthenError: it can't be loaded, or asked anything.
    """
    pair = _base_of(recipe)
    with pair.models() as models, models.base() as model:
        haystack = haystack_of(documents, pair.tokenizer)
        return choose_task(model, pair.tokenizer, haystack, pair.base_context, on_prompt)


def _base_of(recipe: Recipe) -> Pair:
    """The base of a run that may not be there yet, as the base is, and with the run's positions."""
    return find_pair(
        recipe.model,
        method=recipe.context.method,
        target=recipe.context.target,
        dtype=recipe.training.dtype,
        quantize=recipe.quantize,
        base_context=recipe.context.base,
    )
