"""The cases of `ablation.py`, and the file that holds what was measured of them."""

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import lengthen
from lengthen.context import extend
from lengthen.data.stdlib import STDLIB
from lengthen.data.tokens import default_cache, load_tokens
from lengthen.evaluation import perplexity
from lengthen.extension.questions import spread_documents
from lengthen.files import write_json
from lengthen.models.devices import default_device, pick_dtype
from lengthen.models.load import load_base, load_config, load_tokenizer
from lengthen.models.resolve import resolve_model
from lengthen.recipe import Recipe, parse_recipe
from lengthen.run_folder import RunFolder
from lengthen.training.run import train
from record import record

MODEL, BASE_CONTEXT, TARGET = "tiny", 256, 2048
STEPS, SEQUENCES, WARMUP = 24, 2, 3
SEEDS = (0, 1, 2)
DOCUMENTS, CHOICE_DOCUMENTS = 16, 8

BARE = {"embeddings": False, "norms": False}
ADAPTERS: dict[str, dict[str, Any]] = {
    "full fine-tuning": {"kind": "full"},
    "LoRA r=8": {"rank": 8, "alpha": 16, **BARE},
    "LoRA r=64": {"rank": 64, "alpha": 128, **BARE},
    "LoRA r=8, norms": {"rank": 8, "alpha": 16, **BARE, "norms": True},
    "LoRA r=8, embeddings": {"rank": 8, "alpha": 16, **BARE, "embeddings": True},
    "LoRA r=8, norms, embeddings": {"rank": 8, "alpha": 16, "embeddings": True},
}
BOTH = "LoRA r=8, norms, embeddings"
AT_YARN = ("full fine-tuning", "LoRA r=8", BOTH)
RATES = dict.fromkeys(ADAPTERS, (2e-3, 6e-3, 2e-2)) | {"full fine-tuning": (5e-4, 1.5e-3, 5e-3)}
EMBEDDING_SHARE = 1 / 3
"""Of LoRA's learning rate, for the embeddings beside it: they bear less."""

ATTENTIONS: dict[str, dict[str, Any]] = {
    "full": {"kind": "full"},
    "S2": {"kind": "s2", "sinks": 0},
    "groups, no shift": {"kind": "s2", "pattern": "plain", "sinks": 0},
}
SINK, POSE = "S2, 1 sink", "full, skip-wise (PoSE)"
LAST_10, LAST_20 = "S2, last 10% full", "S2, last 20% full"
BESIDE: dict[str, dict[str, Any]] = {
    LAST_10: {"kind": "s2", "sinks": 0, "full_last": 0.1},
    LAST_20: {"kind": "s2", "sinks": 0, "full_last": 0.2},
    SINK: {"kind": "s2", "sinks": 1},
    POSE: {"kind": "full"},
}
METHODS = ("linear", "ntk", "yarn", "llama3", "theta")
THETA = 500_000.0
"""For `theta`: what arXiv 2309.16039 raised 10,000 to for eight times the context."""


@dataclass(frozen=True)
class Case:
    """One run."""

    adapter: str
    attention: str
    method: str
    learning_rate: float
    seed: int
    steps: int

    def recipe(self, out: Path) -> Recipe:
        adapter = ADAPTERS[self.adapter]
        trains_embeddings = adapter.get("embeddings", False)
        skips = {"skip_wise": True, "sequence_length": BASE_CONTEXT} if self.attention == POSE else {}
        content = {
            "model": MODEL,
            "out": str(out),
            "seed": self.seed,
            "context": context_of(self.method),
            "attention": (ATTENTIONS | BESIDE)[self.attention],
            "adapter": adapter,
            # One stream as in the paper, so that every sequence is whole and full attention needs no mask.
            "data": {"train": [f"{STDLIB}:train"], "min_tokens": TARGET, "packing": "concatenate", **skips},
            "training": {
                "steps": self.steps,
                "batch_size": SEQUENCES * (TARGET // BASE_CONTEXT if skips else 1),
                "learning_rate": self.learning_rate,
                "embedding_learning_rate": self.learning_rate * EMBEDDING_SHARE if trains_embeddings else None,
                "schedule": "linear",
                "warmup_steps": WARMUP,
                "save_every": self.steps,
            },
            "memory": {"activation_checkpointing": False},
        }
        return parse_recipe(content, "ablation")


def context_of(method: str) -> dict[str, Any]:
    return {"target": TARGET, "method": method, "theta": THETA if method == "theta" else None}


class Study:
    """The results in a file; what is asked for and not in it is run."""

    def __init__(self, path: Path, steps: int):
        self._path, self.steps = path, steps
        self._settings = {
            "model": MODEL, "target": TARGET, "steps": steps, "tokens_per_step": SEQUENCES * TARGET, "warmup": WARMUP,
            "rates": {adapter: list(rates) for adapter, rates in RATES.items()},
            "embedding_share": EMBEDDING_SHARE, "theta": THETA,
        }  # fmt: skip
        self.results, self.untrained, self.startup = [], {}, 0.0
        if path.exists():
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["settings"] != self._settings:
                raise SystemExit(f"{path} was made with other settings; choose another --json")
            self.results, self.untrained = content["results"], content["untrained"]
            self.startup = content["startup_seconds"]

    def find(self, **wanted: Any) -> list[dict[str, Any]]:
        return [row for row in self.results if all(row[key] == value for key, value in wanted.items())]

    def run(self, case: Case) -> None:
        if self.find(**asdict(case)):
            return
        with tempfile.TemporaryDirectory() as folder:
            run, seconds = timed_train(case.recipe(Path(folder) / "run"))
            row = {
                **asdict(case),
                **measure(lengthen.load(str(run))[0]),
                "final_loss": RunFolder(run).read_metrics()[-1]["loss"],
                "step_seconds": (seconds - self.startup) / (case.steps - 1),
            }
        self.results.append(row)
        self.write()
        what = f"{case.adapter:<28} {case.attention:<23} {case.method:<7} {case.learning_rate:<6g} seed {case.seed}"
        found = f"{case.steps} steps of {row['step_seconds']:.2f} s, perplexity {row['perplexity']:.2f}"
        print(f"{len(self.results):>3}  {what}  {found}", flush=True)

    def time_startup(self) -> None:
        """Seconds of a run with a single step, the second in this process: what all have beside their further steps."""
        one_step = Case(BOTH, "S2", "linear", 1e-3, SEEDS[0], 1)
        for _ in range(2):
            with tempfile.TemporaryDirectory() as folder:
                _, self.startup = timed_train(one_step.recipe(Path(folder) / "run"))

    def run_untrained(self, method: str) -> None:
        if method in self.untrained:
            return
        source = resolve_model(MODEL)
        config = load_config(source)
        if method != "base":
            config = extend(config, context_of(method)["target"], method, theta=context_of(method)["theta"])
        model = load_base(source, config, pick_dtype("auto", default_device())).eval()
        self.untrained[method] = measure(model)
        if method == "base":
            sliding = perplexity(model, held_out()[0], BASE_CONTEXT, batch_size=16)
            self.untrained["base, sliding window"] = {"perplexity": sliding.perplexity}
        self.write()

    def write(self) -> None:
        content = {
            **record(),
            "settings": self._settings,
            "startup_seconds": self.startup,
            "untrained": self.untrained,
            "results": self.results,
        }
        write_json(self._path, content)

    def best_rate(self, adapter: str, attention: str, method: str = "linear") -> float:
        grid = self.find(adapter=adapter, attention=attention, method=method, seed=SEEDS[0], steps=self.steps)
        return min(grid, key=lambda row: row["choice_loss"])["learning_rate"]

    def cell(self, adapter: str, attention: str, method: str = "linear") -> list[dict[str, Any]]:
        """The runs of a cell at its chosen rate; empty where the grid is not done."""
        wanted = {"adapter": adapter, "attention": attention, "method": method, "steps": self.steps}
        if not self.find(**wanted):
            return []
        return self.find(**wanted, learning_rate=self.best_rate(adapter, attention, method))

    def run_cell(self, adapter: str, attention: str, method: str = "linear", rates: Sequence[float] = ()) -> None:
        for rate in rates or RATES[adapter]:
            self.run(Case(adapter, attention, method, rate, SEEDS[0], self.steps))
        rate = self.best_rate(adapter, attention, method)
        for seed in SEEDS[1:]:
            self.run(Case(adapter, attention, method, rate, seed, self.steps))

    def steps_in_equal_seconds(self, adapter: str) -> int:
        """Steps of full attention in the seconds of S2's run."""
        full, s2 = (
            statistics.median(
                row["step_seconds"]
                for row in self.find(adapter=adapter, attention=name, method="linear", steps=self.steps)
            )
            for name in ("full", "S2")
        )
        return max(2, round(self.steps * s2 / full))


@cache
def held_out() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The documents that are reported, and others, of the same split, that learning rates are chosen on."""
    tokenizer = load_tokenizer(MODEL)
    store, _ = load_tokens([f"{STDLIB}:validation"], tokenizer, len(tokenizer), default_cache())
    reported = [store[i][:TARGET] for i in spread_documents(store, DOCUMENTS, TARGET)]
    long_enough = [store[i][:TARGET] for i in range(len(store)) if len(store[i]) >= TARGET]
    others = [ids for ids in long_enough if not any(np.array_equal(ids, each) for each in reported)]
    assert len(others) >= CHOICE_DOCUMENTS, "this Python's library has too few long held-out files"
    return reported, [others[i * len(others) // CHOICE_DOCUMENTS] for i in range(CHOICE_DOCUMENTS)]


def timed_train(recipe: Recipe) -> tuple[Path, float]:
    started = time.process_time()
    run = train(recipe)
    return run, time.process_time() - started


def measure(model: Any) -> dict[str, Any]:
    reported, others = held_out()
    result = perplexity(model, reported, TARGET, batch_size=2, bucket=BASE_CONTEXT)
    by_position = [bucket["perplexity"] for bucket in result.by_position]
    return {
        "perplexity": result.perplexity,
        "perplexity_begin": by_position[0],
        "by_position": by_position,
        "choice_loss": perplexity(model, others, TARGET, batch_size=2).loss,
    }
