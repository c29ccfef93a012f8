"""Many clients of one server at once, each of which checks that its answer is what the same request gets alone."""

import asyncio
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field

import httpx
import psutil

from server_process import TOKEN

PROMPTS = [
    "def add(a, b):\n",
    "import os\n\n",
    "class Queue:\n    def __init__(self",
    "for i in range(",
    "# Copyright",
    "x =",
]
LENGTHS = (1, 5, 20)
KINDS = ("whole", "whole", "stream", "stream", "slow", "leave", "cancel", "malformed", "oversized", "unknown", "chat")


@dataclass
class Seen:
    """What all clients saw.

    Attributes:
        counts: by kind and end.
        wrong: answers that are others than the same request's alone, and requests without one.
        first, whole: seconds to a stream's first text, and to whole answers.
        memory: (seconds, bytes) of the server's process.
    """

    counts: Counter = field(default_factory=Counter)
    wrong: list = field(default_factory=list)
    first: list = field(default_factory=list)
    whole: list = field(default_factory=list)
    memory: list = field(default_factory=list)

    def figures(self):
        """A summary. The slope of the memory is that of the second half, when what is made once is there."""
        middle = (self.memory[0][0] + self.memory[-1][0]) / 2
        mebibytes = [bytes_ >> 20 for _, bytes_ in self.memory]
        hourly = slope([point for point in self.memory if point[0] > middle]) * 3600 / 2**20
        return {
            "requests": sum(self.counts.values()),
            "wrong": len(self.wrong),
            "ends": {f"{kind} {end}": count for (kind, end), count in sorted(self.counts.items(), key=str)},
            "first_text_s": _percentiles(self.first),
            "whole_s": _percentiles(self.whole),
            "memory_mib": {"begin": mebibytes[0], "end": mebibytes[-1], "most": max(mebibytes)},
            "mib_per_hour": round(hourly, 1),
        }


def slope(points):
    """Least squares, bytes a second."""
    if len(points) < 3:
        return 0.0
    times, values = zip(*points, strict=True)
    mean_t, mean_v = sum(times) / len(times), sum(values) / len(values)
    above = sum((t - mean_t) * (v - mean_v) for t, v in points)
    return above / sum((t - mean_t) ** 2 for t in times)


def _percentiles(values):
    ordered = sorted(values)
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99} if ordered else {}
    return {name: round(ordered[int(share * (len(ordered) - 1))], 3) for name, share in shares.items()}


def alone(server, models):
    """The answer to each request by itself."""
    return {
        (model, prompt, count): server.complete(model, prompt, count).choices[0].text
        for model in models for prompt in PROMPTS for count in LENGTHS
    }  # fmt: skip


async def run(server, expected, models, clients, seconds, seed, evict=()):
    """Clients for some seconds; `evict` are (name, path) of adapters that are loaded and unloaded meanwhile."""
    seen, until = Seen(), time.monotonic() + seconds
    limits = httpx.Limits(max_connections=clients + 10, max_keepalive_connections=clients)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=300, limits=limits) as http:
        tasks = [_client(http, expected, models, seen, until, random.Random(f"{seed} {i}")) for i in range(clients)]
        await asyncio.gather(_watch(server, seen, until), _change(http, evict, seen, until), *tasks)
    return seen


async def _watch(server, seen, until):
    process = psutil.Process(server.process.pid)
    while time.monotonic() < until:
        seen.memory.append((time.monotonic(), process.memory_info().rss))
        await asyncio.sleep(0.5)


async def _change(http, evict, seen, until):
    """Load and unload adapters, as operators do."""
    while evict and time.monotonic() < until:
        for name, path in evict:
            answer = await http.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(path)})
            seen.counts["load", answer.status_code] += 1
            await asyncio.sleep(0.2)
            answer = await http.post("/v1/unload_lora_adapter", json={"lora_name": name})
            seen.counts["unload", answer.status_code] += 1


async def _client(http, expected, models, seen, until, generator):
    while time.monotonic() < until:
        kind = generator.choice(KINDS)
        model, prompt, count = generator.choice(models), generator.choice(PROMPTS), generator.choice(LENGTHS)
        body = {"model": model, "prompt": prompt, "max_tokens": count, "temperature": 0}
        try:
            end = await _ask(http, kind, body, expected[model, prompt, count], seen, generator)
        except Exception as error:
            end = "lost"
            seen.wrong.append((kind, body, repr(error)))
        seen.counts[kind, end] += 1
        if end == 429:
            await asyncio.sleep(generator.uniform(0.1, 0.5))


async def _ask(http, kind, body, expected, seen, generator):
    began = time.monotonic()
    if kind in ("malformed", "oversized", "unknown"):
        content = {
            "malformed": generator.choice([b"{", b"[]", b'{"model": 3}', b"\xff", b"[" * 10_000]),
            "oversized": b"x" * 150_000,
            "unknown": json.dumps({**body, "model": "nobody"}).encode(),
        }[kind]
        answer = await http.post("/v1/completions", content=content, headers={"Content-Type": "application/json"})
        if answer.status_code not in {"malformed": (400,), "oversized": (413,), "unknown": (404,)}[kind]:
            seen.wrong.append((kind, content[:50], answer.status_code))
        return answer.status_code
    if kind == "chat":
        messages = [{"role": "user", "content": body.pop("prompt")}]
        answer = await http.post("/v1/chat/completions", json={**body, "messages": messages})
        if answer.status_code not in (200, 429):
            seen.wrong.append((kind, body, answer.status_code, answer.text[:200]))
        return answer.status_code
    if kind == "whole":
        answer = await http.post("/v1/completions", json=body)
        if answer.status_code != 200:
            if answer.status_code != 429:
                seen.wrong.append((kind, body, answer.status_code, answer.text[:200]))
            return answer.status_code
        seen.whole.append(time.monotonic() - began)
        return _check(kind, body, answer.json()["choices"][0]["text"], expected, seen)
    if kind == "cancel":  # before anything came
        try:
            await asyncio.wait_for(
                http.post("/v1/completions", json={**body, "max_tokens": 100}), generator.uniform(0, 0.1)
            )
        except (asyncio.TimeoutError, TimeoutError):
            return "left"
        return "answered"
    return await _stream(http, kind, body, expected, seen, began)


async def _stream(http, kind, body, expected, seen, began):
    text, finished = "", False
    async with http.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer:
        if answer.status_code != 200:
            return answer.status_code
        async for line in answer.aiter_lines():
            if line == "data: [DONE]":
                finished = True
            elif line.startswith("data: "):
                if not text:
                    seen.first.append(time.monotonic() - began)
                text += json.loads(line[6:])["choices"][0]["text"]
                if kind == "leave":
                    return "left"
                if kind == "slow":
                    await asyncio.sleep(0.05)
    if not finished:
        seen.wrong.append((kind, body, "no end"))
    return _check(kind, body, text, expected, seen)


def _check(kind, body, text, expected, seen):
    if text != expected:
        seen.wrong.append((kind, body, text, expected))
        return "mixed"
    return "right"
