"""The longest context that `lengthen plan` finds for models and cards, with S2 and at full attention.

    python benchmarks/longest_context.py --json docs/results/longest-context.json

LoRA r=8 on attention, embeddings and norms trained, one sequence as long as the context, memory preset `low_memory`. S2
in groups of 8,192 tokens, layers by chunks of 16,384 on one card, by shards of the sequence on several, weights sharded
(fsdp2); 4-bit weights on a card of 24 GB. At full attention as many cards share a sequence as its heads can be shared
out to, and the others have sequences of their own. Planned, not measured. A cell has the tokens, the hours of a
thousand steps, the gigabytes of CPU memory for each card, and the sequences of a step where there are several. A
minute.
"""

import argparse
from contextlib import suppress
from pathlib import Path
from typing import Any

from lengthen.attention_pattern import heads_of
from lengthen.errors import LengthenError, ModelError
from lengthen.files import write_json
from lengthen.planning import plan
from lengthen.recipe import parse_recipe
from record import record

LLAMA: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 128256, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0, "num_key_value_heads": 8, "tie_word_embeddings": False,
}  # fmt: skip
MODELS = {
    "1B": LLAMA | {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "head_dim": 64, "tie_word_embeddings": True,
    },
    "8B": LLAMA | {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    },
    "70B": LLAMA | {
        "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
    },
}  # fmt: skip
CARDS = [("rtx4090-24gb", 1), ("h100-80gb", 1), ("h100-80gb", 8), ("h100-80gb", 64)]
GROUP = 8192


def shards_of(model: str, kind: str, count: int) -> int:
    """Of `count` cards, the largest number that can share a sequence: at full attention heads must divide."""
    sizes = MODELS[model]
    for shards in range(count, 0, -1):
        with suppress(ModelError):
            if count % shards == 0:
                if kind == "full":
                    heads_of(0, shards, sizes["num_attention_heads"], sizes["num_key_value_heads"])
                return shards
    raise AssertionError


def recipe_of(model: str, kind: str, card: str, count: int, target: int) -> dict[str, Any]:
    chunk = {"sequence_chunk": 2 * GROUP} if kind == "s2" and count == 1 else {}
    return {
        "model": "a/model",
        "base_config": MODELS[model],
        "context": {"target": target, "method": "yarn"},
        "attention": {"kind": kind, **({"group_size": GROUP, "sinks": 4} if kind == "s2" else {})},
        "adapter": {"rank": 8, "alpha": 16, "embeddings": True},
        "quantize": "nf4" if "24gb" in card else None,
        "training": {"steps": 1000, "dtype": "bfloat16"},
        "memory": {"preset": "low_memory", **chunk},
        "parallel": {"data": "fsdp2", "sequence": shards_of(model, kind, count)} if count > 1 else "ddp",
    }


def longest(model: str, kind: str, card: str, count: int) -> dict[str, Any]:
    """The longest context, and the hours of a thousand steps at it; 0 where not even the base's fits."""
    least = max(16384, count * GROUP)
    try:
        found = plan(parse_recipe(recipe_of(model, kind, card, count, least), "least"), card, count).max_context or 0
        if found < least:
            return {"context": 0}
        whole = found // GROUP * GROUP
        planned = plan(parse_recipe(recipe_of(model, kind, card, count, whole), "longest"), card, count)
    except LengthenError as error:
        return {"context": 0, "error": str(error)}
    return {
        "context": whole,
        "sequences": count // shards_of(model, kind, count),
        "hours": (planned.seconds or 0) / 3600,
        "peak_bytes": planned.peak_bytes,
        "host_bytes": planned.memory.host,
        "traffic_bytes": planned.traffic.total,
    }


def cell(row: dict[str, Any]) -> str:
    """Tokens, hours, and where layers' inputs wait in CPU memory, how much of it each card needs."""
    if not row["context"]:
        return "-"
    host = f", {row['host_bytes'] / 1e9:,.0f} GB" if row["host_bytes"] else ""
    sequences = f", {row['sequences']} sequences" if row["sequences"] > 1 else ""
    return f"{row['context']:,}, {row['hours']:,.0f} h{host}{sequences}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = [
        {"model": model, "device": card, "devices": count, "attention": kind, **longest(model, kind, card, count)}
        for model in MODELS
        for card, count in CARDS
        for kind in ("s2", "full")
    ]
    print("| model | cards | S2 | full attention |\n|---|---|---|---|")
    for s2, full in zip(rows[::2], rows[1::2], strict=True):
        print(f"| {s2['model']} | {s2['devices']} x {s2['device']} | {cell(s2)} | {cell(full)} |")
    if arguments.json:
        write_json(arguments.json, {**record("planned"), "results": rows})


if __name__ == "__main__":
    main()
