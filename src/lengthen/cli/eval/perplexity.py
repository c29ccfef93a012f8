"""``lengthen eval perplexity``."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lengthen.cli._launcher import join_peers
from lengthen.cli._loaded_model import LoadedModel, load_model, write_result
from lengthen.cli._options import EvalOptions, Model, Output, parse_lengths
from lengthen.cli._tables import print_table
from lengthen.cli._terminal import print_warnings

if TYPE_CHECKING:
    from lengthen.data.token_store import TokenStore
    from lengthen.evaluation import PerplexityResult

__all__ = ["perplexity"]


@dataclass(frozen=True)
class WindowOptions:
    """How windows are read and scored."""

    stride: Annotated[int | None, typer.Option(help="Tokens between windows; default half the context.")] = None
    protocol: Annotated[str, typer.Option(help="How windows are laid and scored: strided, longlora or longqlora.")] = (
        "strided"
    )
    score_from: Annotated[int, typer.Option(min=0, help="Score only from this position of a document on.")] = 0
    bucket: Annotated[int | None, typer.Option(min=1, help="Width of the position buckets in tokens.")] = None
    batch_size: Annotated[int, typer.Option(min=1, help="Windows that are run together.")] = 1
    chunk: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a window read at once; default all up to 8192.")
    ] = None
    short_context: Annotated[
        int | None, typer.Option(min=2, help="Also measure what is gained over a context of N tokens.")
    ] = None


def perplexity(
    model: Model,
    data: Annotated[list[Path], typer.Option(help="Token file, document or folder of documents; repeatable.")],
    context: Annotated[str, typer.Option(help="Window lengths in tokens, such as 2048,4096.")],
    max_tokens: Annotated[int | None, typer.Option(min=2, help="Use the first N tokens of each document.")] = None,
    min_tokens: Annotated[int, typer.Option(min=0, help="Skip documents of fewer tokens.")] = 0,
    *,
    windows: WindowOptions,
    options: EvalOptions,
    output: Output,
) -> None:
    """Measure perplexity on long documents, once for each context; under torchrun in shards of each window."""
    contexts = parse_lengths(context, "--context")
    _check_shortest(min(contexts), windows.stride, windows.short_context)

    from lengthen.evaluation import perplexity as measure

    peers = join_peers()
    loaded = load_model(model, options)
    loaded.check_lengths(contexts, options.beyond)
    store, chosen = _choose(loaded, data, min_tokens)
    documents = [store[i][:max_tokens] for i in chosen]
    # The longest context first: what is too long for the data or the memory fails before any time is spent.
    measured = {
        size: measure(loaded.model, documents, size, **asdict(windows), peers=peers)
        for size in sorted(contexts, reverse=True)
    }
    results = [measured[size] for size in contexts]
    _print(results, windows.protocol)
    if not output.quiet:
        _print_details(results, loaded, "document" if windows.protocol == "strided" else "window")
    content: dict[str, Any] = {
        "data": [str(path) for path in data],
        "protocol": windows.protocol,
        "processes": 1 if peers is None else peers.count,
        "documents": [store.names[i] for i in chosen],
        "results": [{k: v for k, v in r.to_json().items() if k != "protocol"} for r in results],
    }
    write_result(loaded.name, loaded.header, f"perplexity-{windows.protocol}", content, output.json_file)


def _check_shortest(context: int, stride: int | None, short_context: int | None) -> None:
    """Refuse settings that the shortest context does not allow before the model is loaded."""
    if stride is not None and not 1 <= stride <= context:
        raise typer.BadParameter(f"{stride} is not from 1 to the shortest context, {context}", param_hint="--stride")
    if short_context is not None and short_context >= context:
        raise typer.BadParameter(
            f"{short_context} is not below the shortest context, {context}", param_hint="--short-context"
        )


def _choose(loaded: LoadedModel, data: list[Path], min_tokens: int) -> "tuple[TokenStore, list[int]]":
    """The documents, and the numbers of those that are long enough."""
    from lengthen.data.tokens import default_cache, load_tokens
    from lengthen.errors import DataError

    vocabulary = loaded.model.get_input_embeddings().weight.shape[0]
    store, warnings = load_tokens(data, loaded.tokenizer, vocabulary, default_cache())
    print_warnings(warnings)
    chosen = [i for i in range(len(store)) if len(store[i]) >= min_tokens]
    if not chosen:
        raise DataError(f"none of the {len(store)} documents has {min_tokens} tokens; lower `min_tokens`")
    return store, chosen


def _print(results: "list[PerplexityResult]", protocol: str) -> None:
    from lengthen.results import as_interval

    print_table(
        f"Perplexity ({protocol})",
        ["context", "stride", "perplexity", "95%", "loss", "tokens", "tokens/s"],
        [
            [
                r.context,
                r.stride,
                r.perplexity,
                as_interval(r.interval, ".4g"),
                r.loss,
                r.tokens,
                f"{r.tokens_per_second:.0f}",
            ]
            for r in results
        ],
    )
    gains = [(r.context, r.gain) for r in results if r.gain is not None]
    if gains:
        print_table(
            "Gain over a short context, in nats per token",
            ["context", "short", "loss short", "gain", "95%"],
            [[size, g["short_context"], g["loss_short"], g["gain"], as_interval(g, ".4g")] for size, g in gains],
        )


def _print_details(results: "list[PerplexityResult]", loaded: LoadedModel, place: str) -> None:
    begin = results[0].bos_token_id
    if begin is not None:
        typer.echo(f"every window begins with {loaded.tokenizer.decode([begin])!r}, as the documents do")
    for r in results:
        rows = [[b["from"], b["to"], b["perplexity"], b["tokens"]] for b in r.by_position]
        columns = ["from", "to", "perplexity", "tokens"]
        if r.gain is not None:
            columns.append("gain")
            rows = [[*row, b["gain"]] for row, b in zip(rows, r.gain["by_position"], strict=True)]
        print_table(f"Context {r.context}, by position in the {place}", columns, rows)
