"""What was run, what it cost, and how to do it again."""

import shlex
import statistics

from lengthen.evaluation.plot import training_figure
from lengthen.report.html import Html, element, joined, table
from lengthen.report.numbers import as_bytes, as_count, as_duration, as_share
from lengthen.report.parts import METHODS, figure_with_caption, from_to, missing, trained_parameters, training_seconds
from lengthen.report.results import Run

__all__ = ["commands", "setup", "training"]


def setup(run: Run) -> Html:
    """What was run, and what of the model was trained."""
    recipe = run.recipe
    attention = "full attention"
    if recipe.attention.kind == "s2":
        sinks = f", {as_count(recipe.attention.sinks, 'sink token')}" if recipe.attention.sinks else ""
        attention = f"S2, pattern {recipe.attention.pattern}, groups of {recipe.group_size:,} tokens{sinks}"
    training = recipe.training
    length = as_count(training.steps, "step") if training.steps else f"{training.epochs:g} epochs"
    step = as_count(training.batch_size * training.accumulation, "sequence")
    rows = [
        ("base", run.base["id"]),
        ("context", f"{from_to(run)} tokens"),
        ("positions", METHODS[recipe.context.method]),
        ("attention in training", attention),
        ("trained", _adapter(run)),
        ("base's weights", "4-bit (NF4)" if recipe.quantize else ""),
        ("data", _data(run)),
        ("sequences", _sequences(run)),
        ("length", f"{length} of {step} per process"),
        ("learning rate", f"{training.learning_rate:g}, {training.schedule}, {training.warmup_steps} warm-up steps"),
        ("device", _device(run)),
    ]
    return element("div", _pairs(rows), element("div", *_trainable(run)), class_="figures")


def _data(run: Run) -> str:
    """The paths; of a mixture each source's kind, share and what it is."""
    mixed = run.about.get("data", {}).get("sources")
    if not mixed:
        return ", ".join(run.recipe.data.paths)
    return "; ".join(f"{each['share']:.0%} {each['kind']}: {each['about']}" for each in mixed)


def _trainable(run: Run) -> list[Html]:
    """Parameters by kind; a tensor that two layers share counts once."""
    parameters = run.about.get("trainable")
    if not parameters:
        return [missing("Trainable parameters are not recorded: the run was made before run.json was written.")]
    total, trained = parameters["total"], trained_parameters(parameters)
    kinds = {"adapter": "adapter", "embeddings": "embeddings", "norms": "norms", "other": "the model's own weights"}
    counts = {name: parameters[kind] for kind, name in kinds.items() if parameters[kind]}
    if len(counts) > 1:
        counts["all that is trained"] = trained
    counts["model with adapter"] = total
    rows = [[name, f"{count:,}", as_share(count, total)] for name, count in counts.items()]
    return [element("h3", "Trainable parameters"), table("Trainable parameters", ["kind", "parameters", "share"], rows)]


def _pairs(rows: list[tuple[str, str]]) -> Html:
    """Names and values; those without a value are left out."""
    pairs = (joined(element("dt", name), element("dd", value)) for name, value in rows if value)
    return element("dl", *pairs, class_="pairs")


def training(run: Run) -> Html:
    """Loss, learning rate, speed and memory."""
    if not run.metrics:
        return missing("No step is logged in metrics.jsonl yet.")
    losses = [record["loss"] for record in run.metrics]
    label = (
        f"Loss by optimiser step, from {losses[0]:.2f} at the first to {losses[-1]:.2f} at the last of "
        f"{run.metrics[-1]['step']:,} steps; below it the learning rate."
    )
    caption = "Loss and learning rate by optimiser step"
    figure = figure_with_caption(training_figure(run.metrics), "training", caption, label, "metrics.jsonl")
    rows = [
        ("time in steps", as_duration(training_seconds(run.metrics))),
        ("seconds per step", f"{statistics.median(r['seconds'] for r in run.metrics):.2f} (median)"),
        ("tokens per second", f"{statistics.median(r['tokens_per_second'] for r in run.metrics):,.0f} (median)"),
        ("peak memory", as_bytes(max(record["peak_memory_bytes"] for record in run.metrics))),
        ("last loss", f"{losses[-1]:.3f} nats per token"),
    ]
    return element("div", figure, element("div", element("h3", "Speed and memory"), _pairs(rows)), class_="figures")


def commands(run: Run) -> Html:
    """What was typed, with which versions, and the recipe."""
    started = [(each["started"], each["command"]) for each in run.about.get("commands", [])]
    measured = [(each.file, each.command) for each in run.evaluations if each.command]
    again = f"lengthen train {shlex.quote(str(run.folder / 'recipe.yaml'))} out=NEW_FOLDER"
    listed = [*started, *dict.fromkeys(measured), ("to run it again", again)]
    lines = [joined(element("dt", what), element("dd", element("code", command))) for what, command in listed]
    parts = [element("dl", *lines, class_="commands")]
    if run.about.get("commands"):
        versions = run.about["commands"][-1]["versions"]
        parts.append(element("p", ", ".join(f"{name} {version}" for name, version in versions.items()), class_="note"))
    recipe = element("pre", run.recipe.to_yaml(), tabindex=0)
    return joined(*parts, element("details", element("summary", "The recipe, defaults included"), recipe))


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


def _sequences(run: Run) -> str:
    length = f"{run.recipe.sequence_length:,} tokens each, {run.recipe.data.packing}"
    data = run.about.get("data")
    return f"{data['sequences']:,} with {data['tokens']:,} tokens in all; at most {length}" if data else length


def _device(run: Run) -> str:
    processes = run.about.get("processes", 1)
    return run.about.get("device", "") + (f", {processes} processes" if processes > 1 else "")
