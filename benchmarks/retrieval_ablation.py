"""What makes a longer context usable: positions, questions, restoration and attention, by what is found and perplexity.

    python benchmarks/retrieval_ablation.py --json docs/results/usable/ablation.json
    python benchmarks/retrieval_ablation.py --json docs/results/usable/ablation.json --table

The shipped base from 256 to 2,048 tokens, beside it the same steps with nothing extended (the control). Every case is a
run of `lengthen.train`, written to the file when it is done; cases that are in the file are not run again. A minute and
a half each on one core; run it with OMP_NUM_THREADS=1. --table prints the file as Markdown.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import lengthen
from lengthen.data.stdlib import STDLIB
from lengthen.data.tokens import default_cache, load_tokens
from lengthen.evaluation.compare import Questionnaire, copy_probe, measure, needle_probe
from lengthen.evaluation.retrieval.needle import DEPTHS
from lengthen.extension.questions import haystack_of, spread_documents
from lengthen.files import write_json
from lengthen.models.load import load_config, load_tokenizer
from lengthen.models.resolve import resolve_model
from lengthen.recipe import parse_recipe
from lengthen.training.run import train
from record import record

MODEL, BASE_CONTEXT, TARGET = "tiny", 256, 2048
STEPS, TOKENS_PER_STEP, WARMUP = 48, 4096, 4
LENGTHS, TRIALS, DOCUMENTS = (256, 512, 1024, 2048), 20, 16
QUESTIONS = {"weight": 0.8, "answer_weight": 6, "text_weight": 1, "tasks": {"python": 1.0}}
"""As `lengthen extend` asks a base that knows code."""
RESTORATION = {"training": {"restoration": {"share": 0.2, "length": BASE_CONTEXT}}}
S2: dict[str, dict[str, Any]] = {"attention": {"kind": "s2", "group_size": 512, "sinks": 1}}
SKIP_WISE = {"data": {"skip_wise": True, "sequence_length": 512}}
S2_LAST = 0.25
"""Of the steps, those that a run by skip-wise sequences ends with at full length under S2."""


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        name: its row.
        method: of scaling positions; "none" for the control, which keeps the base's context and has sequences of it.
        questions: settings of the retrieval source; none for text alone.
        changes: of the recipe, by section.
        s2_last: whether the last steps are taken under S2 at full length, by a second run over the first one's export.
    """

    name: str
    method: str = "yarn"
    questions: Mapping[str, Any] | None = field(default_factory=lambda: QUESTIONS)
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    s2_last: bool = False

    def train(self, folder: Path, seed: int, steps: int) -> str:
        """Train it, and return what loads it."""
        first = round(steps * (1 - S2_LAST)) if self.s2_last else steps
        run = train(self._recipe(folder / "run", seed, first))
        if not self.s2_last:
            return str(run)
        merged = folder / "merged"
        lengthen.export(str(run), merged)
        last = replace(self, method="none", changes=S2)
        return str(train(last._recipe(folder / "last", seed, steps - first, str(merged))))

    def _recipe(self, out: Path, seed: int, steps: int, model: str = MODEL) -> Any:
        target = BASE_CONTEXT if self.method == "none" and model == MODEL else TARGET
        data = {"train": [f"{STDLIB}:train"], **self.changes.get("data", {})}
        if self.questions is not None:
            data["beside"] = [{"kind": "retrieval", **self.questions}]
        content: dict[str, Any] = {
            "model": model,
            "out": str(out),
            "seed": seed,
            "context": {"target": target, "method": self.method},
            "attention": {"kind": "full"},
            "adapter": {"rank": 16, "alpha": 32, "targets": "attention", "embeddings": False, "norms": True},
            "data": data,
            "training": {
                "steps": steps,
                "accumulation": TOKENS_PER_STEP // data.get("sequence_length", target),
                "learning_rate": 3e-3,
                "schedule": "linear",
                "warmup_steps": min(WARMUP, steps - 1),
                "save_every": steps,
            },
            "memory": {"preset": "fast"},
        }
        for section in ("attention", "adapter", "training"):
            content[section] |= self.changes.get(section, {})
        return parse_recipe(content, self.name)


def cases() -> Iterator[Case]:
    for method, name in (("none", "control: nothing extended"), ("linear",) * 2, ("llama3",) * 2, ("yarn",) * 2):
        yield Case(f"{name}, text", method, None)
        yield Case(f"{name}, text, restoration", method, None, RESTORATION)
        yield Case(f"{name}, questions", method)
    yield Case("yarn, questions, restoration", changes=RESTORATION)
    yield Case("yarn, questions, S2", changes=S2)
    yield Case("yarn, questions, S2 without sinks", changes={"attention": {**S2["attention"], "sinks": 0}})
    yield Case("yarn, questions, S2, last 20% full", changes={"attention": {**S2["attention"], "full_last": 0.2}})
    yield Case("yarn, questions, skip-wise", changes=SKIP_WISE)
    yield Case("yarn, questions, skip-wise, last 25% S2", changes=SKIP_WISE, s2_last=True)
    papers: dict[str, dict[str, Any]] = {"attention": {**S2["attention"], "sinks": 0}, "adapter": {"embeddings": True}}
    yield Case("LongLoRA: linear, S2 without sinks, embeddings, text", "linear", None, papers)
    yield Case("yarn, questions, embeddings trained", changes={"adapter": {"embeddings": True}})
    yield Case("yarn, questions in sentences", questions=QUESTIONS | {"tasks": {}})
    yield Case("yarn, half of the questions", questions=QUESTIONS | {"weight": 0.4})
    yield Case("yarn, questions of at most 6 facts", questions=QUESTIONS | {"facts": 6})
    yield Case("yarn, questions, answers weigh 3 and text 1", questions=QUESTIONS | {"answer_weight": 3})
    yield Case(
        "yarn, questions, answers weigh 3 and text 0.3", questions=QUESTIONS | {"answer_weight": 3, "text_weight": 0.3}
    )
    yield Case("yarn, questions, rate 1e-3", changes={"training": {"learning_rate": 1e-3}})


SEVERAL = (
    "control: nothing extended, questions", "linear, questions", "llama3, questions", "yarn, questions",
    "yarn, questions, S2", "yarn, questions, skip-wise", "yarn, questions, restoration",
)  # fmt: skip
"""Cases with more than one seed: those whose differences are small or carry the conclusion."""


def questionnaire() -> Questionnaire:
    """What is asked of every model: look-ups, copying, and the loss on files that neither it nor the base has seen."""
    tokenizer = load_tokenizer(MODEL)
    vocabulary = load_config(resolve_model(MODEL)).vocab_size
    store, _ = load_tokens([f"{STDLIB}:validation"], tokenizer, vocabulary, default_cache())
    haystack = haystack_of(store, tokenizer)
    probes = [needle_probe(tokenizer, haystack, length, DEPTHS, TRIALS, 0, "lookup") for length in LENGTHS]
    probes.append(copy_probe(tokenizer, TRIALS, 0))
    documents = [store[index][:TARGET] for index in spread_documents(store, DOCUMENTS, TARGET)]
    return Questionnaire(probes, documents, BASE_CONTEXT, TARGET)


def numbers(asked: Questionnaire, side: Any, model: Any) -> dict[str, Any]:
    measured = measure(asked, side, model, load_tokenizer(MODEL))
    found = [
        float(np.mean([probe.scores(answers) for answers in prompts]))
        for probe, prompts in zip(asked.probes, measured.answers, strict=True)
    ]
    losses = np.stack([each[1:] for each in measured.losses])
    return {
        "found": dict(zip(map(str, LENGTHS), found, strict=False)),
        "copied": found[-1],
        "perplexity": {str(tokens): float(np.exp(losses[:, : tokens - 1].mean())) for tokens in (BASE_CONTEXT, TARGET)},
    }


def run_all(path: Path, steps: int, seeds: int) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"rows": []}
    if content["rows"] and content["steps"] != steps:
        raise SystemExit(f"{path} was made with {content['steps']} steps; choose another --json")
    done = {(row["case"], row["seed"]) for row in content["rows"]}
    asked = questionnaire()

    def add(name: str, seed: int, row: dict[str, Any]) -> None:
        content["rows"].append({"case": name, "seed": seed, **row})
        write_json(path, {**record(), "steps": steps, "tokens_per_step": TOKENS_PER_STEP, "rows": content["rows"]})
        print(name, seed, row, flush=True)

    if ("base", 0) not in done:
        add("base", 0, numbers(asked, "base", lengthen.load(MODEL)[0]))
    for method in ("linear", "llama3", "yarn"):
        if (f"{method}, untrained", 0) not in done:
            add(f"{method}, untrained", 0, numbers(asked, "run", lengthen.load(MODEL, method=method, target=TARGET)[0]))
    for seed in range(seeds):
        for case in cases():
            if (case.name, seed) in done or (seed and case.name not in SEVERAL):
                continue
            began = time.process_time()
            with tempfile.TemporaryDirectory() as folder:
                loaded = case.train(Path(folder), seed, steps)
                seconds = time.process_time() - began
                side = "base" if case.method == "none" else "run"
                add(case.name, seed, {**numbers(asked, side, lengthen.load(loaded)[0]), "seconds": round(seconds, 1)})


def show_table(path: Path) -> None:
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    print(f"| | {' | '.join(f'{length:,}' for length in LENGTHS)} | copied | first 256 | at 2,048 | seconds |")
    print("|---" * (len(LENGTHS) + 5) + "|")
    for name in dict.fromkeys(row["case"] for row in rows):
        same = [row for row in rows if row["case"] == name]
        found = [[row["found"][str(length)] for row in same] for length in LENGTHS]
        cells = [_share(each) for each in (*found, [row["copied"] for row in same])]
        cells += [_mean([row["perplexity"][key] for row in same]) for key in ("256", "2048")]
        seconds = [row["seconds"] for row in same if "seconds" in row]
        print(f"| {name} | {' | '.join(cells)} | {f'{statistics.median(seconds):.0f}' if seconds else ''} |")


def _share(values: list[float]) -> str:
    """Mean over seeds in percent, with the lowest and highest of several."""
    spread = f" ({min(values):.0%} to {max(values):.0%})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.0%}{spread}"


def _mean(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="results; what is in it is not run again")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seeds", type=int, default=3, help="of the cases that are repeated")
    parser.add_argument("--table", action="store_true", help="print the file's table as Markdown")
    options = parser.parse_args()
    if options.table:
        show_table(options.json)
    else:
        run_all(options.json, options.steps, options.seeds)


if __name__ == "__main__":
    main()
