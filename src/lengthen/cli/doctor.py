"""`lengthen doctor`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lengthen.cli._options import BaseContext, Model, Output, with_flags

__all__ = ["doctor"]


def doctor(
    model: Model,
    adapter: Annotated[Path | None, typer.Option(help="PEFT folder to look at too.")] = None,
    data: Annotated[list[str] | None, typer.Option(metavar="SOURCE", help="Data to look at too; repeatable.")] = None,
    base_context: BaseContext = None,
    *,
    output: Output,
) -> None:
    """Say what a base, an adapter and data are, as the other commands read them. Needs no weights in memory."""
    from lengthen.adapters.tokenizer import tokenizer_beside
    from lengthen.doctor import examine_data, examine_model
    from lengthen.provenance import versions

    findings = examine_model(model, adapter, base_context)
    if data:
        findings += examine_data(data, tokenizer_beside(model, adapter))
    content: dict[str, Any] = {
        "model": model,
        "adapter": None if adapter is None else str(adapter),
        "findings": [finding.to_json() for finding in findings],
        "versions": versions(),
    }
    output.write(content)
    if not output.quiet:
        width = max(len(finding.subject) for finding in findings)
        last = None
        for finding in findings:
            subject = "" if finding.subject == last else finding.subject
            text = with_flags(finding.text, {"base_context": "--base-context", "template": "--template"})
            print(f"{'!' if finding.is_problem else ' '} {subject:{width}}  {text}")
            last = finding.subject
        print("  " + ", ".join(f"{name} {version}" for name, version in versions().items()))
