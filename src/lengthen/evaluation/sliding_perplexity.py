"""Perplexity of a causal language model on long documents, by three protocols.

``strided`` is ours: each token is scored once and never without a context. ``longlora`` and ``longqlora`` repeat
what those papers' scripts compute, so that their tables can be compared with.

Shapes: B windows in a batch, T tokens, S scored tokens.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from lengthen.errors import DataError, LengthenError, ModelError
from lengthen.evaluation.losses import token_losses
from lengthen.head import causal_lm, check_head
from lengthen.progress import progress_bar

__all__ = ["PROTOCOLS", "PerplexityResult", "perplexity"]

PROTOCOLS = ("strided", "longlora", "longqlora")

_LONGLORA_STEP = 256


@dataclass(frozen=True)
class PerplexityResult:
    """What `perplexity` measured.

    Attributes:
        context: the longest window, in tokens.
        stride: tokens between the starts of two windows.
        protocol: one of `PROTOCOLS`.
        perplexity: exp(loss).
        loss: mean negative log-likelihood, in nats per token.
        tokens: scored tokens; a token in several windows counts once for each.
        windows: how many windows were read.
        seconds: wall-clock time of the measurement.
        by_position: {"from", "to", "perplexity", "tokens"} for positions from <= p < to: in the document for
            ``strided``, in the window for the others. Buckets without a scored token are left out.
        per_document: {"document" (its index), "perplexity", "loss", "tokens"}; documents without a scored token
            are left out.
    """

    context: int
    stride: int
    protocol: str
    perplexity: float
    loss: float
    tokens: int
    windows: int
    seconds: float
    by_position: list[dict[str, Any]]
    per_document: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """Return plain data for a JSON file, with None for a perplexity too large for a float: JSON has no infinity."""
        content = asdict(self)
        for entry in (content, *content["by_position"], *content["per_document"]):
            if math.isinf(entry["perplexity"]):
                entry["perplexity"] = None
        return content


class _Window(NamedTuple):
    """Tokens begin <= t < end of a document, of which score <= t < end are scored."""

    document: int
    begin: int
    end: int
    score: int


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
    quiet: bool = True,
) -> PerplexityResult:
    """Measure a causal model's perplexity on one or several documents.

    With N the tokens of a document, its windows are:

    - ``strided``: the first `context` tokens, then windows that start `stride` tokens later each and score only
      the tokens that no window has scored yet. Every token but the document's first is scored exactly once, with
      at least ``context - stride`` tokens before it where they exist. The last window starts where its turn comes
      and is shorter, so its tokens see no more context than the others. With ``stride == context`` each later
      window starts one token early, for its first token has to be predicted from something; the model never reads
      more than `context` tokens at once.
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
        quiet: show no progress bar.

    Raises:
        LengthenError: a setting is out of range.
        DataError: no token can be scored, or the ids are not this model's.
        ModelError: the model's logits can't be computed from its decoder and output head, or are not finite.

    Source: arXiv 2309.12307 (LongLoRA), section 4.1, and eval.py of its repository; arXiv 2311.04879 (LongQLoRA);
        the strided layout is that of transformers' guide "Perplexity of fixed-length models", which, other than
        here, leaves each later window's first token out when ``stride == context``.
    """
    stride = _checked_stride(context, stride, protocol, score_from, batch_size, bucket)
    documents = _documents(tokens)
    windows = [window for i, ids in enumerate(documents) for window in _windows(i, len(ids), context, stride, protocol)]
    # Windows keep their places and only lose what is not asked for: a token's loss is the same with any score_from.
    windows = [w._replace(score=max(w.score, score_from)) for w in windows if w.end > score_from]
    if not windows:
        raise DataError(_no_window(documents, context, stride, protocol, score_from))
    _check_ids(model, documents)
    # Positions are those in the document, or for windows that are means of their own those in the window.
    in_document = protocol == "strided"
    longest = max(len(documents[w.document]) for w in windows) if in_document else context
    if bucket is None:
        bucket = 2 ** math.ceil(math.log2(max(longest / 8, 1)))

    began = time.perf_counter()
    by_document, by_bucket = _Sums(len(documents)), _Sums(longest // bucket + 1)
    with (
        _evaluating(model),
        progress_bar(f"perplexity at {context}", sum(w.end - w.score for w in windows), "tokens", quiet) as advance,
    ):
        check_head(model, _stack(documents, windows[:1]))
        for batch in _batches(windows, batch_size):
            losses_BS = token_losses(model, _stack(documents, batch), batch[0].score - batch[0].begin)
            for window, losses_S in zip(batch, losses_BS.double().cpu().numpy(), strict=True):
                origin = 0 if in_document else window.begin
                by_document.add(np.array([window.document]).repeat(len(losses_S)), losses_S)
                by_bucket.add(np.arange(window.score - origin, window.end - origin) // bucket, losses_S)
            advance(losses_BS.numel())

    # Equally long windows: the mean over all their tokens is the mean of their means.
    count, loss = int(by_document.counts.sum()), float(by_document.sums.sum() / by_document.counts.sum())
    if not math.isfinite(loss):
        raise ModelError(
            f"the model's losses at context {context} are not finite (dtype {getattr(model, 'dtype', 'unknown')}); "
            "load it in bfloat16 or float32"
        )
    return PerplexityResult(
        context=context,
        stride=stride,
        protocol=protocol,
        perplexity=_exp(loss),
        loss=loss,
        tokens=count,
        windows=len(windows),
        seconds=time.perf_counter() - began,
        by_position=[
            {"from": i * bucket, "to": min((i + 1) * bucket, longest), "perplexity": _exp(mean), "tokens": n}
            for i, n, mean in by_bucket.means()
        ],
        per_document=[
            {"document": i, "perplexity": _exp(mean), "loss": mean, "tokens": n} for i, n, mean in by_document.means()
        ],
    )


def _checked_stride(
    context: int, stride: int | None, protocol: str, score_from: int, batch_size: int, bucket: int | None
) -> int:
    """Check all settings and return the stride in tokens."""
    if protocol not in PROTOCOLS:
        raise LengthenError(f"protocol {protocol!r} is unknown; choose one of {', '.join(PROTOCOLS)}")
    if context < 2:
        raise LengthenError(f"context is {context} tokens; it has to be at least 2, one to predict the other from")
    if batch_size < 1:
        raise LengthenError(f"batch size is {batch_size}; it has to be at least 1")
    if bucket is not None and bucket < 1:
        raise LengthenError(f"bucket is {bucket} tokens; it has to be at least 1")
    if score_from < 0:
        raise LengthenError(f"score_from is {score_from}; it is a position in the document, 0 or more")
    if protocol != "strided":
        fixed = _LONGLORA_STEP if protocol == "longlora" else context
        if stride not in (None, fixed) or score_from:
            raise LengthenError(
                f"protocol {protocol} fixes its windows (stride {fixed}, all scored) but got stride {stride}, "
                f"score_from {score_from}; leave both out, or use protocol strided"
            )
        return fixed
    if stride is None:
        return context // 2
    if not 1 <= stride <= context:
        raise LengthenError(f"stride is {stride} tokens; with context {context} it has to be from 1 to {context}")
    return stride


def _documents(tokens: Any) -> list[np.ndarray]:
    """Return one array of ids a document, without copying arrays (they may be memory-mapped)."""
    if isinstance(tokens, np.ndarray | torch.Tensor):
        single = tokens.ndim == 1
    else:
        single = len(tokens) > 0 and np.ndim(tokens[0]) == 0
    documents = [
        item.detach().cpu().numpy() if isinstance(item, torch.Tensor) else np.asarray(item)
        for item in ([tokens] if single else [tokens[i] for i in range(len(tokens))])
    ]
    for i, ids in enumerate(documents):
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise DataError(
                f"document {i} is not a row of token ids (shape {ids.shape}, {ids.dtype}); tokenise it first"
            )
    return documents


def _check_ids(model: Any, documents: Sequence[np.ndarray]) -> None:
    vocabulary = causal_lm(model).get_input_embeddings().weight.shape[0]
    for i, ids in enumerate(documents):
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
            raise DataError(
                f"document {i} has token ids from {ids.min()} to {ids.max()}, but the model knows 0 to "
                f"{vocabulary - 1}; tokenise it with this model's tokenizer"
            )


def _windows(document: int, length: int, context: int, stride: int, protocol: str) -> Iterator[_Window]:
    if protocol != "strided":
        for begin in list(range(0, length - context, stride))[:-1]:
            yield _Window(document, begin, begin + context, begin + 1)
        return
    lead = max(context - stride, 1)
    score, end = 1, min(context, length)
    while score < length:
        yield _Window(document, max(score - lead, 0), end, score)
        score, end = end, min(end + stride, length)


def _no_window(documents: Sequence[np.ndarray], context: int, stride: int, protocol: str, score_from: int) -> str:
    longest = max((len(ids) for ids in documents), default=0)
    have = f"{len(documents)} documents, the longest of {longest} tokens"
    if protocol == "strided":
        return f"no token to score from position {max(score_from, 1)} on in {have}; give a longer document"
    need = context + stride + 1
    return (
        f"protocol {protocol} finds no window of {context} tokens in {have}: it needs {need} in one document, for it "
        "drops the last window; give a longer document, a smaller context or protocol strided"
    )


def _batches(windows: Sequence[_Window], batch_size: int) -> Iterator[list[_Window]]:
    """Group windows of equal length and equal scored part, the longest first: what does not fit fails at once."""
    groups: dict[tuple[int, int], list[_Window]] = {}
    for window in windows:
        groups.setdefault((window.end - window.begin, window.score - window.begin), []).append(window)
    for _, group in sorted(groups.items(), reverse=True):
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


def _stack(documents: Sequence[np.ndarray], windows: Sequence[_Window]) -> torch.Tensor:
    rows = [documents[w.document][w.begin : w.end].astype(np.int64) for w in windows]
    return torch.from_numpy(np.stack(rows))


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


class _Sums:
    """Counts and float64 sums of losses for the keys 0 to size - 1."""

    def __init__(self, size: int) -> None:
        self.counts = np.zeros(size, np.int64)
        self.sums = np.zeros(size, np.float64)

    def add(self, keys: np.ndarray, losses: np.ndarray) -> None:
        np.add.at(self.counts, keys, 1)
        np.add.at(self.sums, keys, losses)

    def means(self) -> list[tuple[int, int, float]]:
        """Return (key, count, mean) for the keys that have a count."""
        return [
            (int(i), int(self.counts[i]), float(self.sums[i] / self.counts[i])) for i in np.flatnonzero(self.counts)
        ]


def _exp(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
