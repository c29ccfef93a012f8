"""Checkpoints: what is trained, the optimizer and the random states, whole or not at all.

A checkpoint is written under `checkpoints/.tmp`, synced, and renamed to `checkpoint-STEP`; only then are older ones
dropped. A folder with the final name is therefore always whole, whatever stopped the process.

| file | what |
|---|---|
| trainable.safetensors | the trained tensors, float32, whole |
| optimizer.pt | the optimizer's state with whole tensors; under ZeRO a folder of DeepSpeed's in its place |
| scaler.pt | the gradient scaler's state, in float16 |
| random-N.pt | the random states of process N |
| state.json | the step, the steps of the run, the number of processes |
"""

import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lengthen.adapters.weights import stored_shapes
from lengthen.errors import DivergedError, LengthenError, OutputError, one_line
from lengthen.files import sync_folder, write_json
from lengthen.run_folder import RunFolder
from lengthen.training.optim import page_states, trained_parameters
from lengthen.training.parallel import full_states, full_tensors, is_sharded, shard_like

__all__ = [
    "check_readable",
    "drop_old",
    "last_checkpoint",
    "load_checkpoint",
    "load_trained",
    "save_checkpoint",
    "step_of",
]

KEEP = 2
TRAINABLE, OPTIMIZER, SCALER, STATE = "trainable.safetensors", "optimizer.pt", "scaler.pt", "state.json"


def last_checkpoint(run: RunFolder) -> Path | None:
    """The newest whole checkpoint of a run folder, or None."""
    return max(_checkpoints(run), key=step_of, default=None)


def _checkpoints(run: RunFolder) -> list[Path]:
    found = run.checkpoints.glob("checkpoint-*")
    return [path for path in found if path.name.removeprefix("checkpoint-").isdecimal()]


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def drop_old(run: RunFolder) -> None:
    """Remove all checkpoints but the newest, and what is left of one that a killed process was removing."""
    dropped = run.checkpoints / ".old"
    shutil.rmtree(dropped, ignore_errors=True)
    for old in sorted(_checkpoints(run), key=step_of)[:-KEEP]:
        shutil.rmtree(old.rename(dropped))  # half of one must not have the name of a whole one


def save_checkpoint(
    run: RunFolder, step: int, steps: int, accelerator: Accelerator, objective: Any, model: Any, optimizer: Any
) -> None:
    """Write a checkpoint and drop all but the newest; all processes must call this together.

    Args:
        run: the run folder.
        step: that was done last.
        steps: of the whole run.
        accelerator: of the run.
        objective: the `CausalLMObjective`.
        model: what accelerate made of it.
        optimizer: what accelerate made of it.

    Raises:
        DivergedError: a trained tensor is not finite; earlier checkpoints are untouched.
        OutputError: the disk is full, or the place is not writable.
    """
    checkpoints = run.checkpoints
    final, temporary = checkpoints / f"checkpoint-{step}", checkpoints / ".tmp"
    is_main = accelerator.is_main_process
    try:
        if is_main:
            shutil.rmtree(temporary, ignore_errors=True)
            checkpoints.mkdir(exist_ok=True)  # but not the run folder, where someone removed it meanwhile
            temporary.mkdir()
        accelerator.wait_for_everyone()
        tensors = full_tensors(trained_parameters(objective), keep=is_main)
        _check_finite(tensors, step, accelerator)
        if is_main:
            save_file(tensors, temporary / TRAINABLE)
        _save_optimizer(temporary, accelerator, objective, model, optimizer)
        torch.save(_random_states(), temporary / f"random-{accelerator.process_index}.pt")
        accelerator.wait_for_everyone()
        if is_main:
            write_json(temporary / STATE, {"step": step, "steps": steps, "processes": accelerator.num_processes})
            sync_folder(temporary)
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
            sync_folder(checkpoints)
            drop_old(run)
    except (OSError, SafetensorError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        reason = str(error).splitlines()[0]
        raise OutputError(f"can't write {final.name}: {reason}; free space and start again with `resume`") from error
    accelerator.wait_for_everyone()


def load_trained(checkpoint: Path, objective: Any) -> None:
    """Take the trained tensors of a checkpoint over, and nothing else of it.

    Args:
        checkpoint: its folder.
        objective: model and loss.

    Raises:
        OutputError: the checkpoint is damaged, or holds other tensors.
    """
    with _reading(checkpoint):
        saved = load_file(checkpoint / TRAINABLE)
    _check_shapes({name: tuple(tensor.shape) for name, tensor in saved.items()}, checkpoint, objective)
    with torch.no_grad():
        for name, tensor in trained_parameters(objective).items():
            tensor.copy_(shard_like(saved[name], tensor))


def _check_shapes(saved: dict[str, tuple[int, ...]], checkpoint: Path, objective: Any) -> None:
    # ZeRO-3 leaves its parameters empty, and says what they were.
    trained = trained_parameters(objective).items()
    if saved != {name: tuple(getattr(tensor, "ds_shape", tensor.shape)) for name, tensor in trained}:
        raise OutputError(f"{checkpoint} holds other tensors than this recipe trains; choose another out")


def load_checkpoint(checkpoint: Path, accelerator: Accelerator, objective: Any, model: Any, optimizer: Any) -> int:
    """Take everything of a checkpoint over: weights, optimizer, random states; all processes together.

    Args:
        checkpoint: its folder.
        accelerator: of the run.
        objective: model and loss.
        model: the objective as accelerate prepared it.
        optimizer: as accelerate prepared it.

    Returns:
        The step that was done last.

    Raises:
        OutputError: the checkpoint is damaged, or holds other tensors.
    """
    load_trained(checkpoint, objective)
    with _reading(checkpoint):
        _load_states(checkpoint, accelerator, objective, model, optimizer)
    return step_of(checkpoint)


def check_readable(checkpoint: Path, objective: Any) -> None:
    """Refuse a checkpoint of which a file is damaged, as far as that shows without its tensors.

    Args:
        checkpoint: its folder.
        objective: model and loss that go on from it.

    Raises:
        OutputError: it is, or it holds other tensors.
    """
    with _reading(checkpoint):
        shapes = stored_shapes(checkpoint / TRAINABLE)
        for file in checkpoint.glob("*.pt"):
            torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    _check_shapes(shapes, checkpoint, objective)


@contextmanager
def _reading(checkpoint: Path) -> Iterator[None]:
    """Turn whatever torch, pickle, zipfile and safetensors raise over a damaged file into one error."""
    try:
        yield
    except (LengthenError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise OutputError(
            f"{checkpoint} is damaged ({one_line(error)}); remove it, and go on from the one before with `resume`"
        ) from error


def _load_states(checkpoint: Path, accelerator: Accelerator, objective: Any, model: Any, optimizer: Any) -> None:
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        model.load_checkpoint(str(checkpoint), load_module_strict=False)  # ours are without the frozen weights
    else:
        saved = torch.load(checkpoint / OPTIMIZER, map_location="cpu", weights_only=True)
        if is_sharded(objective):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            for index, state in saved["state"].items():
                for name, value in state.items():
                    state[name] = shard_like(value, parameters[index])
        optimizer.load_state_dict(saved)
        page_states(optimizer)
    if accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(torch.load(checkpoint / SCALER, weights_only=True))
    states = checkpoint / f"random-{accelerator.process_index}.pt"
    if states.is_file():  # not with more processes than the checkpoint was written by
        _set_random_states(torch.load(states, weights_only=True))


def _check_finite(tensors: dict[str, torch.Tensor], step: int, accelerator: Accelerator) -> None:
    """Stop all processes where the first one, which has the whole tensors, finds one that is not finite."""
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if accelerator.reduce(torch.tensor(len(broken), device=accelerator.device)):
        what = broken[0] if broken else "a trained tensor"
        raise DivergedError(f"after step {step}, {what} is not finite; lower training.learning_rate")


def _save_optimizer(folder: Path, accelerator: Accelerator, objective: Any, model: Any, optimizer: Any) -> None:
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        model.save_checkpoint(str(folder), exclude_frozen_parameters=True)
    else:
        states = optimizer.state_dict()
        if is_sharded(objective):
            states = full_states(states, keep=accelerator.is_main_process)
        if accelerator.is_main_process:
            torch.save(states, folder / OPTIMIZER)
    if accelerator.scaler is not None and accelerator.is_main_process:
        torch.save(accelerator.scaler.state_dict(), folder / SCALER)


def _random_states() -> dict[str, Any]:
    name, keys, *rest = np.random.get_state(legacy=True)
    numbers = (name, np.asarray(keys).tolist(), *rest)  # an array would need pickle to load
    states: dict[str, Any] = {"python": random.getstate(), "numpy": numbers, "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_random_states(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
