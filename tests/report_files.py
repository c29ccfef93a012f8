"""Results files as `lengthen eval` writes them, for reports of which only the page is tested."""

import json

from lengthen.evaluation.compare.verdict import verdict

CONTEXTS = (256, 512, 1024, 2048)
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
TASKS = ("niah_single_1", "niah_multikey_1", "niah_multivalue", "vt", "cwe", "fwe")
VERSIONS = {"python": "3.11.2", "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.0", "lengthen": "0.1.0"}


def header(model, kind):
    return {"model": model, "dtype": "bfloat16", "adapter": None, "quantize": None, "method": None, "target": None,
            "kind": kind, "command": f"lengthen eval {kind} {model}", "versions": VERSIONS}  # fmt: skip


def perplexity(model, last=12.4, documents=("a.txt", "b.txt"), protocol="strided"):
    """Falls to `last` at the longest context."""
    results = [
        {"context": context, "stride": context // 2, "perplexity": value, "loss": 2.5, "tokens": 4000, "windows": 3,
         "seconds": 1.0, "interval": {"low": value - 0.5, "high": value + 0.5, "over": "documents", "units": 2},
         "by_position": [{"from": 256 * i, "to": 256 * (i + 1), "perplexity": value + 8 / (i + 1), "tokens": 500}
                         for i in range(context // 256)]}
        for context, value in zip(CONTEXTS, (last + 3, last + 2, last + 1, last), strict=True)
    ]  # fmt: skip
    return header(model, f"perplexity-{protocol}") | {
        "protocol": protocol, "data": ["books"], "documents": list(documents), "results": results,
    }  # fmt: skip


def grid(model, kind, lost=20):
    """`lost` of 20 trials fail at depth 0 of the longest length, and fewer elsewhere."""
    results = [
        {"tokens": tokens, "depth": depth, "correct": max(0, 20 - round(lost * (1 - depth) * tokens / 2048)),
         "trials": 20, "exact": 0, "nats": 2.5}
        for tokens in CONTEXTS for depth in DEPTHS
    ]  # fmt: skip
    return header(model, kind) | {"results": results}


def ruler(model, best=90.0, threshold=60.0):
    results = [
        {"task": task, "tokens": tokens, "score": max(0.0, best - 3 * i - tokens / 40), "trials": 20}
        for i, task in enumerate(TASKS) for tokens in CONTEXTS
    ]  # fmt: skip
    by_length = {t: [r["score"] for r in results if r["tokens"] == t] for t in CONTEXTS}
    averages = [{"tokens": t, "score": sum(scores) / len(scores)} for t, scores in by_length.items()]
    passed = [average["tokens"] for average in averages if average["score"] >= threshold]
    return header(model, "ruler") | {
        "results": results, "averages": averages, "threshold": threshold, "effective_context": max(passed, default=None)
    }  # fmt: skip


def tasks(model, score=12.3):
    results = [{"task": name, "metric": "rouge-l", "score": score, "samples": 20} for name in ("qmsum", "squality")]
    return header(model, "tasks") | {"results": results}


def compare(model, base_id, run=0.9, base=0.8, low=-0.2, high=0.3, scaled=None):
    """Needles at 128 and 2,048 tokens, the base lost at the latter; both ends are None for a single prompt.

    "scaled" is the score of the base with the run's positions, where it was asked too.
    """

    def side(score):
        return {"score": score, "nats": 1.0, "right_tokens": score, "first_wrong": [1, 0]}

    scores = [
        {"task": "needle", "tokens": tokens, "depth": None, "prompts": 1 if low is None else 5, "questions": 25,
         "base": side(own), "run": side(run), "difference": run - own, "low": low, "high": high,
         "beyond_base": tokens > 256, **({} if scaled is None else {"scaled": side(scaled)})}
        for tokens, own in ((128, base), (2048, 0.0))
    ]  # fmt: skip
    perplexity = [
        {"from": start, "to": to, "tokens": 4000, "documents": 2, "base": before, "run": after, "ratio": after / before,
         "low": 0.2, "high": 0.3, "beyond_base": to > 256}
        for start, to, before, after in ((0, 2048, 45.7, 12.4), (0, 32, 49.0, 17.0), (0, 1024, 48.0, 16.0),
                                         (1024, 2048, 45.0, 12.0))
    ]  # fmt: skip
    long = {"evaluator": "base", "short_context": 32, "share": 0.08, "tokens": 320, "base": 3.21, "run": 2.5,
            "ratio": 0.78, "low": 0.7, "high": 0.9}  # fmt: skip
    return header(model, "compare") | {
        "base": base_id, "scores": scores, "perplexity": perplexity, "long_perplexity": long,
        "verdict": verdict(scores, perplexity, 256),
    }  # fmt: skip


def write(folder, name, content):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_all(run, base_id, elsewhere):
    """Every kind of results into a run folder's evals/; the base's into `elsewhere`, whose paths are returned."""
    evals, name = run / "evals", run.name
    write(evals, "perplexity-strided-20261122-090000.json", perplexity(name))
    for kind in ("passkey", "needle"):
        write(evals, f"{kind}-20261122-090000.json", grid(name, kind))
    write(evals, "ruler-20261122-090000.json", ruler(name))
    write(evals, "tasks-20261122-090000.json", tasks(name))
    write(evals, "compare-20261122-090000.json", compare(name, base_id))
    scaled = perplexity(base_id, last=14.2) | {"method": "linear", "target": 2048}
    return [
        write(elsewhere, "scaled.json", scaled),
        write(elsewhere, "base.json", perplexity(base_id, last=45.7)),
        write(elsewhere, "base-passkey.json", grid(base_id, "passkey", lost=60)),
        write(elsewhere, "base-ruler.json", ruler(base_id, best=62.0)),
        write(elsewhere, "base-tasks.json", tasks(base_id, score=8.5)),
    ]
