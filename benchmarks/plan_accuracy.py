"""How far is `lengthen plan` from the truth? Its bytes beside the measured peak of real training steps on CPU.

Each case trains two steps in a process of its own: the second has the optimizer's states beside its activations. The
peak is that of the process's resident memory while it trains, above what it held after its imports. Two bases: the
shipped one, and SmolLM2-135M-Instruct, whose maximum is written down to 1,024 tokens so that every context is an
extension. Linux only; about 40 minutes on two cores, `--only NAME` for single cases.

glibc keeps freed blocks below 32 MiB, as much as twice what is in use. `--mmap` turns that off in the processes that
train (MALLOC_MMAP_THRESHOLD_=262144), which is what the plan describes.
"""

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# Two OpenMP programs that spin slow each other many times over.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

SMOLLM2 = "smollm2-135m-instruct"
LORA_ALL = ["adapter.targets=all", "adapter.rank=64", "adapter.embeddings=false", "adapter.norms=false"]
FULL = ["attention.kind=full"]

# name: (base, tokens, what differs from S2, LoRA on attention with embeddings and norms, memory.preset=balanced)
CASES: dict[str, tuple[str, int, list[str]]] = {
    "tiny 4k full attention, fast": ("tiny", 4096, [*FULL, "memory.preset=fast"]),
    "tiny 8k": ("tiny", 8192, []),
    "tiny 16k smallest": ("tiny", 16384, ["memory.preset=low_memory"]),
    "tiny 16k nf4, all linear": ("tiny", 16384, ["quantize=nf4", *LORA_ALL]),
    "smollm2 2k": (SMOLLM2, 2048, []),
    "smollm2 4k": (SMOLLM2, 4096, []),
    "smollm2 8k": (SMOLLM2, 8192, []),
    "smollm2 2k fast": (SMOLLM2, 2048, ["memory.preset=fast"]),
    "smollm2 4k full attention": (SMOLLM2, 4096, FULL),
    "smollm2 4k checkpointing": (SMOLLM2, 4096, ["memory.activation_checkpointing=true"]),
    "smollm2 8k smallest": (SMOLLM2, 8192, ["memory.preset=low_memory"]),
    "smollm2 2k nf4, all linear": (SMOLLM2, 2048, ["quantize=nf4", *LORA_ALL]),
    "smollm2 4k nf4, all linear": (SMOLLM2, 4096, ["quantize=nf4", *LORA_ALL]),
    "smollm2 8k nf4, all linear, smallest": (SMOLLM2, 8192, ["quantize=nf4", *LORA_ALL, "memory.preset=low_memory"]),
    "smollm2 4k all linear, accumulation": (SMOLLM2, 4096, [*LORA_ALL, "training.accumulation=2"]),
    "smollm2 2k full fine-tuning": (SMOLLM2, 2048, ["adapter.kind=full"]),
    "smollm2 2k float32": (SMOLLM2, 2048, ["training.dtype=float32"]),
}


def measure(case: str, base: Path) -> dict[str, Any]:
    """Train, and return the plan and the measured peak; in a process of its own."""
    import bitsandbytes  # noqa: F401
    import numpy as np

    from lengthen.planning import plan
    from lengthen.recipe import parse_recipe
    from lengthen.training import run
    from lengthen.training.loop import Loop
    from record import PeakMemory

    _, tokens, overrides = CASES[case]
    with tempfile.TemporaryDirectory() as folder:
        generator = np.random.default_rng(0)
        generator.integers(0, 4096, 4 * tokens).astype("<u2").tofile(Path(folder) / "tokens.bin")
        content: dict[str, Any] = {
            "model": str(base),
            "out": f"{folder}/run",
            "context": {"target": tokens, "method": "yarn"},
            "attention": {"sinks": 0},
            "data": {"train": [f"{folder}/tokens.bin"], "packing": "concatenate"},
            "training": {"steps": 2, "warmup_steps": 0, "dtype": "bfloat16"},
        }
        for override in overrides:
            key, _, text = override.partition("=")
            *sections, last = key.split(".")
            place = content
            for section in sections:
                place = place.setdefault(section, {})
            place[last] = {"true": True, "false": False}.get(text, int(text) if text.isdigit() else text)
        if content.get("adapter", {}).get("kind") != "full":
            content["adapter"] = {"rank": 8, "alpha": 16, "embeddings": True, **content.get("adapter", {})}
        recipe = parse_recipe(content, case)
        os.environ["LENGTHEN_CACHE"] = f"{folder}/cache"
        memory = PeakMemory()

        class Measured(Loop):
            def run(self, *arguments: Any, **more: Any) -> Any:
                gc.collect()
                ctypes.CDLL("libc.so.6").malloc_trim(0)  # what loading left behind is not the step's
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
                result = super().run(*arguments, **more)
                found["bytes"] = memory.bytes
                return result

        found: dict[str, Any] = {}
        run.Loop = Measured  # type: ignore[misc]
        run.train(recipe)
        seconds = json.loads((Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()[-1])
        planned = plan(recipe, "cpu")
        return {
            "case": case,
            "model": CASES[case][0],
            "tokens": tokens,
            "overrides": overrides,
            "measured_bytes": found["bytes"],
            "planned_bytes": planned.peak_bytes,
            "deviation": planned.peak_bytes / found["bytes"] - 1,
            "breakdown": planned.memory.breakdown,
            "moment": planned.memory.moment,
            "metrics": seconds,
        }


def prepare(model: str, folder: Path) -> Path:
    """A base whose context is below all of the cases'."""
    import torch
    from transformers import AutoModelForCausalLM

    from lengthen.models.load import load_base, load_config, load_tokenizer
    from lengthen.models.resolve import resolve_model

    if model == "tiny":
        return Path(resolve_model("tiny").location)
    source = resolve_model(model)
    config = load_config(source)
    config.max_position_embeddings = 1024
    base: AutoModelForCausalLM = load_base(source, config, torch.bfloat16, device=torch.device("cpu"))
    base.save_pretrained(folder)
    load_tokenizer(model).save_pretrained(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="cases in it that are not measured now stay")
    parser.add_argument("--only", action="append", choices=CASES, metavar="CASE")
    parser.add_argument("--mmap", action="store_true", help="freed tensors go back to the system at once")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--base", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(arguments.case, arguments.base)))
        return
    from lengthen.files import write_json
    from record import record

    results: dict[str, Any] = {}
    if arguments.json and arguments.json.is_file():
        results = {each["case"]: each for each in json.loads(arguments.json.read_text(encoding="utf-8"))["results"]}
    with tempfile.TemporaryDirectory() as folder:
        bases = {}
        print(f"{'case':<40}{'planned, GB':>12}{'measured, GB':>14}{'deviation':>11}", flush=True)
        for case in arguments.only or CASES:
            model = CASES[case][0]
            if model not in bases:
                bases[model] = prepare(model, Path(folder) / model)
            command = [sys.executable, __file__, "--case", case, "--base", str(bases[model])]
            environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 18)} if arguments.mmap else os.environ
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
            if done.returncode:
                print(f"{case:<40} failed: {(done.stderr.splitlines() or ['?'])[-1]}")
                continue
            result = json.loads(done.stdout.splitlines()[-1])
            results[case] = result
            planned, measured = result["planned_bytes"] / 1e9, result["measured_bytes"] / 1e9
            print(f"{case:<40}{planned:>12.2f}{measured:>14.2f}{result['deviation']:>11.1%}", flush=True)
            if arguments.json:
                write_json(arguments.json, {**record(), "mmap": arguments.mmap, "results": list(results.values())})


if __name__ == "__main__":
    main()
