"""Does perplexity stay level when a text is read through a window much shorter than it, and does memory stay flat?

    python benchmarks/streaming.py --json docs/results/streaming.json
    python benchmarks/streaming.py --model tiny --window 64 --chunk 16       # seconds

SmolLM2-135M (context 8,192) in bfloat16 reads one long document of Python's standard library, 20 windows of 512
tokens, 64 tokens at a time, in three ways: through a streaming cache with 4 attention sinks; through a window of the
same size that slides without sinks; and with an ordinary cache that keeps everything. Perplexity is given by position,
with the keys and values held at the end. First checked: while the text is shorter than the window, all ways agree.

About ten minutes on two cores.
"""

import argparse
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional

import lengthen
from lengthen.data.tokens import default_cache, load_tokens
from lengthen.decoding.prefill import hidden_chunks, new_cache
from lengthen.decoding.streaming import Streaming, StreamingCache
from lengthen.files import write_json
from lengthen.head import logits_from
from record import record

SINKS = 4


@torch.inference_mode()
def losses(model: Any, ids_1T: torch.Tensor, cache: Any, chunk: int) -> torch.Tensor:
    """(T - 1,) of the tokens but the first."""
    parts, begin = [], 1
    for hidden_1cH in hidden_chunks(model, ids_1T[:, :-1], chunk, cache):
        end = begin + hidden_1cH.shape[1]
        parts.append(
            functional.cross_entropy(logits_from(model, hidden_1cH)[0], ids_1T[0, begin:end], reduction="none")
        )
        begin = end
    return torch.cat(parts)


def held(cache: Any) -> int:
    """Bytes of keys and values."""
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--window", type=int, default=512, help="tokens, sinks included")
    parser.add_argument("--times", type=int, default=20, help="windows that the text is long")
    parser.add_argument("--chunk", type=int, default=64, help="tokens read at once")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    window, chunk = arguments.window, arguments.chunk

    model, tokenizer = lengthen.load(arguments.model, "bfloat16")
    store, _ = load_tokens(["python-stdlib:validation"], tokenizer, model.config.vocab_size, default_cache())
    longest = max(range(len(store)), key=lambda index: len(store[index]))
    document = np.asarray(store[longest][: window * arguments.times], dtype=np.int64)
    assert len(document) == window * arguments.times, f"the longest document has only {len(store[longest])} tokens"
    ids_1T = torch.from_numpy(document)[None]

    caches = {
        f"{SINKS} sinks + {window - SINKS} recent": StreamingCache(model, Streaming(SINKS, window - SINKS, chunk)),
        f"{window} recent, no sinks": StreamingCache(model, Streaming(0, window, chunk)),
        "everything kept": new_cache(model),
    }
    measured = {name: losses(model, ids_1T, cache, chunk) for name, cache in caches.items()}
    first, *others = (each[: window - 1] for each in measured.values())
    assert all(torch.equal(first, other) for other in others), "within the window the ways differ"

    places = list(pairwise([0, window, *range(4 * window, len(document) + 1, 4 * window)]))
    rows = []
    for name, each in measured.items():
        means = [each[max(start - 1, 0) : stop - 1].double().mean().item() for start, stop in places]
        by_position = [
            {"from": start, "to": stop, "perplexity": math.exp(mean)}
            for (start, stop), mean in zip(places, means, strict=True)
        ]
        rows.append({"cache": name, "by_position": by_position, "held_bytes": held(caches[name])})
    table = Table("tokens", *caches)
    for index, (start, stop) in enumerate(places):
        table.add_row(f"{start:,}-{stop:,}", *(f"{row['by_position'][index]['perplexity']:.2f}" for row in rows))
    table.add_row("MiB held", *(f"{row['held_bytes'] / 2**20:.1f}" for row in rows))
    console = Console()
    console.print(f"Perplexity by position, {arguments.model}, {Path(store.names[longest]).name}")
    console.print(table)
    if arguments.json:
        content = {
            **record(model.device),
            "model": arguments.model,
            "dtype": "bfloat16",
            "document": Path(store.names[longest]).name,
            "chunk": chunk,
            "results": rows,
        }
        write_json(arguments.json, content)


if __name__ == "__main__":
    main()
