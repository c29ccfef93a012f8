"""The run itself: its settings, its cost, and the commands that repeat it."""

import itertools
import shlex
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from lengthen.evaluation.plot import training_figure
from lengthen.report.figures import Picture, Table, picture
from lengthen.report.numbers import as_bytes, as_count, as_duration, as_share
from lengthen.report.results import Run

__all__ = ["METHOD_NAMES", "commands", "cost", "introduction", "setup", "trainable", "training"]

Pairs = list[tuple[str, str]]

METHOD_NAMES = {
    "linear": "linear position interpolation",
    "ntk": "a fixed raised RoPE base (NTK)",
    "yarn": "YaRN",
    "llama3": "Llama 3's scaling of positions",
    "theta": "another RoPE base",
    "longrope": "LongRoPE",
    "none": "unchanged positions",
}
"""Position scaling by the methods of `lengthen.context`, in words."""


def introduction(run: Run) -> str:
    """A sentence: the base, from and to which context, and how."""
    target, context = run.recipe.context.target, run.base["context"]
    how_far = f"from {context:,} to {target:,} tokens ({target / context:.3g} times)" if context else f"to {target:,}"
    return f"This run extends {run.base['id']} {how_far} with {METHOD_NAMES[run.recipe.context.method]}."


def cost(run: Run) -> list[tuple[str, str, str]]:
    """Time, trained parameters and memory as one fact: name, value, note; none before the first logged step."""
    if not run.metrics:
        return []
    notes = [f"{as_bytes(_peak_memory(run.metrics))} of memory"]
    parameters = run.metadata.get("trainable")
    if parameters:
        trained = _trained_parameters(parameters)
        notes.insert(0, f"{trained:,} parameters, {as_share(trained, parameters['total'])} of the model")
    return [("training", as_duration(_training_seconds(run.metrics)), "; ".join(notes))]


def setup(run: Run) -> Pairs:
    """Names and values of what was run; without those that the run did not record."""
    recipe, training = run.recipe, run.recipe.training
    attention = "full attention"
    if recipe.attention.kind == "s2":
        sinks = f", {as_count(recipe.attention.sinks, 'sink token')}" if recipe.attention.sinks else ""
        attention = f"S2, pattern {recipe.attention.pattern}, groups of {recipe.group_size:,} tokens{sinks}"
    length = as_count(training.steps, "step") if training.steps else f"{training.epochs:g} epochs"
    step = as_count(training.batch_size * training.accumulation, "sequence")
    before = f"{run.base['context']:,} \u2192 " if run.base["context"] else ""
    processes = run.metadata.get("processes", 1)
    pairs = [
        ("base", run.base["id"]),
        ("context", f"{before}{recipe.context.target:,} tokens"),
        ("positions", METHOD_NAMES[recipe.context.method]),
        ("attention in training", attention),
        ("trained", _adapter(run)),
        ("base's weights", "4-bit (NF4)" if recipe.quantize else ""),
        ("data", _data(run)),
        ("sequences", _sequences(run)),
        ("length", f"{length} of {step} per process"),
        ("learning rate", f"{training.learning_rate:g}, {training.schedule}, {training.warmup_steps} warm-up steps"),
        ("device", run.metadata.get("device", "") + (f", {processes} processes" if processes > 1 else "")),
    ]
    return [(name, value) for name, value in pairs if value]


def _adapter(run: Run) -> str:
    adapter = run.recipe.adapter
    if adapter.kind == "full":
        return "all weights"
    if adapter.kind != "lora":
        return adapter.kind
    targets = {"attention": "attention projections", "all": "all linear layers"}
    where = targets.get(str(adapter.targets), ", ".join(adapter.targets))
    more = [name for name, is_on in (("embeddings", adapter.embeddings), ("norms", adapter.norms)) if is_on]
    name = {"lora": "LoRA", "rslora": "rsLoRA", "dora": "DoRA", "pissa": "PiSSA"}[adapter.variant]
    return " + ".join([f"{name} r={adapter.rank} on {where}", *more])


def _data(run: Run) -> str:
    """The paths; of a mixture each source's kind, share and what it is."""
    sources = run.metadata.get("data", {}).get("sources")
    if not sources:
        return ", ".join(run.recipe.data.paths)
    return "; ".join(f"{source['share']:.0%} {source['kind']}: {source['about']}" for source in sources)


def _sequences(run: Run) -> str:
    length = f"{run.recipe.sequence_length:,} tokens each, {run.recipe.data.packing}"
    data = run.metadata.get("data")
    return f"{data['sequences']:,} with {data['tokens']:,} tokens in all; at most {length}" if data else length


def trainable(run: Run) -> Table | None:
    """Parameters by kind; a tensor that two layers share counts once. None where the run did not record them."""
    parameters = run.metadata.get("trainable")
    if not parameters:
        return None
    total, trained = parameters["total"], _trained_parameters(parameters)
    kinds = {"adapter": "adapter", "embeddings": "embeddings", "norms": "norms", "other": "the model's own weights"}
    counts = {name: parameters[kind] for kind, name in kinds.items() if parameters[kind]}
    if len(counts) > 1:
        counts["all that is trained"] = trained
    counts["model with adapter"] = total
    rows = [[name, f"{count:,}", as_share(count, total)] for name, count in counts.items()]
    return Table("Trainable parameters", ["kind", "parameters", "share"], rows)


def _trained_parameters(parameters: Mapping[str, int]) -> int:
    """The sum of the kinds in run.json's "trainable"."""
    return sum(count for kind, count in parameters.items() if kind != "total")


def training(run: Run) -> tuple[Picture, Pairs] | None:
    """Loss and learning rate, and time, speed and memory; None before the first logged step."""
    if not run.metrics:
        return None
    first, last = run.metrics[0], run.metrics[-1]
    label = (
        f"Loss by optimizer step, from {first['loss']:.2f} at the first to {last['loss']:.2f} at the last of "
        f"{last['step']:,} steps; below it the learning rate."
    )
    caption = "Loss and learning rate by optimizer step"
    speed = [
        ("time in steps", as_duration(_training_seconds(run.metrics))),
        ("seconds per step", f"{statistics.median(record['seconds'] for record in run.metrics):.2f} (median)"),
        ("tokens per second", f"{statistics.median(r['tokens_per_second'] for r in run.metrics):,.0f} (median)"),
        ("peak memory", as_bytes(_peak_memory(run.metrics))),
        ("last loss", f"{last['loss']:.3f} nats per token"),
    ]
    return picture(training_figure(run.metrics), "training", caption, label, "metrics.jsonl"), speed


def _training_seconds(metrics: Sequence[Mapping[str, Any]]) -> float:
    """Time in optimizer steps; a line's seconds are the mean over the steps since the line before."""
    steps = [0, *(record["step"] for record in metrics)]
    passed = [now - before for before, now in itertools.pairwise(steps)]
    return sum(record["seconds"] * count for record, count in zip(metrics, passed, strict=True))


def _peak_memory(metrics: Sequence[Mapping[str, Any]]) -> int:
    return max(record["peak_memory_bytes"] for record in metrics)


def commands(run: Run) -> Pairs:
    """Each command that was typed, under the time or the results file that tells it apart, and how to run it again."""
    started = [(command["started"], command["command"]) for command in run.metadata.get("commands", [])]
    measured = [(evaluation.file, evaluation.command) for evaluation in run.evaluations if evaluation.command]
    again = f"lengthen train {shlex.quote(str(run.folder / 'recipe.yaml'))} out=NEW_FOLDER"
    return [*started, *dict.fromkeys(measured), ("to run it again", again)]
