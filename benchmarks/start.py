"""How long commands take before they do their work: a plan, and a training run up to its first step.

    python benchmarks/start.py [--beside /path/to/another/src] [--repeats 5] [--json FILE]

Half a minute. Seconds are those of the processor (user and system), for on a machine that does other things too the
clock tells more of these. The second of two plans reads what the first has found out, and is the one that counts; so is
the second run. With `--beside`, the sources of another commit are measured in turns with these.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lengthen.files import write_json
from record import record

SRC = Path(__file__).parents[1] / "src"
COMMANDS = {
    "--help": ["--help"],
    "plan llama2-7b-8k": ["plan", "llama2-7b-8k", "--quiet"],
    "plan llama2-7b-8k --device v100-32gb": ["plan", "llama2-7b-8k", "--device", "v100-32gb", "--quiet"],
}
TRAIN = "train, to the first logged step"
RECIPE = """\
model: tiny
context: {target: 512, method: yarn}
data: {min_tokens: 64, packing: concatenate}
training: {steps: 1, batch_size: 1, accumulation: 1, log_every: 1}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beside", type=Path, help="the src folder of another commit")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    trees = {"here": SRC} | ({"beside": arguments.beside.resolve()} if arguments.beside else {})
    seconds: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
        documents = folder / "documents"
        documents.mkdir()
        for i in range(4):
            text = f"The quick brown fox number {i} jumps over the lazy dog. " * 200
            (documents / f"{i}.txt").write_text(text, encoding="utf-8")
        for repeat in range(arguments.repeats + 1):
            for tree, src in trees.items():
                environment = {**os.environ, "PYTHONPATH": str(src), "LENGTHEN_CACHE": str(folder / tree)}
                found = {name: of_command(command, environment) for name, command in COMMANDS.items()}
                run = folder / f"{tree}-{repeat}"
                found[TRAIN] = to_first_step(folder / "recipe.yaml", documents, run, environment)
                for name, value in found.items():
                    if repeat:  # the first one fills the cache
                        seconds.setdefault((name, tree), []).append(value)

    rows = []
    print(f"{'user and system seconds, median (least to most)':<48}" + "".join(f"{tree:>24}" for tree in trees))
    for name in [*COMMANDS, TRAIN]:
        cells = []
        for tree in trees:
            values = sorted(seconds[name, tree])
            rows.append({"command": name, "sources": tree, "median": statistics.median(values), "seconds": values})
            cells.append(f"{statistics.median(values):.2f} ({values[0]:.2f} to {values[-1]:.2f})")
        print(f"{name:<48}" + "".join(f"{cell:>24}" for cell in cells))
    if arguments.json:
        write_json(arguments.json, {**record(), "results": rows})


def of_command(command: list[str], environment: dict[str, str]) -> float:
    """Seconds of a whole command."""
    with subprocess.Popen(
        [sys.executable, "-m", "lengthen.cli", *command], env=environment, stdout=subprocess.DEVNULL
    ) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    return usage.ru_utime + usage.ru_stime


def to_first_step(recipe: Path, documents: Path, run: Path, environment: dict[str, str]) -> float:
    """Seconds until a run has written its first step down. Linux only."""
    command = [sys.executable, "-m", "lengthen.cli", "train", str(recipe), f"data.train={documents}", f"out={run}"]
    metrics = run / "metrics.jsonl"
    with subprocess.Popen([*command, "--quiet"], env=environment) as process:
        while not (metrics.is_file() and metrics.stat().st_size):
            assert process.poll() is None, "the run has ended before its first step"
            time.sleep(0.005)
        fields = Path(f"/proc/{process.pid}/stat").read_text(encoding="ascii").rsplit(")")[-1].split()
    assert process.returncode == 0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
