"""Time and memory of one attention layer, forward and backward: full, S2 as it is done elsewhere, and ours.

    python benchmarks/attention.py --json docs/results/attention.json     # about half an hour on two CPU cores
    python benchmarks/attention.py --lengths 2048 4096 --repeats 3        # a glance

8 heads of 128, batch 1. The ways are timed in turn, so that what else the machine does hits all of them; medians. Peak
memory is that of a process of its own, above what it held before. With groups of T/4 causal S2 computes 0.234 of the
score pairs of full causal attention: no way can be faster than that share of its time by leaving out pairs alone.
"""

import argparse
import json
import resource
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
from lengthen.attention.pattern import Groups, groups_mask
from lengthen.errors import ModelError
from lengthen.files import write_json
from record import record

HEADS, SIZE = 8, 128
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
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(WAYS[name], tensors, group)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


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


def measure(length: int, group: int, dtype: torch.dtype, names: list[str], repeats: int, device: torch.device) -> dict:
    tensors = inputs(length, dtype, device)
    times: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        step(WAYS[name], tensors, group)
    for _ in range(repeats):
        for name in names:
            times[name].append(step(WAYS[name], tensors, group))
    limit = share_of_pairs(length, group)
    rows = []
    for name in names:
        # Of each turn, so that a slow moment of the machine cancels out.
        ratios = [own / whole for own, whole in zip(times[name], times["full"], strict=True)]
        case = json.dumps({"name": name, "length": length, "group": group, "dtype": str(dtype).removeprefix("torch.")})
        command = [sys.executable, __file__, "--peak-of", case]
        peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        ratio = statistics.median(ratios)
        rows.append(
            {"way": name, "seconds": statistics.median(times[name]), "ratio": ratio, "peak_bytes": peak}
            | ({} if name == "full" else {"share_of_limit": limit / ratio})
        )
    content = {"length": length, "group": group, "dtype": str(dtype).removeprefix("torch."), "limit": limit}
    for row in rows:
        print(f"{content['dtype']:<9} T {length:>6} g {group:>5}  {row['way']:<24} {row['seconds']:8.3f} s "
              f"ratio {row['ratio']:.3f}  peak {row['peak_bytes'] / 2**20:7.0f} MiB", flush=True)  # fmt: skip
    return content | {"ways": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096, 8192, 16384, 32768])
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--fixed-group", type=int, default=2048, help="the second table's, in tokens")
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
    names = ["full", "roll + softmax", "roll + sdpa", *backends]
    results: dict[str, list[dict]] = {"quarter": [], "fixed": []}
    for dtype in (getattr(torch, name) for name in arguments.dtypes):
        for length in arguments.lengths:
            results["quarter"].append(measure(length, length // 4, dtype, names, arguments.repeats, device))
        for length in (length for length in arguments.lengths if length > arguments.fixed_group):
            few = ["full", *backends]
            results["fixed"].append(measure(length, arguments.fixed_group, dtype, few, arguments.repeats, device))
    if arguments.json:
        write_json(arguments.json, {**record(device), "heads": HEADS, "head_size": SIZE, **results})


if __name__ == "__main__":
    main()
