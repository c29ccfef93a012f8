import os
import socket
import subprocess
import sys

import pytest

from lengthen.recipe import parse_recipe
from lengthen.run_folder import RunFolder


def _free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return str(listener.getsockname()[1])


def _options(launcher, processes):
    if launcher == "torch.distributed.run":
        return ["--nproc-per-node", str(processes), "--master-port", _free_port()]
    # --cpu would ask for MPI; without GPUs, the processes of --multi_gpu use gloo.
    return ["--multi_gpu", "--num_processes", str(processes), "--num_machines", "1", "--mixed_precision", "no",
            "--main_process_port", _free_port()]  # fmt: skip


@pytest.fixture
def train_in_processes(documents, tmp_path):
    """A function that trains four sequences a step in one or several processes; the run folder and its losses."""

    def train(base, processes, name=None, launcher="torch.distributed.run", options=(), training=None, **recipe):
        run = tmp_path / (name or f"run{processes}")
        share = recipe["parallel"].get("sequence", 1) if isinstance(recipe.get("parallel"), dict) else 1
        content = {
            "model": str(base),
            "out": str(run),
            "context": {"target": 128, "method": "yarn"},
            "data": {"train": [str(documents)]},
            "training": {
                "steps": 4, "learning_rate": 1e-3, "warmup_steps": 1, "dtype": "float32",
                "accumulation": 4 * share // processes, "save_every": 2, **(training or {}),
            },
            **recipe,
        }  # fmt: skip
        path = tmp_path / f"{run.name}.yaml"
        path.write_text(parse_recipe(content, "test").to_yaml())
        launch = [] if processes == 1 else ["-m", launcher, *_options(launcher, processes)]
        command = [sys.executable, *launch, "-m", "lengthen.cli", "train", str(path), "--quiet", *options]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "passive",
            "LENGTHEN_CACHE": str(tmp_path / "cache"),
        }
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return run, [record["loss"] for record in RunFolder(run).read_metrics()]

    return train
