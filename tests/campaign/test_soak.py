"""Hours of serving and training on the shipped base, with the memory of the process."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml
from adapter_files import make_adapter
from load import alone, run, slope

from server_process import serving

pytestmark = pytest.mark.slow

SECONDS = float(os.environ.get("LENGTHEN_SOAK_SECONDS", 900))
SEED = 22
MOST_SLOPE = 32  # MiB an hour, of the second half


def figures(memory):
    middle = (memory[0][0] + memory[-1][0]) / 2
    hourly = slope([point for point in memory if point[0] > middle]) * 3600 / 2**20
    at = {name: memory[index][1] >> 20 for name, index in (("begin", 0), ("middle", len(memory) // 2), ("end", -1))}
    return {"seconds": round(memory[-1][0] - memory[0][0]), "mib": at, "mib_per_hour": round(hourly, 1)}


def test_serving(tmp_path):
    for number in range(3):
        make_adapter("tiny", tmp_path / f"a{number}", number, amount=0.1, embeddings=False, norms=False)
    adapters = [f"--adapter=a{number}={tmp_path / f'a{number}'}" for number in range(3)]
    with serving(*adapters, "--template", "vicuna", "--max-body", "0.1") as server:
        models = ["tiny", "a0", "a1", "a2"]
        seen = asyncio.run(run(server, alone(server, models), models, 8, SECONDS, SEED))
    said = {"soak": "serve", "clients": 8, "seed": SEED, "requests": sum(seen.counts.values()), **figures(seen.memory)}
    print(json.dumps(said))
    assert seen.wrong == []
    assert said["mib_per_hour"] < MOST_SLOPE


def test_training(tmp_path, documents):
    recipe = {
        "model": "tiny",
        "out": str(tmp_path / "run"),
        "context": {"target": 1024, "method": "yarn"},
        "data": {"train": ["python-stdlib:train"], "max_documents": 200},
        "training": {"steps": 10**6, "dtype": "float32", "save_every": 50, "log_every": 10},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "lengthen.cli", "train", str(tmp_path / "recipe.yaml"), "--quiet"]
    environment = {**os.environ, "LENGTHEN_CACHE": str(tmp_path / "cache")}
    process, memory = subprocess.Popen(command, env=environment), []
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not metrics.is_file():
        assert process.poll() is None
        time.sleep(0.5)
    until, watched = time.monotonic() + SECONDS, psutil.Process(process.pid)
    while time.monotonic() < until:
        assert process.poll() is None
        memory.append((time.monotonic(), watched.memory_info().rss))
        time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 128 + signal.SIGTERM
    steps = json.loads(metrics.read_text().splitlines()[-1])["step"]
    said = {"soak": "train", "steps": steps, **figures(memory)}
    print(json.dumps(said))
    assert said["mib_per_hour"] < MOST_SLOPE
