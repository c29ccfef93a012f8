"""Peak memory and time of one training step at growing lengths: trl's SFTTrainer, and ours with each memory saver.

    python benchmarks/memory.py --json docs/results/memory.json
    python benchmarks/memory.py --json docs/results/memory.json --lengths 65536 131072 --ways "s2, smallest"

SmolLM2-135M in bfloat16, one sequence of Python's standard library; LoRA r=8 on attention, norms and, but for "frozen
embeddings", the embeddings are trained; S2 groups of 4,096 tokens (`--group`); activations are recomputed, except by
`fast`. Needs trl. Each case is a process of its own: peak memory is what it held at most above what it held after its
imports, and time is the step's own, the process's only one; `cpu_seconds` are the process's, over all its cores and
with what comes before and after the step: on a machine that others use too, these are what can be compared. The loss of
that step tells that the same was computed. The second line adds to the first one's file. Three hours on two cores, and
half an hour. `fast` takes over a gigabyte for each 1,024 tokens; a case that memory does not suffice for is left out.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, TrainerCallback

import lengthen
from lengthen.adapters.targets import norm_modules
from lengthen.context import extend
from lengthen.data.tokens import default_cache, load_tokens
from lengthen.files import write_json
from lengthen.models.load import load_base, load_config, load_tokenizer
from lengthen.models.resolve import resolve_model
from lengthen.recipe import parse_recipe
from lengthen.run_folder import RunFolder
from lengthen.training.memory import trim_malloc
from record import PeakMemory, record

GROUP, CHUNK = 4096, 8192  # tokens
RELEASED: dict[str, Any] = {"memory": {"activation_checkpointing": True, "trim_malloc": True}}
FROZEN = RELEASED | {"adapter": {"rank": 8, "alpha": 16}}
OURS: dict[str, dict[str, Any]] = {
    "full": {"attention": {"kind": "full"}},
    "s2": {},
    "s2, fast": {"memory": {"preset": "fast"}},
    "s2, keep attention": {"memory": {"activation_checkpointing": "keep_attention"}},
    "s2, tiles": {"memory": {"activation_checkpointing": True, "mlp_tile": 2048}},
    "s2, released": RELEASED,
    "s2, keep attention, released": {"memory": {"preset": "balanced", "trim_malloc": True}},
    "s2, smallest": {"memory": {"preset": "low_memory"}},
    "s2, chunks": {"memory": {"sequence_chunk": CHUNK}},
    "s2, chunks, released": {"memory": {"sequence_chunk": CHUNK, "trim_malloc": True}},
    "s2, chunks, every second kept, released": {
        "memory": {"sequence_chunk": CHUNK, "checkpoint_every": 2, "trim_malloc": True}
    },
    "s2, chunks, in a file, released": {
        "memory": {"sequence_chunk": CHUNK, "offload_activations": "disk", "trim_malloc": True}
    },
    "s2, frozen embeddings, released": FROZEN,
    "s2, frozen embeddings, 2 shards": FROZEN | {"parallel": {"sequence": 2}},
    "s2, frozen embeddings, 4 shards": FROZEN | {"parallel": {"sequence": 4}},
    "s2, 2 shards": RELEASED | {"parallel": {"sequence": 2}},
    "s2, 4 shards": RELEASED | {"parallel": {"sequence": 4}},
    "s2, 2 shards, fsdp2": RELEASED | {"parallel": {"data": "fsdp2", "sequence": 2}},
    "s2, 4 shards, fsdp2": RELEASED | {"parallel": {"data": "fsdp2", "sequence": 4}},
    "s2, nf4": {"quantize": "nf4"},
    "s2, nf4, smallest": {"quantize": "nf4", "memory": {"preset": "low_memory"}},
}
# Released: glibc gives freed memory back, in SFTTrainer's process too.
WAYS = ["SFTTrainer", "SFTTrainer, released", *OURS]


def prepare(folder: Path, length: int) -> None:
    """The base as an ordinary bfloat16 folder, and one sequence as a token file."""
    source, tokenizer = resolve_model("smollm2-135m-instruct"), load_tokenizer("smollm2-135m-instruct")
    config = load_config(source)
    # Training refuses sequences that don't go beyond the base's context; here only their cost counts.
    config.max_position_embeddings = 2048
    if not (folder / "base").exists():
        load_base(source, config, torch.bfloat16).save_pretrained(folder / "base")
        tokenizer.save_pretrained(folder / "base")
    store, _ = load_tokens(["python-stdlib:train"], tokenizer, config.vocab_size, default_cache())
    tokens: list[np.ndarray] = []
    while sum(map(len, tokens)) < length:
        tokens.append(store[len(tokens)])
    np.concatenate(tokens)[:length].astype("uint16").tofile(folder / f"{length}.bin")


def ours(way: str, folder: Path, length: int, group: int, scratch: Path) -> dict[str, float]:
    recipe = {
        "model": str(folder / "base"),
        "out": str(scratch / "run"),
        "context": {"target": length, "method": "linear"},
        "attention": {"group_size": group, "sinks": 0},
        "adapter": {"rank": 8, "alpha": 16, "embeddings": True},
        "data": {"train": [str(folder / f"{length}.bin")]},
        "training": {"steps": 1, "dtype": "bfloat16", "warmup_steps": 0},
        "memory": {"activation_checkpointing": True},
        **OURS[way],
    }
    (line,) = RunFolder(lengthen.train(parse_recipe(recipe, "memory"))).read_metrics()
    return {"seconds": line["seconds"], "loss": line["loss"]}


def sft(folder: Path, length: int, scratch: Path) -> dict[str, float]:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    class Clock(TrainerCallback):
        seconds = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.seconds = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.seconds = time.perf_counter() - self.seconds

    config = load_config(resolve_model(str(folder / "base")))
    config = extend(config, length)
    model = AutoModelForCausalLM.from_pretrained(folder / "base", config=config, dtype=torch.bfloat16)
    adapter = LoraConfig(
        task_type="CAUSAL_LM",
        r=8,
        lora_alpha=16,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        modules_to_save=["embed_tokens", *norm_modules(model)],
        ensure_weight_tying=True,
    )
    tokens = np.fromfile(folder / f"{length}.bin", "uint16").astype(np.int64)
    clock = Clock()
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(scratch),
            max_length=length,
            max_steps=1,
            per_device_train_batch_size=1,
            bf16=True,
            use_cpu=True,
            gradient_checkpointing=True,
            save_strategy="no",
            report_to=[],
        ),
        train_dataset=Dataset.from_dict({"input_ids": [tokens.tolist()]}),
        processing_class=load_tokenizer(str(folder / "base")),
        peft_config=adapter,
        callbacks=[clock],
    )
    loss = trainer.train().training_loss
    return {"seconds": clock.seconds, "loss": loss}


def case(way: str, length: int, group: int, folder: Path) -> dict[str, float]:
    scratch = folder / "scratch"  # of all processes that share the sequence
    if way not in OURS:
        import trl.trainer.sft_trainer  # noqa: F401 - its imports are not its memory
    if way == "SFTTrainer, released":
        trim_malloc()
    peak, began = PeakMemory(), time.process_time()
    result = ours(way, folder, length, group, scratch) if way in OURS else sft(folder, length, scratch)
    return result | {"cpu_seconds": time.process_time() - began, "peak_bytes": peak.bytes}


def run_case(way: str, length: int, group: int, folder: Path) -> dict[str, float]:
    """In processes of its own; the largest peak of them.

    Raises:
        CalledProcessError: the case failed.
    """
    processes = OURS.get(way, {}).get("parallel", {}).get("sequence", 1)
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    command = [sys.executable, *launcher, __file__, "--case", way, str(length), str(group), str(folder)]
    (folder / "scratch").mkdir()
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    finally:
        shutil.rmtree(folder / "scratch")
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return max(found, key=lambda each: each["peak_bytes"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 8192, 16384, 32768])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--json", type=Path, help="written after each case; cases that are in it are not run again")
    parser.add_argument("--group", type=int, default=GROUP, help="tokens of an S2 group")
    parser.add_argument("--case", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        way, length, group, folder = arguments.case
        # In one piece, as several processes write to the same pipe.
        sys.stdout.write(json.dumps(case(way, int(length), int(group), Path(folder))) + "\n")
        return
    rows = []
    if arguments.json and arguments.json.is_file():
        rows = json.loads(arguments.json.read_text(encoding="utf-8"))["results"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for length in arguments.lengths:
            prepare(folder, length)
            for way in arguments.ways:
                row: dict[str, Any] = {"way": way, "length": length, "group_size": arguments.group}
                if any(row.items() <= done.items() for done in rows):
                    continue
                try:
                    row |= run_case(way, length, arguments.group, folder)
                except subprocess.CalledProcessError as error:
                    print(f"T {length:>6}  {way:<28} failed ({error.returncode}): {error.stderr[-300:]}", flush=True)
                    continue
                weights = (folder / "base" / "model.safetensors").stat().st_size
                row["peak_above_weights_bytes"] = above = row["peak_bytes"] - weights
                rows.append(row)
                print(
                    f"T {length:>6}  {way:<28} {row['seconds']:8.1f} s  loss {row['loss']:.4f}  "
                    f"peak {row['peak_bytes'] / 1e9:6.2f} GB, above the weights {above / 1e9:6.2f} GB",
                    flush=True,
                )
                if arguments.json:
                    write_json(arguments.json, {**record(), "results": rows})


if __name__ == "__main__":
    main()
