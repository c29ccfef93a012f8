"""Perplexity the straightforward way and ours, on the same windows: numbers, time and peak memory.

    python benchmarks/perplexity.py --json docs/results/perplexity.json
    python benchmarks/perplexity.py --contexts 1024 --windows 2 --repeats 1       # a quick look

SmolLM2-135M in bfloat16 on the CPU, on Python's standard library. The straightforward way is `model(input_ids=x,
labels=y)` for each window, with the logits of the whole window: for the `longlora` windows as in LongLoRA's eval.py,
for `strided` as in transformers' guide to perplexity. Three kinds of windows:

- longlora: starts 256 tokens apart, all of a window is scored. Both ways have to run every window through the model
  and the head; only what follows the head differs.
- strided, half: half a context apart, our default; about half of a window is scored.
- strided, 256: 256 tokens apart, as sliding windows are measured on PG19; only a window's last 256 tokens are scored.

Each case is a process of its own, after a warm-up on few tokens. Seconds are the median of the repeats; peak memory is
what the process held at most above the loaded weights. Losses must agree. About half an hour on two cores.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import lengthen
from lengthen.data.tokens import default_cache, load_tokens
from lengthen.evaluation import perplexity
from lengthen.files import write_json
from lengthen.models.load import load_base, load_config, load_tokenizer
from lengthen.models.resolve import resolve_model
from record import PeakMemory, record

KINDS = ("longlora", "strided, half", "strided, 256")
TOLERANCE = 1e-3  # nats per token; bfloat16


def layout(kind: str, context: int, windows: int) -> tuple[str, int, int]:
    """Protocol, stride, and the tokens of a document that has this many windows."""
    if kind == "longlora":
        return "longlora", 256, context + 256 * windows + 1
    stride = context // 2 if kind == "strided, half" else 256
    return "strided", stride, context + stride * (windows - 1)


def prepare(folder: Path, tokens: int) -> None:
    """The base as an ordinary bfloat16 folder, and a document as a token file."""
    source, tokenizer = resolve_model("smollm2-135m-instruct"), load_tokenizer("smollm2-135m-instruct")
    config = load_config(source)
    load_base(source, config, torch.bfloat16).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    store, _ = load_tokens(["python-stdlib:validation"], tokenizer, config.vocab_size, default_cache())
    document = np.concatenate([store[i] for i in range(len(store))])[:tokens]
    assert len(document) == tokens, f"the standard library has only {len(document)} tokens"
    document.astype("uint16").tofile(folder / "document.bin")


@torch.no_grad()
def straightforward(model: Any, ids: np.ndarray, context: int, stride: int, protocol: str) -> float:
    """The published loops, read again: mean loss in nats."""
    ids_1N = torch.from_numpy(ids.astype(np.int64))[None]
    total, scored, end = 0.0, 0, 0
    if protocol == "longlora":
        starts = list(range(0, len(ids) - context, stride))[:-1]
    else:
        starts = list(range(0, len(ids) - context + 1, stride))
    for start in starts:
        x = ids_1N[:, start : start + context]
        y = x.clone()
        if protocol == "strided":
            y[:, : end - start] = -100
            end = start + context
        count = int((y[:, 1:] != -100).sum())
        total += model(input_ids=x, labels=y).loss.item() * count
        scored += count
    return total / scored


def case(way: str, kind: str, context: int, windows: int, repeats: int, folder: Path) -> dict[str, Any]:
    model, _ = lengthen.load(folder / "base", dtype="bfloat16", device=torch.device("cpu"))
    protocol, stride, tokens = layout(kind, context, windows)
    ids = np.fromfile(folder / "document.bin", "uint16")[:tokens]

    def run(ids: np.ndarray, context: int, stride: int, protocol: str) -> float:
        if way == "straightforward":
            return straightforward(model, ids, context, stride, protocol)
        return perplexity(model, ids, context, stride, protocol).loss

    run(ids[:64], 64, 32, "strided")
    peak, seconds = PeakMemory(), []
    for _ in range(repeats):
        began = time.perf_counter()
        loss = run(ids, context, stride, protocol)
        seconds.append(time.perf_counter() - began)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return {
        "seconds": statistics.median(seconds),
        "seconds_all": seconds,
        "loss": loss,
        "peak_above_weights_bytes": peak.bytes,
        "weights_bytes": weights,
    }


def compare(kind: str, context: int, windows: int, repeats: int, folder: Path) -> dict[str, Any]:
    """Both ways, each in its own process; the row of the table.

    Raises:
        SystemExit: the losses differ.
    """
    row: dict[str, Any] = {"windows_are": kind, "context": context, "windows": windows}
    for way in ("straightforward", "ours"):
        arguments = ["--case", way, kind, str(context), str(windows), str(repeats), str(folder)]
        done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{way}, {kind}, context {context} failed ({done.returncode}): {done.stderr[-500:]}")
        row[way] = json.loads(done.stdout.splitlines()[-1])
    theirs, ours = row["straightforward"], row["ours"]
    difference = abs(theirs["loss"] - ours["loss"])
    if not difference < TOLERANCE:
        raise SystemExit(f"{kind}, context {context}: losses {theirs['loss']} and {ours['loss']} are not the same")
    above = "peak_above_weights_bytes"
    return row | {
        "loss_difference": difference,
        "times_faster": theirs["seconds"] / ours["seconds"],
        "memory_share": ours[above] / theirs[above],
        "memory_share_with_weights": (ours[above] + ours["weights_bytes"]) / (theirs[above] + theirs["weights_bytes"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--windows", type=int, default=4, help="in each case")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="written after each case")
    parser.add_argument("--case", nargs=6, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        way, kind, context, windows, repeats, name = arguments.case
        print(json.dumps(case(way, kind, int(context), int(windows), int(repeats), Path(name))))
        return
    cases = [(kind, context) for context in arguments.contexts for kind in arguments.kinds]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name), max(layout(kind, context, arguments.windows)[2] for kind, context in cases))
        print(f"{'windows':<14} context      loss  difference   s theirs   s ours  faster  MB theirs  MB ours   share")
        for kind, context in cases:
            row = compare(kind, context, arguments.windows, arguments.repeats, Path(name))
            rows.append(row)
            theirs, ours = row["straightforward"], row["ours"]
            print(
                f"{kind:<14} {context:>7}  {ours['loss']:8.5f}  {row['loss_difference']:10.1e}  "
                f"{theirs['seconds']:9.2f} {ours['seconds']:8.2f}  {row['times_faster']:5.2f}x  "
                f"{theirs['peak_above_weights_bytes'] / 1e6:9.0f} {ours['peak_above_weights_bytes'] / 1e6:8.0f}  "
                f"{row['memory_share']:6.2f}",
                flush=True,
            )
            if arguments.json:
                about = {"model": "smollm2-135m-instruct", "dtype": "bfloat16", "repeats": arguments.repeats}
                write_json(arguments.json, {**record(), **about, "results": rows})


if __name__ == "__main__":
    main()
