import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from lengthen.recipe import parse_recipe
from lengthen.run_folder import RunFolder


def _free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return str(listener.getsockname()[1])


def _launches(launcher, processes, nodes):
    """The launcher's options on each node."""
    port = _free_port()
    if launcher == "torch.distributed.run":
        options = ["--nproc-per-node", str(processes // nodes), "--master-port", port]
        if nodes == 1:
            return [options]
        address = ["--nnodes", str(nodes), "--master-addr", "127.0.0.1"]
        return [[*options, *address, "--node-rank", str(rank)] for rank in range(nodes)]
    # --cpu would ask for MPI; without GPUs, the processes of --multi_gpu use gloo.
    return [["--multi_gpu", "--num_processes", str(processes), "--num_machines", "1", "--mixed_precision", "no",
             "--main_process_port", port]]  # fmt: skip


@pytest.fixture
def train_in_processes(documents, tmp_path):
    """A function that trains four sequences a step in one or several processes; the run folder and its losses.

    Several nodes are launchers of their own, which find each other over the loopback interface.
    """

    def train(
        base, processes, name=None, launcher="torch.distributed.run", options=(), training=None, nodes=1, **recipe
    ):
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
        launches = (
            [["-m", launcher, *each] for each in _launches(launcher, processes, nodes)] if processes > 1 else [[]]
        )
        command = ["-m", "lengthen.cli", "train", str(path), "--quiet", *options]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "passive",
            "LENGTHEN_CACHE": str(tmp_path / "cache"),
        }
        with ThreadPoolExecutor(len(launches)) as pool:
            ends = pool.map(
                lambda launch: subprocess.run(
                    [sys.executable, *launch, *command], env=environment, capture_output=True, text=True, timeout=300
                ),
                launches,
            )
        for done in ends:
            assert done.returncode == 0, done.stderr
        return run, [record["loss"] for record in RunFolder(run).read_metrics()]

    return train
