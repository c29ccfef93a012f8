"""`lengthen doctor`."""

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["doctor"]


def doctor(
    model: Annotated[str, typer.Argument(help="Hub id, model folder, .gguf file, run folder or alias.")],
    adapter: Annotated[Path | None, typer.Option(help="PEFT folder to look at too.")] = None,
    data: Annotated[
        list[str] | None, typer.Option(metavar="SOURCE", help="Data to look at too; may be given several times.")
    ] = None,
    base_context: Annotated[
        int | None, typer.Option(min=2, help="The base's context in tokens, where its files leave that open.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write it to this file.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing.")] = False,
) -> None:
    """Say what a base, an adapter and data are, as the other commands read them. Needs no weights in memory."""
    from lengthen.doctor import examine_data, examine_model
    from lengthen.files import write_json
    from lengthen.models import load_tokenizer
    from lengthen.provenance import versions

    findings = examine_model(model, adapter, base_context)
    if data:
        findings += examine_data(data, load_tokenizer(model))
    content: dict[str, Any] = {
        "model": model,
        "adapter": None if adapter is None else str(adapter),
        "findings": [finding.to_json() for finding in findings],
        "versions": versions(),
    }
    if json_file is not None:
        write_json(json_file, content)
    if not quiet:
        width = max(len(finding.subject) for finding in findings)
        last = None
        for finding in findings:
            subject = "" if finding.subject == last else finding.subject
            print(f"{'!' if finding.is_problem else ' '} {subject:{width}}  {finding.text}")
            last = finding.subject
        print("  " + ", ".join(f"{name} {version}" for name, version in versions().items()))
