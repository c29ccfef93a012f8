"""Time and memory of one attention layer, forward and backward: full, S2 as it is done elsewhere, and ours.

    python benchmarks/attention.py --json docs/results/attention.json     # about half an hour on two CPU cores
    python benchmarks/attention.py --lengths 2048 4096 --repeats 3        # a glance

8 heads of 128, batch 1. The ways are timed in turn, so that what else the machine does hits all of them; medians. Peak
memory is that of a process of its own, above what it held before. With groups of T/4 causal S2 computes 0.234 of the
score pairs of full causal attention: no way can be faster than that share of its time by leaving out pairs alone.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from torch.nn.functional import scaled_dot_product_attention

from lengthen.attention.backends import pick_backend
from lengthen.attention.reference import groups_mask
from lengthen.attention_pattern import Groups
from lengthen.errors import ModelError
from lengthen.files import write_json
from record import PeakMemory, record

HEADS, SIZE = 8, 128
MOST_SCORES = 16384  # beyond, the scores that "roll + softmax" keeps take more than 20 GB
Way = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]


def full(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, _group: int) -> torch.Tensor:
    return scaled_dot_product_attention(q, k, v, is_causal=True)


def _rolled(x: torch.Tensor, group: int) -> torch.Tensor:
    """(1, H, T, D) -> (T/g, H, g, D), the second half of the heads rolled back by half a group."""
    first, second = x.chunk(2, dim=1)
    x = torch.cat([first, second.roll(-group // 2, dims=2)], dim=1)
    return x.transpose(1, 2).reshape(-1, group, HEADS, SIZE).transpose(1, 2)


def _unrolled(x: torch.Tensor, group: int) -> torch.Tensor:
    x = x.transpose(1, 2).reshape(1, -1, HEADS, SIZE).transpose(1, 2)
    first, second = x.chunk(2, dim=1)
    return torch.cat([first, second.roll(group // 2, dims=2)], dim=1)


def roll_and_softmax(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, group: int) -> torch.Tensor:
    """LongLoRA's way without flash-attention, from the paper's description: scores, a mask, softmax in float32."""
    q, k, v = (_rolled(x, group) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) * SIZE**-0.5
    scores = scores + torch.full((group, group), float("-inf"), dtype=q.dtype, device=q.device).triu(1)
    return _unrolled(scores.softmax(-1, dtype=torch.float32).to(q.dtype) @ v, group)


def roll_and_sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, group: int) -> torch.Tensor:
    """The same with torch's attention inside the groups, as LLaMA-Factory did it."""
    q, k, v = (_rolled(x, group) for x in (q, k, v))
    return _unrolled(scaled_dot_product_attention(q, k, v, is_causal=True), group)


def ours(backend: str) -> Way:
    def way(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, group: int) -> torch.Tensor:
        length = q.shape[2]
        function = pick_backend(backend, q.device, q.dtype)  # type: ignore[arg-type]
        return function(q, k, v, (((0, length),),), Groups(group), None, 0.0)

    return way


WAYS: dict[str, Way] = {
    "full": full,
    "roll + softmax": roll_and_softmax,
    "roll + sdpa": roll_and_sdpa,
    **{f"ours, {name}": ours(name) for name in ("sdpa", "flash_attention_2", "flash_attention_3")},
}


def inputs(length: int, dtype: torch.dtype, device: torch.device) -> list[torch.Tensor]:
    """Queries, keys and values as models give them: (1, T, H, D) memory seen as (1, H, T, D)."""
    torch.manual_seed(0)
    return [
        torch.randn(1, length, HEADS, SIZE, dtype=dtype, device=device).transpose(1, 2).requires_grad_()
        for _ in range(3)
    ]


def step(way: Way, tensors: list[torch.Tensor], group: int) -> float:
    """Seconds of one forward and backward."""
    cuda = tensors[0].is_cuda
    if cuda:
        torch.cuda.synchronize()
    started = time.perf_counter()
    out = way(*tensors, group)
    torch.autograd.grad(out, tensors, torch.ones_like(out))
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def peak_bytes(name: str, length: int, group: int, dtype: torch.dtype, device: torch.device) -> int:
    """Bytes above what was held before, at the highest."""
    tensors = inputs(length, dtype, device)
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(WAYS[name], tensors, group)
        return torch.cuda.max_memory_allocated() - before
    step(WAYS[name], inputs(64, dtype, device), 16)  # what the first call of anything allocates
    peak = PeakMemory()
    step(WAYS[name], tensors, group)
    return peak.bytes


def check(way: Way, device: torch.device) -> None:
    """A way that is timed must be right: equal to the reference mask."""
    dtype = torch.float32 if way is WAYS["ours, sdpa"] else torch.bfloat16
    tensors = inputs(256, dtype, device)
    mask = torch.stack([groups_mask([256], Groups(64), half) for half in (0, 1)]).repeat_interleave(HEADS // 2, 0)
    expected = scaled_dot_product_attention(*tensors, attn_mask=mask.to(device)[None]).transpose(1, 2)
    torch.testing.assert_close(way(*tensors, 64), expected, atol=1e-5 if dtype == torch.float32 else 2e-2, rtol=1e-2)


def _backends(device: torch.device) -> list[str]:
    """Our ways that can run here."""
    found = ["ours, sdpa"]
    for name in ("flash_attention_2", "flash_attention_3"):
        try:
            pick_backend(name, device, torch.bfloat16)
        except ModelError:
            continue
        found.append(f"ours, {name}")
    return found


def share_of_pairs(length: int, group: int) -> float:
    """Score pairs of causal S2 over those of full causal attention, mean of both halves of the heads."""
    groups = Groups(group)
    pairs = [sum((b - a) * (b - a + 1) // 2 for a, b in pairwise(groups.cuts(length, half))) for half in (0, 1)]
    return sum(pairs) / (length * (length + 1))


def measure(length: int, cases: list[tuple[str, int]], dtype: torch.dtype, repeats: int, device: torch.device) -> dict:
    """Time (way, group) cases in turn; the first is what the others are compared with."""
    tensors = inputs(length, dtype, device)
    for name, group in cases:
        step(WAYS[name], tensors, group)
    turns = [[step(WAYS[name], tensors, group) for name, group in cases] for _ in range(repeats)]
    dtype_name = str(dtype).removeprefix("torch.")
    rows = []
    for index, (name, group) in enumerate(cases):
        case = json.dumps({"name": name, "length": length, "group": group, "dtype": dtype_name})
        command = [sys.executable, __file__, "--peak-of", case]
        row = {
            "way": name,
            "group": group,
            "seconds": statistics.median(turn[index] for turn in turns),
            # Of each turn, so that a slow moment of the machine cancels out.
            "ratio": statistics.median(turn[index] / turn[0] for turn in turns),
            "peak_bytes": int(subprocess.run(command, check=True, capture_output=True, text=True).stdout),
        }
        if name != "full":
            row["share_of_limit"] = share_of_pairs(length, group) / row["ratio"]
        rows.append(row)
        print(f"{dtype_name:<9} T {length:>6} g {group:>5}  {name:<24} {row['seconds']:8.3f} s "
              f"ratio {row['ratio']:.3f}  of limit {row.get('share_of_limit', 0):.2f}  "
              f"peak {row['peak_bytes'] / 2**20:6.0f} MiB", flush=True)  # fmt: skip
    return {"length": length, "dtype": dtype_name, "ways": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096, 8192, 16384, 32768])
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--fixed-group", type=int, default=2048, help="tokens; ours is timed with it too")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    if arguments.peak_of:
        case = json.loads(arguments.peak_of)
        print(peak_bytes(case["name"], case["length"], case["group"], getattr(torch, case["dtype"]), device))
        return
    backends = _backends(device)
    for name in backends:
        check(WAYS[name], device)
    results = []
    for dtype in arguments.dtypes:
        for length in arguments.lengths:
            names = ["full", "roll + softmax", "roll + sdpa", *backends]
            if length > MOST_SCORES:
                names.remove("roll + softmax")
            cases = [(name, length // 4) for name in names]
            if length > arguments.fixed_group and length // 4 != arguments.fixed_group:
                cases += [(name, arguments.fixed_group) for name in backends]
            results.append(measure(length, cases, getattr(torch, dtype), arguments.repeats, device))
    if arguments.json:
        write_json(arguments.json, {**record(device), "heads": HEADS, "head_size": SIZE, "results": results})


if __name__ == "__main__":
    main()
