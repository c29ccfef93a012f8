"""Is lengthen right on this GPU, how fast is it, and does `lengthen plan` foretell it?

    python benchmarks/gpu.py --json gpu.json                      # one GPU of 80 GB; some 200 s on an H100, 400 with long
    python benchmarks/gpu.py --json gpu.json --parts step,engine  # some parts, in this order
    python benchmarks/gpu.py --tiny --device cpu                  # all of it in miniature, in seconds

| part | what is measured | beside what |
|---|---|---|
| backends | S2 by each attention backend, forward and backward; training steps by each memory preset | full attention under S2's mask in float64; the preset that keeps everything |
| layer | one layer of 32 heads of 128 at 32,768 and 102,400 tokens | full attention |
| step | optimizer steps of LLaMA2-7B's shape at 32,768 tokens with LongLoRA's settings, by `lengthen.train` | full attention, and the plan |
| trainer | the same by transformers' Trainer and peft, with full attention and checkpointing | ours |
| engine | 32 requests with 0, 1 and 32 adapters | the base alone, transformers' `generate` |
| perplexity | a window of 32,768 tokens, whole and in chunks | each other |
| long | as step, at 102,400 tokens with the preset `low_memory` | full attention, and the plan |

Weights and tokens are random, and nothing is downloaded: `random_weights` takes the place of
`AutoModelForCausalLM.from_pretrained`, all else is what users run. Losses mean nothing; they have to be finite, and equal
where two ways compute the same. No row starts for which the budget does not last, and JSON is written after each row.

Shape suffixes: B sequences, T tokens, H query heads, K key/value heads, D head size.
"""  # noqa: E501
# ruff: noqa: E402

from lengthen.cli import set_allocator

set_allocator()  # as for users, and before torch reads it

import argparse
import gc
import itertools
import json
import math
import os
import shutil
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import lengthen
from lengthen._compat import without_cudnn_attention
from lengthen.adapters.load import load_apart
from lengthen.attention.backends import pick_backend
from lengthen.attention.reference import groups_mask
from lengthen.attention_pattern import BackendName, Groups, s2_first_shifted_head
from lengthen.context import extend
from lengthen.errors import LengthenError
from lengthen.evaluation import perplexity
from lengthen.files import write_json
from lengthen.models.load import load_tokenizer
from lengthen.planning.devices import this_device
from lengthen.planning.plan import plan
from lengthen.recipe import parse_recipe
from lengthen.serving.engine import Engine, GenerationRequest, Limits, LoadedBase
from record import record

STARTED = time.monotonic()

LLAMA2_7B: dict[str, Any] = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
# Wide enough for activations of 1 MiB, which offloading moves.
SMALL = LLAMA2_7B | {
    "vocab_size": 5000, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 2,
    "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 1024,
}  # fmt: skip
MINIATURE = SMALL | {"hidden_size": 64, "intermediate_size": 128, "max_position_embeddings": 64}


@dataclass(frozen=True)
class Sizes:
    """How large everything is. `scale` turns the seconds that an H100 takes into this run's."""

    scale: float
    large: dict[str, Any]
    small: dict[str, Any]
    small_length: int
    unit: int
    heads: tuple[int, int]
    lengths: tuple[int, int]
    group: int
    read: tuple[int, int]
    """Tokens of a perplexity window, and of a chunk of it."""
    served: tuple[int, int, int, int]
    """Requests, tokens of a prompt, new tokens, rank of the adapters."""


CARD = Sizes(1.0, LLAMA2_7B, SMALL, 4096, 64, (32, 128), (32768, 102400), 4096, (32768, 8192), (32, 256, 32, 16))
TINY = Sizes(0.0, MINIATURE, MINIATURE, 256, 4, (4, 16), (128, 256), 16, (128, 32), (4, 12, 4, 4))


class Bench:
    """The rows so far, and what all parts need."""

    def __init__(self, sizes: Sizes, device: torch.device, budget: float, file: Path | None):
        self.sizes, self.device, self._budget, self._file = sizes, device, budget, file
        self.part, self.rows = "", list[dict[str, Any]]()
        self._header = record(torch.cuda.get_device_name() if self.is_cuda else "cpu")
        shm = Path("/dev/shm")  # memory, where there is much of it: the disk is not what is measured
        has_room = shm.is_dir() and os.access(shm, os.W_OK) and shutil.disk_usage(shm).free > 16e9
        self.scratch = Path(tempfile.mkdtemp(prefix="lengthen-gpu-", dir=shm if has_room else None))

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def left(self) -> float:
        return STARTED + self._budget - time.monotonic()

    def add(self, name: str, text: str, **values: Any) -> None:
        """Print a row, and keep it."""
        self.rows.append({"part": self.part, "name": name, "text": text, **values})
        if self._file is not None:
            write_json(self._file, {**self._header, "results": self.rows})
        print(f"[{time.monotonic() - STARTED:5.0f} s] {self.part:<10} {name:<50} {text}", flush=True)

    def attempt(self, name: str, seconds: float, run: Callable[[], tuple[str, dict[str, Any]] | None]) -> None:
        """Run what gives a row's text and values, or None where it adds its own; an error becomes the row."""
        if seconds * self.sizes.scale > self.left() or self.left() <= 0:
            self.add(name, f"skipped: takes {seconds:.0f} s, and {self.left():.0f} s are left", skipped=True)
            return
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats()
        try:
            if (found := run()) is not None:
                self.add(name, found[0], **found[1])
        except Exception as error:
            what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            self.add(name, f"FAILED: {what}", failed=what, trace=traceback.format_exc().splitlines()[-12:])
        finally:
            gc.collect()
            if self.is_cuda:
                torch.cuda.empty_cache()

    def now(self) -> float:
        """The time, once the device has done all it was given."""
        if self.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def peak(self) -> dict[str, int]:
        """Bytes at most since the row began: held by tensors, and by torch's allocator."""
        if not self.is_cuda:
            return {}
        return {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}

    def has(self, name: str) -> dict[str, Any] | None:
        """A row with numbers, if it was measured."""
        found = (row for row in self.rows if row["name"] == name and "seconds" in row)
        return next(found, None)


def gb(count: float | None) -> str:
    return f"{count / 1e9:.1f} GB" if count else "-"


def kernel(bench: Bench, name: str) -> Any:
    """A context in which torch's attention takes one kernel."""
    chosen = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    return sdpa_kernel(chosen[name]) if bench.is_cuda and name in chosen else nullcontext()


# --- A base of random weights ----------------------------------------------------------------------------------------


def base_folder(bench: Bench, name: str, config: dict[str, Any]) -> Path:
    """A model folder whose weight file is empty: `random_weights` gives the weights."""
    folder = bench.scratch / name
    if not folder.exists():
        LlamaConfig(**config, architectures=["LlamaForCausalLM"], dtype="bfloat16").save_pretrained(folder)
        load_tokenizer("tiny").save_pretrained(folder)
        save_file({}, folder / "model.safetensors")
    return folder


@contextmanager
def random_weights(device: torch.device) -> Iterator[None]:
    """Let `AutoModelForCausalLM.from_pretrained` make random weights on the device instead of reading files."""

    def made(_folder: str, *, config: Any, dtype: torch.dtype, attn_implementation: str, **_more: Any) -> Any:
        torch.manual_seed(0)
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attn_implementation)
        return model.eval(), {"missing_keys": [], "mismatched_keys": []}

    with mock.patch.object(AutoModelForCausalLM, "from_pretrained", made):
        yield


def random_tokens(vocabulary: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(3, vocabulary, shape)


def token_file(bench: Bench, vocabulary: int, tokens: int) -> Path:
    path = bench.scratch / f"{vocabulary}-{tokens}.bin"
    if not path.exists():
        random_tokens(vocabulary, tokens).astype("<u2").tofile(path)
    return path


# --- backends: correctness -------------------------------------------------------------------------------------------

# bfloat16 has 8 bits: kernels differ from float64 by some tenths of a percent, a wrong mask by tens of percents.
OUT_TOLERANCE, GRADIENT_TOLERANCE = 0.02, 0.03


def ways(bench: Bench, *names: str) -> dict[str, Callable[..., torch.Tensor]]:
    """The backends of these names, as far as they run; default all but flex_attention, which compiles for long."""
    found = {}
    for name in get_args(BackendName):
        if name not in names if names else name == "flex_attention":
            continue
        with suppress(LengthenError):
            found[name] = pick_backend(name, bench.device, torch.bfloat16)
    return found


@dataclass(frozen=True)
class Case:
    """A layout of documents, (start, tokens) of each in each row, and the heads that look at it."""

    name: str
    length: int
    documents: tuple[tuple[tuple[int, int], ...], ...]
    sinks: int = 0
    heads: tuple[int, int] = (8, 8)
    size: int = 64


def cases(u: int) -> list[Case]:
    """Layouts of up to 16 units; a group has 4."""
    whole = (((0, 16 * u),),)
    packed = (((0, 5 * u), (5 * u, 7 * u + 3), (12 * u + 3, 3 * u + 5)),)
    padded = (((u, 7 * u), (8 * u, 8 * u)), ((0, 9 * u + 1),))
    return [
        Case("one document", 16 * u, whole, size=128),
        Case("sinks, 8/2 heads", 16 * u, whole, 2, (8, 2)),
        Case("packed, sinks, 9/3 heads", 15 * u + 8, packed, 2, (9, 3)),
        Case("two rows with padding, 8/2 heads", 16 * u, padded, 0, (8, 2)),
        Case("packed, one key/value head, size 80", 15 * u + 8, packed, 0, (8, 1), 80),
        Case("shorter than half a group", u, (((0, u),),)),
    ]


def heads_of(bench: Bench, length: int, heads: tuple[int, int], size: int, batch: int = 1) -> list[torch.Tensor]:
    """Queries, keys and values as models give them: (B, T, H, D) memory seen as (B, H, T, D)."""
    torch.manual_seed(0)
    shapes = [(batch, length, count, size) for count in (heads[0], heads[1], heads[1])]
    made = (torch.randn(shape, dtype=torch.bfloat16, device=bench.device) for shape in shapes)
    return [x.transpose(1, 2).requires_grad_() for x in made]


def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, case: Case, groups: Groups) -> torch.Tensor:
    """Full attention under S2's boolean mask; queries of no document get zeros."""
    batch, heads, length, size = q.shape
    first = s2_first_shifted_head(heads, k.shape[1])
    k, v = (x.repeat_interleave(heads // x.shape[1], 1) for x in (k, v))
    allowed = torch.zeros(batch, heads, length, length, dtype=torch.bool, device=q.device)
    for row, spans in enumerate(case.documents):
        for start, tokens in spans:
            span = slice(start, start + tokens)
            for half, of in enumerate((slice(0, first), slice(first, heads))):
                allowed[row, of, span, span] = groups_mask([tokens], groups, half).to(q.device)
    scores = (q @ k.transpose(-1, -2) * size**-0.5).masked_fill(~allowed, -torch.inf)
    return (scores.softmax(-1).nan_to_num() @ v).transpose(1, 2)


def difference(ours: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference as a share of what was expected."""
    return ((ours.double() - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def backends(bench: Bench) -> None:
    for name, way in ways(bench).items():
        for case in cases(bench.sizes.unit):
            bench.attempt(f"{name}: {case.name}", 4, partial(against_reference, bench, way, case))
    bench.attempt("memory presets", 20, partial(presets, bench))


def against_reference(bench: Bench, way: Callable[..., torch.Tensor], case: Case) -> tuple[str, dict[str, Any]]:
    tensors = heads_of(bench, case.length, case.heads, case.size, len(case.documents))
    exact = [x.detach().double().requires_grad_() for x in tensors]
    groups = Groups(4 * bench.sizes.unit, case.sinks)
    ours = way(*tensors, case.documents, groups, None, 0.0)
    expected = reference(*exact, case, groups)
    weight = torch.randn(expected.shape, device=bench.device).to(ours.dtype)
    gradients = torch.autograd.grad(ours, tensors, weight)
    exact_gradients = torch.autograd.grad(expected, exact, weight.double())
    out = difference(ours, expected)
    worst = max(difference(a, b) for a, b in zip(gradients, exact_gradients, strict=True))
    right = out < OUT_TOLERANCE and worst < GRADIENT_TOLERANCE  # false for NaN too
    text = f"{'right' if right else 'WRONG'}: output off by {out:.2%}, gradients by up to {worst:.2%}"
    return text, {"right": right, "output": out, "gradients": worst}


def presets(bench: Bench) -> None:
    """Losses and gradient norms of three large steps of a small model, beside the preset that keeps everything."""

    def steps(preset: str) -> list[dict[str, Any]]:
        recipe = make_recipe(bench, "small", bench.sizes.small_length, 3, preset.split(",")[0], learning_rate=1e-2)
        return train(bench, changed(recipe, FUSED) if "fused" in preset else recipe)

    expected = steps("fast")
    for preset in ("balanced", "low_memory", *(["fast, fused kernels"] if has_fused(bench) else [])):
        ours = steps(preset)
        off = {
            key: [abs(a[key] / b[key] - 1) for a, b in zip(ours, expected, strict=True)]
            for key in ("loss", "grad_norm")
        }
        # Rounding decides where the first update of a weight goes whose gradient is almost zero.
        right = off["loss"][0] < 1e-3 and off["grad_norm"][0] < GRADIENT_TOLERANCE and max(off["loss"]) < 0.02
        text = f"{'right' if right else 'WRONG'}: losses off by {', '.join(f'{each:.3%}' for each in off['loss'])}"
        text += f", the first gradient norm by {off['grad_norm'][0]:.2%}"
        bench.add(f"steps by preset {preset}", text, right=right, **off)


# --- layer -----------------------------------------------------------------------------------------------------------


def layer(bench: Bench) -> None:
    heads, _ = bench.sizes.heads
    for length in bench.sizes.lengths:
        whole = (((0, length),),)
        seconds = 2 + 10 * (length / 102400) ** 2
        for name in ("cudnn", "flash"):
            bench.attempt(f"{length:,}: full, {name}", seconds, partial(time_full, bench, length, name))
        for group in (length // 4, bench.sizes.group):
            for name, way in ways(bench, "sdpa", "torch_varlen").items():
                title = f"{length:,}: S2 of {group:,}, {name}"
                bench.attempt(title, seconds, partial(time_s2, bench, way, whole, (heads, heads), group))
    length = bench.sizes.lengths[0]
    for name, way in ways(bench, "auto", "torch_varlen").items():
        title = f"{length:,}: S2 of {length // 4:,}, {heads}/{heads // 4} heads, {name}"
        grouped = (heads, heads // 4)
        bench.attempt(title, 3, partial(time_s2, bench, way, (((0, length),),), grouped, length // 4))
        title = f"{length:,}: S2 of {length // 4:,}, 10 documents, {name}"
        cuts = sorted({0, length, *random_tokens(length, 9).tolist()})
        documents = (tuple((a, b - a) for a, b in itertools.pairwise(cuts)),)
        bench.attempt(title, 3, partial(time_s2, bench, way, documents, (heads, heads), length // 4))


def time_full(bench: Bench, length: int, name: str) -> tuple[str, dict[str, Any]]:
    heads, size = bench.sizes.heads
    tensors = heads_of(bench, length, (heads, heads), size)
    with kernel(bench, name):
        return time_layer(bench, lambda *x: scaled_dot_product_attention(*x, is_causal=True).transpose(1, 2), tensors)


def time_s2(
    bench: Bench,
    way: Callable[..., torch.Tensor],
    documents: tuple[tuple[tuple[int, int], ...], ...],
    heads: tuple[int, int],
    group: int,
) -> tuple[str, dict[str, Any]]:
    length = sum(tokens for _, tokens in documents[0])
    tensors = heads_of(bench, length, heads, bench.sizes.heads[1])
    text, values = time_layer(bench, lambda *x: way(*x, documents, Groups(group), None, 0.0), tensors)
    full = bench.has(f"{length:,}: full, cudnn") or bench.has(f"{length:,}: full, flash")
    if full:
        values["of_full"] = values["seconds"] / full["seconds"]
        text += f", {values['of_full']:.3f} of full attention"
    return text, values


def time_layer(bench: Bench, way: Callable[..., torch.Tensor], tensors: list[torch.Tensor]) -> tuple[str, dict]:
    """Milliseconds forward and backward: of the first call, and the median of later ones."""

    def once() -> list[float]:
        times = [bench.now()]
        out = way(*tensors).contiguous()
        times.append(bench.now())
        torch.autograd.grad(out, tensors, torch.ones_like(out))
        times.append(bench.now())
        return [b - a for a, b in itertools.pairwise(times)]

    first, later = sum(once()), [once() for _ in range(5)]
    forward, backward = (statistics.median(each[i] for each in later) for i in (0, 1))
    text = f"{forward * 1e3:7.2f} + {backward * 1e3:7.2f} ms, first call {first * 1e3:7.1f} ms"
    values = {"forward": forward, "backward": backward, "seconds": forward + backward, "first": first}
    return text, values | bench.peak()


# --- step ------------------------------------------------------------------------------------------------------------


def make_recipe(bench: Bench, base: str, length: int, steps: int, preset: str, learning_rate: float = 2e-5) -> Any:
    """LongLoRA's settings over a base of random weights."""
    config = getattr(bench.sizes, base)
    content = {
        "model": str(base_folder(bench, base, config)),
        "out": str(bench.scratch / "run"),
        "context": {"target": length, "method": "linear"},
        "attention": {"sinks": 0},
        "adapter": {"rank": 8, "alpha": 16, "embeddings": True},
        "data": {"train": [str(token_file(bench, config["vocab_size"], steps * length))], "packing": "concatenate"},
        "training": {
            "steps": steps,
            "learning_rate": learning_rate,
            "schedule": "constant",
            "warmup_steps": 0,
            "dtype": "bfloat16",
        },
        "memory": {"preset": preset},
    }
    return parse_recipe(content, "gpu")


def changed(recipe: Any, changes: dict[str, dict[str, Any]]) -> Any:
    return recipe.model_copy(
        update={key: getattr(recipe, key).model_copy(update=value) for key, value in changes.items()}
    )


def train(bench: Bench, recipe: Any) -> list[dict[str, Any]]:
    """Train, and return the lines of metrics.jsonl."""
    run = Path(recipe.out)
    try:
        with random_weights(bench.device):
            lengthen.train(recipe)
        return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    finally:
        shutil.rmtree(run, ignore_errors=True)


FULL = {"attention": {"kind": "full"}}
FUSED = {"memory": {"fused_kernels": True}}


def has_fused(bench: Bench) -> bool:
    """Whether liger-kernel is there, which these need."""
    return bench.is_cuda and find_spec("liger_kernel") is not None


def step(bench: Bench) -> None:
    rows = [("", 3, 20, {}), ("full", 2, 18, FULL), ("group", 2, 14, {})]
    time_rows(bench, bench.sizes.lengths[0], "balanced", [*rows, *([("", 2, 14, FUSED)] if has_fused(bench) else [])])


def long(bench: Bench) -> None:
    # The first one also waits for the CPU memory that activations wait in to be pinned.
    length = bench.sizes.lengths[1]
    time_rows(bench, length, "low_memory", [("", 2, 65, {}), ("group", 2, 40, {}), ("full", 2, 85, FULL)])


def time_rows(bench: Bench, length: int, preset: str, rows: Sequence[tuple[str, int, float, dict[str, Any]]]) -> None:
    """Rows of (kind, steps, seconds that they take, changes of the recipe), the first step not counted."""
    for kind, steps, seconds, changes in rows:
        group = bench.sizes.group if kind == "group" else length // 4
        if kind != "full":
            changes = {**changes, "attention": {"group_size": group}}
        name = f"{length:,}: " + ("full" if kind == "full" else f"S2 of {group:,}")
        name += ", fused kernels" * ("memory" in changes)
        bench.attempt(name, seconds, partial(time_steps, bench, length, preset, steps, changes))


def time_steps(
    bench: Bench, length: int, preset: str, steps: int, changes: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    recipe = changed(make_recipe(bench, "large", length, steps, preset), changes)
    planned = plan(recipe, this_device())
    metrics = train(bench, recipe)
    seconds = statistics.median(line["seconds"] for line in metrics[1:])
    values: dict[str, Any] = {
        "length": length, "preset": preset, "seconds": seconds, "first": metrics[0]["seconds"],
        "tokens_per_second": length / seconds, "losses": [line["loss"] for line in metrics],
        "planned_seconds": planned.seconds_per_step, "planned_peak": planned.peak_bytes, "mfu": metrics[-1].get("mfu"),
        "allocated": metrics[-1]["peak_memory_bytes"], "reserved": metrics[-1].get("reserved_memory_bytes"),
    }  # fmt: skip
    assert all(math.isfinite(loss) for loss in values["losses"]), values["losses"]
    text = f"{seconds:6.2f} s, {length / seconds:6,.0f} tokens/s, {gb(values.get('reserved'))}"
    if planned.seconds_per_step:
        values["of_planned_seconds"] = seconds / planned.seconds_per_step
        # With what is computed again, which an MFU leaves out.
        values["of_peak"] = planned.flops.total / seconds / (planned.device.peak(torch.bfloat16) or math.nan)
        text += f"; {values['of_planned_seconds']:.2f} of the plan's seconds, {values['of_peak']:.0%} of the peak"
    if values.get("reserved"):
        values["of_planned_peak"] = values["reserved"] / planned.peak_bytes
        text += f", {values['of_planned_peak']:.2f} of its bytes"
    full = bench.has(f"{length:,}: full")
    if full:
        values["of_full"] = seconds / full["seconds"]
        text += f", {values['of_full']:.2f} of full attention"
    return text, values


# --- trainer ---------------------------------------------------------------------------------------------------------


class Clock(TrainerCallback):
    """Seconds of each step of transformers' Trainer."""

    def __init__(self, bench: Bench):
        self._bench, self.seconds = bench, list[float]()

    def on_step_begin(self, *_args: Any, **_kwargs: Any) -> None:
        self._began = self._bench.now()

    def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
        self.seconds.append(self._bench.now() - self._began)


def trainer(bench: Bench) -> None:
    length = bench.sizes.lengths[0]
    bench.attempt(f"{length:,}: Trainer and peft, full", 20, partial(time_trainer, bench, length))


def time_trainer(bench: Bench, length: int) -> tuple[str, dict[str, Any]]:
    """What one writes without lengthen: the same trained tensors, gradient checkpointing, full attention."""
    config = extend(AutoConfig.from_pretrained(base_folder(bench, "large", bench.sizes.large)), length, "linear")
    with torch.device(bench.device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    lora = LoraConfig(
        task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        modules_to_save=["embed_tokens", "input_layernorm", "post_attention_layernorm", "norm"],
    )  # fmt: skip
    arguments = TrainingArguments(
        output_dir=str(bench.scratch / "trainer"), max_steps=2, per_device_train_batch_size=1, learning_rate=2e-5,
        bf16=True, activation_checkpointing=True, activation_checkpointing_kwargs={"use_reentrant": False},
        optim="adamw_torch", save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=not bench.is_cuda,
    )  # fmt: skip
    rows = torch.from_numpy(random_tokens(bench.sizes.large["vocab_size"], 2, length))
    clock = Clock(bench)
    own = Trainer(
        model=get_peft_model(model, lora), args=arguments, callbacks=[clock],
        train_dataset=[{"input_ids": row, "labels": row} for row in rows],  # type: ignore[arg-type]
    )  # fmt: skip
    own.remove_callback(PrinterCallback)
    own.train()
    seconds = clock.seconds[-1]
    text = f"{seconds:6.2f} s, {length / seconds:6,.0f} tokens/s, {gb(bench.peak().get('reserved'))}"
    values = {"length": length, "seconds": seconds, "tokens_per_second": length / seconds, **bench.peak()}
    if ours := bench.has(f"{length:,}: S2 of {length // 4:,}"):
        values["ours"] = ours["seconds"] / seconds
        text += f"; lengthen's S2 takes {values['ours']:.2f} of it"
    return text, values


# --- engine ----------------------------------------------------------------------------------------------------------


def engine(bench: Bench) -> None:
    bench.attempt("engine", 30, partial(serve, bench))


def serve(bench: Bench) -> None:
    count, length, new, rank = bench.sizes.served
    folder = base_folder(bench, "large", bench.sizes.large)
    with random_weights(bench.device):
        apart = load_apart(folder, "bfloat16", None, bench.device)
    prompts = random_tokens(bench.sizes.large["vocab_size"], count, length).tolist()
    bench.add(f"generate, {count} requests", *row_of(time_generate(bench, apart.model, prompts, new)))
    bytes_ = (20 << 30, 8 << 30) if bench.sizes.scale else (1 << 26, 1 << 26)
    limits = Limits(batch_size=count, cache_bytes=bytes_[0], adapter_bytes=bytes_[1])
    serving = Engine(LoadedBase.of(apart), apart.tokenizer, limits)
    adapter = adapter_folder(bench, rank)
    for index in range(count):
        serving.load_adapter(str(index), adapter)
    named: dict[str, list[str | None]] = {
        "base alone": [None] * count,
        "1 adapter": ["0"] * count,
        f"{count} adapters": [str(index) for index in range(count)],
        f"{count} adapters, sampled": [str(index) for index in range(count)],
    }
    alone = 0.0
    for name, adapters in named.items():
        temperature = 1.0 if "sampled" in name else 0.0
        requests = [
            GenerationRequest(prompt, own, new, temperature=temperature, ignore_end=True)
            for prompt, own in zip(prompts, adapters, strict=True)
        ]
        serving.complete(requests[:2])  # what is loaded and compiled at first use
        seconds = time_engine(bench, serving, requests)
        values = seconds | {"tokens_per_second": count / seconds["step"]}
        alone = alone or values["tokens_per_second"]
        values["of_base"] = values["tokens_per_second"] / alone
        bench.add(f"engine: {name}", row_of(values)[0] + f", {values['of_base']:.2f} of the base alone", **values)
    likely = [log_probabilities(serving, prompts, named[name]) for name in ("1 adapter", f"{count} adapters")]
    off = (likely[0] - likely[1]).abs().max().item()
    text = f"off by up to {off:.4f} nats where all adapters have the same weights"
    right = off < 0.1
    bench.add("engine: log probabilities by many adapters", f"{'right' if right else 'WRONG'}: {text}", right=right)


def log_probabilities(
    serving: Engine, prompts: Sequence[list[int]], adapters: Sequence[str | None], top: int = 5
) -> torch.Tensor:
    """Of the prompts' own tokens, which are read in chunks, and of the likeliest ones after them, which are decoded.

    (requests, prompt - 1 + top). Chosen tokens would tell less: a model of random weights has near ties.
    """
    events: list[list[Any]] = [[] for _ in prompts]
    for prompt, own, taken in zip(prompts, adapters, events, strict=True):
        request = GenerationRequest(prompt, own, 1, logprobs=top, prompt_logprobs=1, ignore_end=True)
        serving.submit(request, taken.append)
    while serving.step():
        pass
    rows = []
    for own in events:
        read = [each.value for event in own for each in event.prompt_logprobs or ()]
        after = next(event.logprob for event in own if event.logprob is not None)
        rows.append(read + [value for _, value in after.top])
    return torch.tensor(rows)


def row_of(values: dict[str, Any]) -> tuple[str]:
    rate = values["tokens_per_second"]
    return (f"reading {values['reading']:.2f} s, then {values['step'] * 1e3:6.1f} ms a step, {rate:,.0f} tokens/s",)


def time_generate(bench: Bench, model: Any, prompts: list[list[int]], new: int) -> dict[str, float]:
    ids = torch.tensor(prompts, device=bench.device)

    def seconds(count: int) -> float:
        began = bench.now()
        model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=count,
            max_new_tokens=count, pad_token_id=0,
        )  # fmt: skip
        return bench.now() - began

    with without_cudnn_attention():  # each token would wait for a plan
        seconds(2)
        reading, whole = seconds(1), seconds(new)
    each = (whole - reading) / (new - 1)
    return {"reading": reading, "step": each, "tokens_per_second": len(prompts) / each}


def time_engine(bench: Bench, serving: Engine, requests: Sequence[GenerationRequest]) -> dict[str, float]:
    """Seconds until each request has its first token, and of a step once all have."""
    events: list[list[Any]] = [[] for _ in requests]
    for request, own in zip(requests, events, strict=True):
        serving.submit(request, own.append)
    began, reading, steps, goes_on = bench.now(), 0.0, list[float](), True
    while goes_on:
        started = bench.now()
        goes_on = serving.step()
        if reading and serving.running == len(requests):
            steps.append(bench.now() - started)
        if not reading and all(events):
            reading = bench.now() - began
    failed = [own[-1].error for own in events if own[-1].error]
    if failed:
        raise RuntimeError(failed[0])
    return {"reading": reading, "step": statistics.median(steps)}


def adapter_folder(bench: Bench, rank: int) -> Path:
    """A LoRA adapter of random matrices, as peft saves it."""
    folder, base = bench.scratch / "adapter", bench.sizes.large
    heads = base["hidden_size"] // base["num_attention_heads"]
    rows = dict.fromkeys(("q_proj", "o_proj"), base["hidden_size"])
    rows |= dict.fromkeys(("k_proj", "v_proj"), heads * base["num_key_value_heads"])
    generator, tensors = torch.Generator().manual_seed(0), {}
    for index, (name, out) in itertools.product(range(base["num_hidden_layers"]), rows.items()):
        key = f"base_model.model.model.layers.{index}.self_attn.{name}"
        tensors[f"{key}.lora_A.weight"] = torch.randn(rank, base["hidden_size"], generator=generator) * 0.02
        tensors[f"{key}.lora_B.weight"] = torch.randn(out, rank, generator=generator) * 0.02
    LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=rank, target_modules=list(rows)).save_pretrained(str(folder))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


# --- perplexity ------------------------------------------------------------------------------------------------------


def read(bench: Bench) -> None:
    bench.attempt("perplexity", 14, partial(read_windows, bench))


def read_windows(bench: Bench) -> None:
    length, chunk = bench.sizes.read
    folder = base_folder(bench, "large", bench.sizes.large)
    with random_weights(bench.device):
        model, _ = lengthen.load(folder, "bfloat16", method="linear", target=length, device=bench.device)
    ids = random_tokens(bench.sizes.large["vocab_size"], length)
    for size in (length, chunk, None):
        what = "by default" if size is None else "whole" if size == length else f"in chunks of {size:,}"
        perplexity(model, ids, length, length, chunk=size)  # what is loaded and planned at first use
        found = perplexity(model, ids, length, length, chunk=size)
        text = f"{found.tokens_per_second:7,.0f} tokens/s, loss {found.loss:.4f}, {gb(bench.peak().get('allocated'))}"
        values = {"chunk": found.chunk, "loss": found.loss, "tokens_per_second": found.tokens_per_second}
        bench.add(f"{length:,} {what}", text, **values, **bench.peak())


PARTS: dict[str, Callable[[Bench], None]] = {
    "backends": backends, "layer": layer, "step": step, "trainer": trainer, "engine": engine, "perplexity": read,
    "long": long,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="in the order to run; default all")
    parser.add_argument("--budget", type=float, default=600, help="seconds; no row starts that takes longer")
    parser.add_argument("--json", type=Path, help="where the results go, after each row")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="everything in miniature")
    arguments = parser.parse_args()
    parts = arguments.parts.split(",")
    if unknown := set(parts) - PARTS.keys():
        parser.error(f"--parts names {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if arguments.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # lengthen takes a GPU where it finds one
    elif not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --tiny --device cpu runs everything in miniature")
    sizes = TINY if arguments.tiny else CARD
    bench = Bench(sizes, torch.device(arguments.device), arguments.budget, arguments.json)
    os.environ["LENGTHEN_CACHE"] = str(bench.scratch / "cache")
    try:
        for bench.part in parts:
            PARTS[bench.part](bench)
    finally:
        shutil.rmtree(bench.scratch, ignore_errors=True)
    bad = [f"{row['part']} {row['name']}" for row in bench.rows if row.get("failed") or row.get("right") is False]
    print(f"failed or wrong: {'; '.join(bad) or 'nothing'}")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
