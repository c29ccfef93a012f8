"""`lengthen plan`."""

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from lengthen.cli._options import Output, Overrides, RecipeName

if TYPE_CHECKING:
    from lengthen.planning import Plan

__all__ = ["plan"]

_GB = 1e9


def plan(
    recipe: RecipeName,
    overrides: Overrides = None,
    device: Annotated[
        str | None, typer.Option(help="What it is to run on, such as v100-32gb or cpu; default this machine's.")
    ] = None,
    devices: Annotated[int, typer.Option(help="How many such devices there are.")] = 1,
    max_context: Annotated[
        bool, typer.Option("--max-context", help="Print only the longest context that fits, in tokens.")
    ] = False,
    efficiency: Annotated[
        float | None, typer.Option(help="Share of the device's peak speed that training reaches.")
    ] = None,
    unfused_loss: Annotated[
        bool, typer.Option("--unfused-loss", help="Plan for all logits at once, as in the papers' code.")
    ] = False,
    *,
    output: Output,
) -> None:
    """Say whether a recipe fits a device, how long it takes, and what to change. Needs no weights."""
    from lengthen.planning import plan as make_plan
    from lengthen.planning import this_device
    from lengthen.recipe import load_recipe

    given = list(overrides or ())
    keys = {override.split("=")[0] for override in given}
    if "model" in keys and "base_config" not in keys:  # the recipe's is that of another base
        given.append("base_config=null")
    chosen = load_recipe(recipe, given)
    result = make_plan(
        chosen,
        device if device is not None else this_device(),
        devices,
        efficiency=efficiency,
        unfused_loss=unfused_loss,
    )
    output.write(result.to_json())
    if not output.quiet:
        print(("any" if result.max_context is None else result.max_context) if max_context else _report(result))
    if result.device.kind == "cpu" and not chosen.memory.trim_malloc:
        print(
            "warning: on a CPU, freed tensors below 32 MiB stay with the process beside these; "
            "memory.trim_malloc=true gives them back, for slower steps",
            file=sys.stderr,
        )


def _report(plan: "Plan") -> str:
    count = f"{plan.devices} x " if plan.devices > 1 else ""
    each = " on each" if plan.devices > 1 else ""
    answer = "fits" if plan.fits else "does not fit"
    any_fits = plan.max_context is None
    longest = "any, for memory grows with the sequences only" if any_fits else f"{plan.max_context:,} tokens"
    lines = [
        f"{answer}: {plan.peak_bytes / _GB:.1f} GB{each} of {count}{plan.device.name} "
        f"({plan.device.memory / _GB:.1f} GB), context {plan.context:,}, {plan.dtype}",
        f"longest context that fits: {longest}",
        "",
    ]
    lines += [
        f"  {kind.replace('_', ' '):<24}{size / _GB:>8.2f} GB"
        for kind, size in plan.memory.breakdown.items()
        if size >= _GB / 200
    ]
    if plan.memory.host:
        lines.append(f"  {'in CPU memory':<24}{plan.memory.host / _GB:>8.2f} GB beside it")
    lines += ["", f"trained: {plan.trained:,} parameters beside a base of {plan.parameters:,}", *_step_lines(plan)]
    if not plan.fits:
        lines += ["", "it would fit with" if plan.advice else "nothing that plan knows makes it fit"]
        for advice in plan.advice:
            lines.append(f"  {' '.join(advice.overrides)}")
            lines.append(f"      {advice.peak_bytes / _GB:.1f} GB; {advice.why}")
    return "\n".join(lines)


def _step_lines(plan: "Plan") -> list[str]:
    flops = plan.flops
    saved = f", full attention {flops.full_attention:.2e}" if flops.full_attention > flops.attention else ""
    lines = [f"step: {flops.total:.2e} FLOPs (weights {flops.linear:.2e}, attention {flops.attention:.2e}{saved})"]
    if plan.seconds_per_step is not None:
        run = f", {plan.seconds / 3600:.1f} h for {plan.steps:,} steps" if plan.seconds and plan.steps else ""
        share = f"{plan.efficiency:.0%} of the peak speed, {'as measured' if plan.is_measured else 'not measured'}"
        lines.append(f"time: {plan.seconds_per_step:.1f} s a step{run}, at {share}")
    if plan.traffic.total:
        kinds = asdict(plan.traffic).items()
        parts = ", ".join(f"{name} {size / _GB:.3g}" for name, size in kinds if size)
        lines.append(
            f"sent: {plan.traffic.total / _GB:.3g} GB a step to the devices that share a sequence ({parts}), not in "
            "that time"
        )
    return lines
