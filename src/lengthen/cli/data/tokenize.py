"""`lengthen data tokenize`."""

from pathlib import Path
from typing import Annotated

import typer

from lengthen.cli._options import Output
from lengthen.cli._terminal import print_warnings
from lengthen.cli.data._documents import Dtype, Inputs, refuse_without_rows

__all__ = ["tokenize"]


def _check_out(out: Path) -> Path:
    if out.suffix.lower() != ".bin":
        raise typer.BadParameter(f"{out} must end in .bin, by which token files are known")
    return out


def tokenize(
    inputs: Inputs,
    model: Annotated[str, typer.Option("--model", help="Whose tokenizer: a hub id, folder, GGUF file, run or alias.")],
    out: Annotated[Path, typer.Option(metavar="FILE.bin", help="The token file to write.", callback=_check_out)],
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    dtype: Dtype = None,
    *,
    output: Output,
) -> None:
    """Write documents, one after another, as one token file (flat uint16 or uint32 ids)."""
    from lengthen.data.token_file import write_token_file
    from lengthen.data.tokens import default_cache, load_tokens
    from lengthen.errors import OutputError
    from lengthen.models.load import load_tokenizer
    from lengthen.vocabulary import vocabulary_size

    if out.exists() and not force:
        raise OutputError(f"{out} exists; choose another name, or overwrite it with --force")
    tokenizer = load_tokenizer(model)
    vocabulary = vocabulary_size(tokenizer)
    store, warnings = load_tokens(inputs, tokenizer, vocabulary, default_cache(), dtype)
    refuse_without_rows(model, tokenizer, [store.stream()])
    write_token_file(out, store, vocabulary)
    result = {
        "model": model,
        "out": str(out),
        "documents": len(store),
        "tokens": int(store.lengths.sum()),
        "bytes": out.stat().st_size,
        "warnings": warnings,
    }
    print_warnings(warnings)
    if not output.quiet:
        print(f"{out}: {result['documents']:,} documents, {result['tokens']:,} tokens, {result['bytes']:,} bytes")
    output.write(result)
