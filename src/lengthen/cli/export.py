"""`lengthen export`."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lengthen.cli._options import AdapterScale, BaseContext, Output

if TYPE_CHECKING:
    import numpy as np

__all__ = ["export"]


@dataclass(frozen=True)
class MergeOptions:
    """What is merged into what."""

    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16"
    adapter: Annotated[str | None, typer.Option(help="A PEFT folder to merge into the base.")] = None
    merge_into: Annotated[
        str,
        typer.Option(help="For 4-bit runs: the original base, or dequantized, which is exactly what was trained."),
    ] = "original"
    base_context: BaseContext = None
    adapter_scale: AdapterScale = 1.0


def export(
    run: Annotated[str, typer.Argument(help="A run folder, or a base with --adapter.")],
    out: Annotated[Path, typer.Argument(help="A new folder.")],
    for_: Annotated[
        str | None,
        typer.Option("--for", help="vllm (LoRA beside its base), ollama or llama.cpp (merged): print what is next."),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="Upload the merge to the Hugging Face Hub, with a model card."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="For 4-bit runs: measure the merge on these documents; default the run's own."),
    ] = None,
    *,
    options: MergeOptions,
    output: Output,
) -> None:
    """Merge a run into one ordinary Hugging Face folder; or write what other programs run, and print the lines that do.

    For a run over a 4-bit base, the perplexity of what was trained and of the merge are measured and shown.
    """
    _check(for_, push, data, options.adapter_scale)
    from lengthen.adapters.folder import adapter_config
    from lengthen.adapters.llama_cpp import check_positions, gguf_steps
    from lengthen.adapters.push import create_repository, upload
    from lengthen.adapters.vllm import export_for_vllm
    from lengthen.models.load import load_config
    from lengthen.models.resolve import resolve_model
    from lengthen.report import check_is_run, write_model_card
    from lengthen.run_folder import RunFolder

    # Fail before the merge, which takes long, and not at its end.
    if push:
        check_is_run(Path(run))
        create_repository(push)
    config = adapter_config(Path(options.adapter) if options.adapter else RunFolder(Path(run)).adapter)
    config = config or load_config(resolve_model(run), options.base_context)
    if for_ in ("ollama", "llama.cpp"):
        check_positions(config)

    content: dict[str, Any]
    if for_ == "vllm":
        written = export_for_vllm(run, out, **asdict(options))
        content = {"base": str(written.base), "adapter": str(written.adapter), "command": written.command}
        lines = [str(out), written.command]
    else:
        content, lines = _merge(run, out, options, data)
        if push:
            write_model_card(Path(run), out, push)
            content["pushed"] = upload(out, push, "Merged by lengthen export")
            lines.append(content["pushed"])
        if for_ is not None:
            steps = gguf_steps(out, for_, options.dtype, config)
            content |= {"commands": steps.commands, "modelfile": steps.modelfile}
            if steps.modelfile is not None:
                lines += [f"# {out / 'Modelfile'}:", *(f"#   {line}" for line in steps.modelfile.splitlines())]
            lines += [f"# with llama.cpp's converter, which keeps {steps.positions}", *steps.commands]
    towers, notes = _towers(run, options.base_context)
    given = {"dtype": options.dtype, "merge_into": options.merge_into, "adapter_scale": options.adapter_scale}
    output.write({"model": run, "out": str(out), **given, **content, "towers": towers})
    if not output.quiet:
        print("\n".join([*notes, *lines]))


def _check(for_: str | None, push: str | None, data: list[str] | None, adapter_scale: float) -> None:
    targets = ("vllm", "ollama", "llama.cpp")
    if for_ not in (None, *targets):
        raise typer.BadParameter(f"unknown target {for_!r}; choose {', '.join(targets)}", param_hint="--for")
    if for_ == "vllm" and data:
        raise typer.BadParameter("documents are measured for merges only; leave it out", param_hint="--data")
    if for_ == "vllm" and push:
        raise typer.BadParameter("only a merge is pushed; leave --for vllm out", param_hint="--push")
    if push and adapter_scale != 1:
        raise typer.BadParameter("the card's verdict is that of the whole adapter; leave it at 1", param_hint="--push")


def _merge(run: str, out: Path, options: MergeOptions, data: list[str] | None) -> tuple[dict[str, Any], list[str]]:
    """Write the merge, and measure it where its base was in 4 bits; the result as JSON and as lines."""
    from lengthen.adapters.export import export as run_export
    from lengthen.evaluation.merge_quality import perplexities

    documents, notes = _documents_to_score(run, options.adapter, data)
    run_export(run, out, **asdict(options))
    measured = None
    if documents is not None:
        measured = perplexities(run, out, options.adapter, documents, options.adapter_scale)
        notes = [
            f"perplexity as trained (4-bit base) {measured['trained']:.2f}, merged into the {options.merge_into} base "
            f"{measured['merged']:.2f}, on {measured['tokens']:,} tokens"
        ]
    return {"perplexity": measured}, [*notes, str(out)]


def _towers(run: str, base_context: int | None) -> tuple[list[str], list[str]]:
    """The towers of a multimodal base that were exported, and a line on those that it has."""
    from lengthen.adapters.base import base_of
    from lengthen.models.load import keeps_towers, load_config, towers_of

    config = load_config(base_of(run), base_context)
    towers = towers_of(config)
    if not towers:
        return [], []
    is_kept = keeps_towers(config)
    fate = "kept as in the base" if is_kept else "left out"
    note = f"the text decoder has what was trained; {' and '.join(towers)} {fate}"
    return towers if is_kept else [], [note]


def _documents_to_score(
    run: str, adapter: str | None, data: list[str] | None
) -> "tuple[list[np.ndarray] | None, list[str]]":
    """Documents on which a merge over a 4-bit base is measured, None for others; a line on why there are none."""
    from lengthen.errors import DataError
    from lengthen.evaluation.merge_quality import documents_to_score

    try:
        return documents_to_score(run, adapter, data), []
    except DataError as error:
        if data:
            raise
        # The run's own data may be gone; the merge does not need them.
        return None, [f"perplexity as trained and merged: not measured, {error}; name documents with --data"]
