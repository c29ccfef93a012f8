"""Which parts of LongLoRA matter, and which position scaling trains best: the shipped base from 256 to 2,048 tokens.

    python benchmarks/ablation.py --json docs/results/ablation.json
    python benchmarks/ablation.py --json docs/results/ablation.json --table

About two hours on one CPU core. Every case is a run of `lengthen.train`, written to the file when it is done; cases
that are in the file are not run again, so that what was stopped goes on. --table prints the file's tables as Markdown.

Each cell tries three learning rates with one seed, takes the one with the lowest loss on documents that are used for
nothing else, and repeats it with two more seeds. What is reported is perplexity on other held-out documents, the same
tokens for all. "At equal seconds": full attention again with as many steps as fit into the seconds of S2's run. Three
adapters also with YaRN's positions, which start near their goal. Seconds are the process's own on the CPU, so that
other programs count little; run it with OMP_NUM_THREADS=1.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ablation_cases import (
    ADAPTERS,
    AT_YARN,
    ATTENTIONS,
    BASE_CONTEXT,
    BESIDE,
    BOTH,
    LAST_10,
    LAST_20,
    METHODS,
    POSE,
    SEEDS,
    SINK,
    STEPS,
    TARGET,
    Case,
    Study,
)


def run_all(study: Study) -> None:
    study.time_startup()
    for method in ("base", *METHODS):
        study.run_untrained(method)
    for adapter in ADAPTERS:
        for attention in ATTENTIONS:
            study.run_cell(adapter, attention)
    s2_rate = study.best_rate(BOTH, "S2")
    for attention in (LAST_10, LAST_20, SINK):
        study.run_cell(BOTH, attention, rates=[s2_rate])
    study.run_cell(BOTH, POSE)
    for adapter in ADAPTERS:
        for seed in SEEDS:
            rate, steps = study.best_rate(adapter, "full"), study.steps_in_equal_seconds(adapter)
            study.run(Case(adapter, "full", "linear", rate, seed, steps))
    for method in METHODS:
        study.run_cell(BOTH, "full", method)
    for adapter in AT_YARN:
        study.run_cell(adapter, "full", "yarn")
        for attention in ("S2", "groups, no shift"):
            study.run_cell(adapter, attention, "yarn", rates=[study.best_rate(adapter, "full", "yarn")])


def show(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds."""
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


def each(key: str) -> Callable[[list[dict[str, Any]]], str]:
    return lambda rows: show([row[key] for row in rows])


def rate_and_seconds(rows: list[dict[str, Any]]) -> str:
    return (
        f"{rows[0]['learning_rate']:g}, {statistics.median(row['step_seconds'] for row in rows):.2f} s" if rows else ""
    )


def print_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print(f"\n{title}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def print_matrix(study: Study, title: str, value: Callable[[list[dict[str, Any]]], str]) -> None:
    rows = [[name, *(value(study.cell(name, attention)) for attention in ATTENTIONS)] for name in ADAPTERS]
    print_table(title, ["", *ATTENTIONS], rows)


def print_tables(study: Study) -> None:
    whole, begin = each("perplexity"), each("perplexity_begin")
    print_matrix(study, f"Perplexity at {TARGET:,} tokens, {study.steps} steps:", whole)
    print_matrix(study, f"Perplexity of the first {BASE_CONTEXT} tokens of each document, the same runs:", begin)
    print_matrix(study, "Chosen learning rate, and seconds a step:", rate_and_seconds)

    print_equal_seconds(study)
    print_at_yarn(study)

    head = ["", "learning rate, step", f"perplexity at {TARGET:,}", f"first {BASE_CONTEXT}"]
    runs = {attention: study.cell(BOTH, attention) for attention in (*ATTENTIONS, *BESIDE)}
    rows = [[name, rate_and_seconds(cell), whole(cell), begin(cell)] for name, cell in runs.items()]
    beside = {
        "YaRN, untrained": "yarn",
        "base": "base",
        f"base, sliding window of {BASE_CONTEXT}": "base, sliding window",
    }
    rows += [[name, "", *untrained(study, key)] for name, key in beside.items()]
    print_table(f"{BOTH}:", head, rows)

    rows = []
    for method in METHODS:
        cell = study.cell(BOTH, "full", method)
        rows.append([method, *untrained(study, method), rate_and_seconds(cell), whole(cell), begin(cell)])
    head = ["", f"untrained at {TARGET:,}", f"first {BASE_CONTEXT}", *head[1:]]
    print_table(f"Position scaling, {BOTH}, full attention:", head, rows)


def print_equal_seconds(study: Study) -> None:
    rows = []
    for adapter in ADAPTERS:
        s2, plain = (study.cell(adapter, attention) for attention in ("S2", "groups, no shift"))
        if s2:
            steps, rate = study.steps_in_equal_seconds(adapter), study.best_rate(adapter, "full")
            full = study.find(adapter=adapter, attention="full", method="linear", learning_rate=rate, steps=steps)
            rows.append([adapter, str(steps), *(each("perplexity")(cell) for cell in (full, s2, plain))])
    title = f"Perplexity at {TARGET:,} tokens in the seconds of S2's {study.steps} steps:"
    print_table(title, ["", "full attention's steps", *ATTENTIONS], rows)


def print_at_yarn(study: Study) -> None:
    cells = [[study.cell(name, attention, "yarn") for attention in ATTENTIONS] for name in AT_YARN]
    for title, key in (
        (f"at {TARGET:,} tokens", "perplexity"),
        (f"of the first {BASE_CONTEXT} tokens", "perplexity_begin"),
    ):
        rows = [[name, *map(each(key), row)] for name, row in zip(AT_YARN, cells, strict=True)]
        print_table(f"With YaRN, perplexity {title}:", ["", *ATTENTIONS], rows)


def untrained(study: Study, method: str) -> list[str]:
    measured = study.untrained.get(method, {})
    return [f"{measured[key]:.2f}" if key in measured else "" for key in ("perplexity", "perplexity_begin")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("ablation.json"))
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps of each run")
    parser.add_argument("--table", action="store_true", help="print the tables of the file and run nothing")
    arguments = parser.parse_args()
    study = Study(arguments.json, arguments.steps)
    if not arguments.table:
        run_all(study)
    print_tables(study)


if __name__ == "__main__":
    main()
