"""Two processes over gloo follow the trajectory of one process with accumulation."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from lengthen.recipe import parse_recipe
from lengthen.training.run import read_metrics


@pytest.mark.parametrize("launcher", ["torch.distributed.run", "accelerate.commands.launch"])
def test_two_processes_equal_one_with_accumulation(base, documents, tmp_path, launcher):
    trajectories, adapters = [], []
    for processes in (1, 2):
        content = {
            "model": str(base),
            "out": str(tmp_path / f"run{processes}"),
            "context": {"target": 128, "method": "yarn"},
            "data": {"train": [str(documents)]},
            "training": {
                "steps": 4, "learning_rate": 1e-3, "warmup_steps": 1, "dtype": "float32",
                "accumulation": 4 // processes, "save_every": 2,
            },
        }  # fmt: skip
        recipe = tmp_path / f"recipe{processes}.yaml"
        recipe.write_text(parse_recipe(content, "test").to_yaml())
        launch = [] if processes == 1 else ["-m", launcher, *_options(launcher)]
        command = [sys.executable, *launch, "-m", "lengthen.cli", "train", str(recipe), "--quiet"]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "passive",
            "LENGTHEN_CACHE": str(tmp_path / "cache"),
        }
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        trajectories.append([record["loss"] for record in read_metrics(tmp_path / f"run{processes}")])
        adapters.append(load_file(tmp_path / f"run{processes}" / "adapter" / "adapter_model.safetensors"))
    assert len(trajectories[0]) == 4
    assert trajectories[0] == pytest.approx(trajectories[1], rel=1e-5)
    for name, tensor in adapters[0].items():
        torch.testing.assert_close(adapters[1][name], tensor, rtol=1e-3, atol=1e-5)


def _options(launcher):
    if launcher == "torch.distributed.run":
        return ["--nproc-per-node", "2", "--master-port", "29517"]
    # --cpu would ask for MPI; without GPUs, the processes of --multi_gpu use gloo.
    return [
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--main_process_port",
        "29518",
    ]
