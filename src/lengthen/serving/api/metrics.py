"""The engine's counts in Prometheus' text format."""

from lengthen.serving.engine import Engine

__all__ = ["metrics_text"]


def metrics_text(engine: Engine) -> str:
    """All counts and gauges."""
    stats, pool = engine.stats, engine.registry.pool
    lines = _family("requests_total", "counter", "finished requests by adapter (none: the base) and reason")
    for (adapter, finish), count in sorted(stats.finished.items(), key=str):
        lines.append(f'lengthen_requests_total{{adapter="{_escaped(adapter or "")}",finish="{finish}"}} {count}')
    for name, kind, text, value in (
        ("prompt_tokens_total", "counter", "tokens read", stats.prompt_tokens),
        ("generated_tokens_total", "counter", "tokens generated", stats.new_tokens),
        ("steps_total", "counter", "forward passes that generated tokens", stats.steps),
        ("first_token_seconds_total", "counter", "seconds until the first token, summed", stats.waited_seconds),
        ("first_tokens_total", "counter", "requests that got a first token", stats.answered),
        ("adapter_evictions_total", "counter", "adapters that left the memory for others", engine.registry.evicted),
        ("requests_running", "gauge", "requests in the batch", engine.running),
        ("requests_waiting", "gauge", "requests in the queue", engine.waiting),
        ("adapters_loaded", "gauge", "adapters that can be asked for", len(engine.registry.names)),
        ("adapters_in_memory", "gauge", "adapters in memory", len(pool)),
        ("adapter_bytes", "gauge", "memory of the adapters", pool.nbytes),
        ("cached_tokens", "gauge", "tokens whose keys and values are held", engine.cached_tokens),
    ):
        lines += [*_family(name, kind, text), f"lengthen_{name} {value}"]
    return "\n".join(lines) + "\n"


def _family(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP lengthen_{name} {text}", f"# TYPE lengthen_{name} {kind}"]


def _escaped(label: str) -> str:
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
