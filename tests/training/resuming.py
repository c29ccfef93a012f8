"""Runs of four steps with a checkpoint after the second, stopped between the two and resumed."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from lengthen.run_folder import RunFolder
from lengthen.training.run import train


def losses(recipe, **options):
    return [record["loss"] for record in RunFolder(train(recipe, **options)).read_metrics()]


def check_resumed_from_its_middle(recipe):
    """The same losses and the same adapter, bit for bit, as without a stop."""
    run = Path(recipe.out)
    whole = losses(recipe)
    adapter = run / "adapter" / "adapter_model.safetensors"
    expected = load_file(adapter)
    shutil.rmtree(adapter.parent)
    shutil.rmtree(run / "checkpoints" / "checkpoint-4")
    assert losses(recipe, resume=True) == whole
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load_file(adapter).items())
