"""Perplexity of a causal language model on long documents, by three protocols.

``strided`` is ours: each token is scored once and never without a context. ``longlora`` and ``longqlora`` repeat
what those papers' scripts compute, so that their tables can be compared with.

Shapes: B windows in a batch, T tokens, S scored tokens.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from lengthen.attention.peers import Peers
from lengthen.decoding.prefill import default_chunk
from lengthen.decoding.shards import check_shards
from lengthen.errors import LengthenError, ModelError
from lengthen.evaluation.loss_accumulator import LossAccumulator, gain_over
from lengthen.evaluation.losses import window_losses
from lengthen.evaluation.windows import (
    PROTOCOLS,
    Window,
    as_documents,
    begin_token,
    check_ids,
    pick_stride,
    pick_windows,
    stack,
)
from lengthen.head import check_head
from lengthen.progress import progress_bar

__all__ = ["PROTOCOLS", "PerplexityResult", "perplexity"]


@dataclass(frozen=True)
class PerplexityResult:
    """The result of `perplexity`.

    Attributes:
        context: the longest window, in tokens.
        stride: tokens between the starts of two windows.
        protocol: one of `PROTOCOLS`.
        perplexity: exp(loss).
        loss: mean negative log-likelihood, in nats per token.
        tokens: scored tokens; a token in several windows counts once for each.
        windows: how many windows were read.
        seconds: wall-clock time of the measurement, without that of `gain`.
        tokens_per_second: tokens that the model read in `seconds`, those that only are context too.
        chunk: tokens that were read at once; below `context`, a window was read in chunks, or in shards.
        bos_token_id: the token that every window of a document begins with that begins with it; None where there is no
            such document, and for the published protocols.
        by_position: {"from", "to", "perplexity", "tokens"} for positions from <= p < to: in the document for
            ``strided``, in the window for the others. Buckets without a scored token are left out.
        per_document: {"document" (its index), "perplexity", "loss", "tokens"}; documents without a scored token
            are left out.
        interval: {"low", "high", "over", "units"}: perplexity with 95% confidence, by a bootstrap over documents
            ("over"), of which there are "units"; for a single document over its stretches of `context` tokens
            ("stretches"). None for a single stretch. Few units give a rough interval, and an interval over
            stretches only speaks for its document.
        gain: {"short_context", "loss_short", "gain", "low", "high", "by_position"}: the mean loss of the same tokens
            with a context of `short_context` tokens, what the longer context gains over it in nats per token, that
            gain's interval (as above, or None), and {"from", "to", "gain", "tokens"}. None if not asked for.
    """

    context: int
    stride: int
    protocol: str
    perplexity: float
    loss: float
    tokens: int
    windows: int
    seconds: float
    tokens_per_second: float
    chunk: int
    bos_token_id: int | None
    by_position: list[dict[str, Any]]
    per_document: list[dict[str, Any]]
    interval: dict[str, Any] | None
    gain: dict[str, Any] | None

    def to_json(self) -> dict[str, Any]:
        """Return plain data for a JSON file, with None for a perplexity too large for a float: JSON has no infinity."""
        content = asdict(self)
        for entry in (content, *content["by_position"], *content["per_document"]):
            if math.isinf(entry["perplexity"]):
                entry["perplexity"] = None
        for end in ("low", "high"):
            if content["interval"] and math.isinf(content["interval"][end]):
                content["interval"][end] = None
        return content


def perplexity(
    model: Any,
    tokens: Any,
    context: int,
    stride: int | None = None,
    protocol: str = "strided",
    *,
    score_from: int = 0,
    batch_size: int = 1,
    bucket: int | None = None,
    chunk: int | None = None,
    short_context: int | None = None,
    peers: Peers | None = None,
) -> PerplexityResult:
    """Measure a causal model's perplexity on one or several documents.

    With N the tokens of a document, its windows are:

    - ``strided``: the first `context` tokens, then windows that start `stride` tokens later each and score only
      the tokens that no window has scored yet. Every token but the document's first is scored exactly once, with
      at least ``context - stride`` tokens before it where they exist. The last window starts where its turn comes
      and is shorter, so its tokens see no more context than the others. With ``stride == context`` each later
      window starts one token early, for its first token has to be predicted from something; the model never reads
      more than `context` tokens at once. Where a document begins with the model's begin token (BOS), each later
      window does too, in place of its first token: what a model loses without it would look like what it gains from
      a longer context.
    - ``longlora``: `context` tokens from each start in ``range(0, N - context, 256)``, the last start dropped,
      as the published script does. All of a window is scored: its ``context - 1`` tokens after the first, as
      ``model(input_ids=x, labels=x)`` does. The loss is the mean of the windows' means.
    - ``longqlora``: the same from ``range(0, N - context, context)``, the last start dropped too.

    A window never crosses documents. Documents are pooled: all scored tokens count alike, and so do the windows of
    the published protocols, which are equally long.

    Args:
        model: a causal language model of transformers, or a PEFT model around one.
        tokens: one document (1-D array, tensor or list of ids), or a sequence of such documents.
        context: window length in tokens, at least 2; may exceed what the model was built for.
        stride: tokens between two windows, 1 to `context`; default ``context // 2``. The published protocols have
            their own and refuse another.
        protocol: one of `PROTOCOLS`.
        score_from: leave tokens before this position of their document unscored. ``strided`` only.
        batch_size: windows of equal length that are run together.
        bucket: width of the `by_position` buckets in tokens; default: the power of two that makes at most 8 of them.
        chunk: tokens of a window that are read at once, the ones before them from a key/value cache; default on CPU
            whole windows up to 8,192 tokens and chunks of at most 4,096 beyond, on a GPU what its memory allows.
        short_context: measure the long-range gain too: the same tokens once more, ``strided`` with this `context`
            and its default stride. 2 to ``context - 1``; ``strided`` only.
        peers: processes that read each window together, a shard of its tokens each; all of them call this with the
            same arguments and get the same result. None for this process alone.

    Raises:
        LengthenError: a setting is out of range.
        DataError: no token can be scored, or the ids are not this model's.
        ModelError: the model's logits can't be computed from its decoder and output head, or are not finite; or
            windows are to be read in chunks, and the model can't be.
        ContextError: `chunk` is below `context`, or there are several processes, and the model's RoPE depends on the
            length of the input.

    Source: arXiv 2309.12307 (LongLoRA), section 4.1, and eval.py of its repository; arXiv 2311.04879 (LongQLoRA);
        the strided layout is that of transformers' guide "Perplexity of fixed-length models", which, other than
        here, leaves each later window's first token out when ``stride == context``.
    """
    stride = pick_stride(context, stride, protocol, score_from)
    _check_settings(context, protocol, batch_size, bucket, chunk, short_context, peers)
    documents = as_documents(tokens)
    windows = pick_windows(documents, context, stride, protocol, score_from)
    check_ids(model, documents)
    # The published protocols stay as they were published.
    begin = begin_token(model, documents) if protocol == "strided" else None
    if peers is None:
        at_once = chunk = min(default_chunk(model, context, batch_size) if chunk is None else chunk, context)
    else:
        at_once = -(-context // peers.count)

    def read(read_windows: list[Window], label: int) -> LossAccumulator:
        tally = LossAccumulator(documents, windows, context, protocol, bucket)
        with progress_bar(f"perplexity at {label}", _tokens_read(read_windows), "tokens") as advance:
            for window, losses_S in window_losses(
                model, documents, read_windows, context, batch_size, begin, chunk, advance, peers
            ):
                tally.add(window, losses_S)
        return tally

    with _evaluating(model):
        first = stack(documents, windows[:1], begin)
        check_head(model, first)
        if peers is not None:
            check_shards(model, first, peers)
        began = time.perf_counter()
        full = read(windows, context)
        seconds = time.perf_counter() - began
        if not math.isfinite(full.documents.mean()):
            raise ModelError(
                f"the model's losses at context {context} are not finite (dtype {getattr(model, 'dtype', 'unknown')}); "
                "load it in bfloat16 or float32"
            )
        gain = None
        if short_context is not None:
            short_windows = pick_windows(documents, short_context, short_context // 2, protocol, score_from)
            gain = {"short_context": short_context, **gain_over(read(short_windows, short_context), full)}

    return PerplexityResult(
        context=context,
        stride=stride,
        protocol=protocol,
        **_pooled(full),
        windows=len(windows),
        seconds=seconds,
        tokens_per_second=_tokens_read(windows) / seconds,
        chunk=at_once,
        bos_token_id=begin,
        gain=gain,
    )


def _check_settings(
    context: int,
    protocol: str,
    batch_size: int,
    bucket: int | None,
    chunk: int | None,
    short_context: int | None,
    peers: Peers | None,
) -> None:
    """Refuse settings out of range, other than those of the windows."""
    for name, value in {"batch size": batch_size, "bucket": bucket, "chunk": chunk}.items():
        if value is not None and value < 1:
            raise LengthenError(f"{name} is {value}; it has to be at least 1")
    if chunk is not None and peers is not None:
        raise LengthenError(f"`chunk={chunk}` is for one process; each of {peers.count} reads its shard at once")
    if short_context is None:
        return
    if protocol != "strided":
        raise LengthenError(
            f"the gain over a short context is measured with protocol strided only, not with {protocol}"
        )
    if not 2 <= short_context < context:
        raise LengthenError(
            f"the short context is {short_context} tokens; it has to be at least 2 and below the context, {context}"
        )


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode and give every module its former mode back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _tokens_read(windows: list[Window]) -> int:
    return sum(window.end - window.begin - 1 for window in windows)  # the last of each is only predicted


def _pooled(losses: LossAccumulator) -> dict[str, Any]:
    """What a result says of the losses: of all, by position and by document."""
    by_document, loss, ends = losses.documents, losses.documents.mean(), losses.interval()
    interval = None
    if ends is not None:
        low, high = map(_exp, ends)
        interval = {"low": low, "high": high, "over": losses.over, "units": len(losses.units.means())}
    return {
        "perplexity": _exp(loss),
        "loss": loss,
        "tokens": int(by_document.counts.sum()),
        "by_position": [{**place, "perplexity": _exp(mean), "tokens": n} for place, n, mean in losses.by_position()],
        "per_document": [
            {"document": i, "perplexity": _exp(mean), "loss": mean, "tokens": n} for i, n, mean in by_document.means()
        ],
        "interval": interval,
    }


def _exp(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
