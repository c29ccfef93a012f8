"""A training run, top to bottom: resolve -> build_data -> build_windows -> build_model -> fit -> finish.

`resolve` makes every check that needs neither documents nor weights, so that what can't be done fails before anything
is loaded or written.
"""

import logging
import platform
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lengthen.adapters.build import count_trainable
from lengthen.adapters.save import save_adapter, save_full
from lengthen.data.blocks import Block
from lengthen.data.mixture import FiniteSource
from lengthen.data.sequences import describe
from lengthen.errors import Interrupted, OutputError, writing
from lengthen.evaluation.validation import validate
from lengthen.recipe import Recipe
from lengthen.training.batches import Batches
from lengthen.training.build import build_data, build_model, build_windows
from lengthen.training.checkpoint import check_readable, drop_old, last_checkpoint, load_trained, step_of
from lengthen.training.folder import begin_folder, folder_of, hold_folder
from lengthen.training.loop import Loop
from lengthen.training.metrics import Utilization
from lengthen.training.objective import CausalLMObjective
from lengthen.training.parallel import shard, unshard
from lengthen.training.setup import Setup, resolve

__all__ = ["train"]

_LOG = logging.getLogger(__name__)


def train(
    recipe: Recipe,
    resume: bool = False,
    on_step: Callable[[dict[str, Any]], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Path:
    """Extend a base as a recipe says.

    Runs as it is in one process, and in several under `torchrun` or `accelerate launch`.

    Args:
        recipe: what to do.
        resume: go on from the newest checkpoint in the run folder, on exactly the trajectory of a run that was
            never stopped; without a checkpoint, start from the beginning.
        on_step: called in the first process with each line of metrics.jsonl as it is written.
        stop: asked after each step; once it says so, the run stops as by a signal.

    Returns:
        The run folder: recipe.yaml, run.json, config.json (extended), tokenizer files, metrics.jsonl, checkpoints/,
        and adapter/ (for full fine-tuning model/, an ordinary model folder), evals/.

    Raises:
        LengthenError: the recipe, base, documents or run folder can't be used; an earlier run's files are untouched.
            Or the run diverges; its checkpoints are kept.
        Interrupted: Ctrl-C, SIGTERM or `stop`; a checkpoint was written.
    """
    setup = resolve(recipe, resume)
    if setup is None:  # finished already
        return folder_of(recipe).path
    blocks, windows = build_data(setup), build_windows(setup)
    objective, base = build_model(setup, blocks)
    is_main = setup.process.is_main_process
    with hold_folder(setup.run, recipe, resume) if is_main else nullcontext():
        fit(setup, objective, base, blocks, windows, on_step, stop)
        finish(setup, objective.model, base)
    return setup.run.path


def fit(
    setup: Setup,
    objective: CausalLMObjective,
    base: dict[str, Any],
    blocks: Sequence[Block],
    windows: FiniteSource | None,
    on_step: Callable[[dict[str, Any]], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> None:
    """Begin the run folder, and take the steps that are left.

    Args:
        setup: of the run.
        objective: model and loss.
        base: what is written of the base.
        blocks: the training sequences.
        windows: of restoration; None without it.
        on_step, stop: as `train` takes them.

    Raises:
        DivergedError: loss or gradients are not finite.
        Interrupted: a signal stopped it.
    """
    recipe, run = setup.recipe, setup.run
    checkpoint = last_checkpoint(run) if setup.resume else None
    count = count_trainable(objective.model)
    _LOG.info(f"training {count}")
    if setup.process.is_main_process:
        # What is damaged is refused before anything is moved or written.
        if checkpoint:
            check_readable(checkpoint, objective)
        run.read_metadata()
        run.read_metrics()
        with writing(run.path):
            drop_old(run)
        run.set_aside_result(step_of(checkpoint) if checkpoint else 0)
        facts = {
            "base": base,
            "trainable": asdict(count),
            "data": describe(blocks),
            "device": _name(setup.device),
            "processes": setup.process.num_processes,
        }
        begin_folder(run, recipe, setup.config, setup.tokenizer, facts)
        run.trim_metrics(step_of(checkpoint) if checkpoint else 0)
    if recipe.parallel.data == "fsdp2":
        shard(objective, objective.model, setup.process.device)
    if checkpoint:
        _LOG.info(f"resuming from {checkpoint}")
        if step_of(checkpoint) >= Batches(blocks, recipe.training, recipe.seed, 0, setup.data_processes).steps:
            load_trained(checkpoint, objective)  # stopped between the last step and the adapter
            return
    utilization = Utilization(recipe, setup.config, setup.dtype)
    loop = Loop(objective, blocks, recipe, run, setup.dtype, _pad_id(setup.tokenizer), utilization, windows)
    signal = loop.run(checkpoint, on_step, stop)
    if signal is not None:
        raise Interrupted(f"stopped after step {loop.done}, with a checkpoint", signal)


def finish(setup: Setup, model: Any, base: dict[str, Any]) -> None:
    """Write what was trained, and measure it on the validation data.

    Args:
        setup: of the run.
        model: as trained.
        base: what is written of the base.

    Raises:
        OutputError: the run folder was removed meanwhile.
    """
    recipe, run = setup.recipe, setup.run
    unshard(model, keep=setup.process.is_main_process)
    if setup.process.is_main_process:
        if not run.is_run:
            raise OutputError(f"{run} was removed while it was trained; start again")
        if recipe.adapter.kind == "full":
            save_full(model, run.model, setup.dtype, setup.tokenizer)
        else:
            save_adapter(model, run.adapter, setup.config, base)
        if recipe.data.validation:
            validate(recipe, run)
    setup.process.wait_for_everyone()


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"


def _pad_id(tokenizer: Any) -> int:
    """Any id does: padding is a document of its own whose tokens are not predicted."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
