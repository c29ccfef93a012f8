"""`lengthen export`."""

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["export"]


def export(
    run: Annotated[str, typer.Argument(help="a run folder, or a base with --adapter")],
    out: Annotated[Path, typer.Argument(help="a new folder")],
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32")] = "bfloat16",
    adapter: Annotated[str | None, typer.Option(help="a PEFT folder to merge into the base")] = None,
    merge_into: Annotated[
        str,
        typer.Option(help="for 4-bit runs: the original base, or dequantized, which is exactly what was trained"),
    ] = "original",
    for_: Annotated[
        str | None,
        typer.Option("--for", help="vllm: a base with embeddings and norms merged, a LoRA adapter beside it"),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="for 4-bit runs: measure the merge on these documents; default the run's own"),
    ] = None,
    base_context: Annotated[
        int | None, typer.Option(min=2, help="the base's context in tokens, where its files leave that open")
    ] = None,
    adapter_scale: Annotated[
        float,
        typer.Option(min=0, max=1, help="share of the adapter that is applied: 1 all of it, 0 the base's weights"),
    ] = 1.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="also write the result there")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="print nothing")] = False,
) -> None:
    """Merge a run into one ordinary Hugging Face folder, or write what vLLM serves and print the line that does.

    For a run over a 4-bit base, the perplexity of what was trained and of the merge are measured and shown.
    """
    if for_ not in (None, "vllm"):
        raise typer.BadParameter(f"unknown target {for_!r}; choose vllm, or leave it out", param_hint="--for")
    if for_ is not None and data:
        raise typer.BadParameter("documents are measured for merges only; leave it out", param_hint="--data")
    from lengthen.adapters.export import export as run_export
    from lengthen.adapters.load import base_of
    from lengthen.adapters.vllm import export_for_vllm
    from lengthen.errors import DataError
    from lengthen.evaluation.merge_quality import documents_to_score, perplexities
    from lengthen.files import write_json
    from lengthen.models import load_config, towers_of

    content: dict[str, Any] = {
        "model": run,
        "out": str(out),
        "dtype": dtype,
        "merge_into": merge_into,
        "adapter_scale": adapter_scale,
    }
    lines = [str(out)]
    if for_ == "vllm":
        written = export_for_vllm(run, out, dtype, adapter, merge_into, base_context, adapter_scale)
        content |= {"base": str(written.base), "adapter": str(written.adapter), "command": written.command}
        lines.append(written.command)
    else:
        content["perplexity"] = documents = None
        try:
            documents = documents_to_score(run, adapter, data, quiet)
        except DataError as error:
            if data:
                raise
            # The run's own data may be gone; the merge does not need them.
            lines.insert(0, f"perplexity as trained and merged: not measured, {error}; name documents with --data")
        run_export(run, out, dtype, adapter, merge_into, base_context, adapter_scale)
        if documents is not None:
            measured = content["perplexity"] = perplexities(run, out, adapter, documents, quiet, adapter_scale)
            lines.insert(
                0,
                f"perplexity as trained (4-bit base) {measured['trained']:.2f}, merged into the {merge_into} base "
                f"{measured['merged']:.2f}, on {measured['tokens']:,} tokens",
            )
    content["towers"] = towers = towers_of(load_config(base_of(run), base_context))
    if towers:
        lines.insert(0, f"the text decoder has what was trained; {' and '.join(towers)} kept as in the base")
    if json_file is not None:
        write_json(json_file, content)
    if not quiet:
        print("\n".join(lines))
