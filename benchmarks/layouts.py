"""Time of what is computed from where documents lie: batches, groups, chunks and halos, for a million tokens.

    python benchmarks/layouts.py

S2 in groups of 8,192 tokens with four sinks, 32 query and 8 key/value heads, chunks of 16,384 tokens, 8 shards. The
best of three, in milliseconds of processor time; "again" is what each further layer of a step pays. Seconds.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np

from lengthen.attention.halo import slices
from lengthen.attention.sdpa import _places
from lengthen.attention.shards import _halo, _of_half, shard_bounds
from lengthen.attention_pattern import Groups
from lengthen.data.blocks import Block
from lengthen.data.collate import collate

GROUPS = Groups(8192, 4)
CHUNK, SHARDS = 16384, 8


def milliseconds(function: Callable[[], object]) -> float:
    times = []
    for _ in range(3):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1 << 20)
    parser.add_argument("--documents", type=int, nargs="+", default=[1, 64, 4096])
    arguments = parser.parse_args()
    tokens = arguments.tokens
    half, bounds = _of_half(GROUPS, 1), shard_bounds(tokens, GROUPS.size, SHARDS)
    print("| documents | batch | groups | chunks | halo | again |\n|---|---|---|---|---|---|")
    for count in arguments.documents:
        block = Block(np.zeros(tokens // count * count, dtype=np.int64), (tokens // count,) * count)
        documents = collate([block], 0)["documents"]
        cached = {
            _places: (documents, GROUPS, 32, 8, False),
            slices: (documents, GROUPS, len(block), CHUNK),
            _halo: (documents, half, bounds, SHARDS // 2),
        }
        found = [milliseconds(lambda block=block: collate([block], 0))]
        found += [milliseconds(lambda f=f, given=given: f.__wrapped__(*given)) for f, given in cached.items()]
        found += [max(milliseconds(lambda f=f, given=given: f(*given)) for f, given in cached.items())]
        print(f"| {count:,} | {' | '.join(f'{each:.3g} ms' for each in found)} |")


if __name__ == "__main__":
    main()
