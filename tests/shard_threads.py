"""Shards of a sequence in threads of one process, in the place of processes."""

from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

from lengthen.attention.layout import Shard


def in_threads(bounds, work, timeout=30):
    """What `work(shard)` returns for each shard, and the numbers that each sent: {(from, to): [message sizes]}."""
    count, sent = len(bounds) - 1, {}
    queues = {(a, b): SimpleQueue() for a in range(count) for b in range(count)}

    def transport(rank):
        def start(messages, received):
            for other, message in messages.items():
                assert other != rank
                sent.setdefault((rank, other), []).append(message.numel())
                queues[rank, other].put(message.clone())

            def wait():
                for other, buffer in received.items():
                    message = queues[other, rank].get(timeout=timeout)
                    assert message.shape == buffer.shape
                    buffer.copy_(message)

            return wait

        return start

    with ThreadPoolExecutor(count) as pool:
        found = list(pool.map(lambda rank: work(Shard(rank, tuple(bounds), transport(rank))), range(count)))
    assert all(queue.empty() for queue in queues.values()), "a message was not waited for"
    return found, sent
