"""Perplexity of a causal language model on long documents, by three protocols.

``strided`` is ours: each token is scored once and never without a context. ``longlora`` and ``longqlora`` repeat
what those papers' scripts compute, so that their tables can be compared with.

Shapes: B windows in a batch, T tokens, S scored tokens, H hidden size, V vocabulary, R rows of one chunk.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from lengthen.errors import DataError, LengthenError, ModelError
from lengthen.progress import progress_bar

__all__ = ["PROTOCOLS", "PerplexityResult", "perplexity", "token_losses"]

PROTOCOLS = ("strided", "longlora", "longqlora")

_LONGLORA_STEP = 256
# The logits of one chunk hold at most this many tokens, and at most this many numbers (256 MiB in float32).
_CHUNK_ROWS = 1024
_CHUNK_NUMBERS = 2**26
_CHECKED_TOKENS = 16


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
        """Return plain data for a JSON file; a perplexity too large for a float becomes None, as JSON has no infinity."""
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
        stride: tokens between two windows, 1 to `context`; default ``context // 2``. ``strided`` only.
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
    if bucket is None:
        longest = context if protocol != "strided" else max(len(documents[w.document]) for w in windows)
        bucket = 2 ** math.ceil(math.log2(max(longest / 8, 1)))

    began = time.perf_counter()
    by_document, by_bucket, limit = _Sums(), _Sums(), 0
    with (
        _evaluating(model),
        progress_bar(f"perplexity at {context}", sum(w.end - w.score for w in windows), "tokens", quiet) as advance,
    ):
        first = windows[0]
        _check_head(model, _stack(documents, [first])[:, :_CHECKED_TOKENS])
        for batch in _batches(windows, batch_size):
            score = batch[0].score - batch[0].begin
            losses_BS = token_losses(model, _stack(documents, batch), score).double().cpu().numpy()
            for window, losses_S in zip(batch, losses_BS, strict=True):
                by_document.add(window.document, losses_S)
                offset = window.begin if protocol == "strided" else 0
                positions_S = np.arange(window.score, window.end) - window.begin + offset
                limit = max(limit, int(positions_S[-1]) + 1)
                edges = np.flatnonzero(np.diff(positions_S // bucket)) + 1
                for part in np.split(np.arange(len(positions_S)), edges):
                    by_bucket.add(int(positions_S[part[0]]) // bucket, losses_S[part])
            advance(losses_BS.size)

    count, loss = by_document.total()
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
            {"from": i * bucket, "to": min((i + 1) * bucket, limit), "perplexity": _exp(mean), "tokens": n}
            for i, n, mean in by_bucket.means()
        ],
        per_document=[
            {"document": i, "perplexity": _exp(mean), "loss": mean, "tokens": n} for i, n, mean in by_document.means()
        ],
    )


@torch.inference_mode()
def token_losses(model: Any, input_ids: torch.Tensor, score_from: int = 1) -> torch.Tensor:
    """Compute each token's negative log-likelihood without ever holding the logits of a whole window.

    The decoder runs once; the output head and the cross entropy follow on at most 1024 tokens at a time. The head
    works in the model's dtype, all after it in float32.

    Args:
        model: a causal language model of transformers, or a PEFT model around one, in the mode it is to be run in.
        input_ids: (B, T) token ids, full windows without padding.
        score_from: the first scored token's place in the window, at least 1: the first token is predicted by nothing.

    Returns:
        (B, T - score_from) losses in nats, float32, on the device of the logits.

    Raises:
        ModelError: the model has no decoder or no output head.
    """
    assert 1 <= score_from < input_ids.shape[1], (score_from, input_ids.shape)
    input_ids_BT = input_ids.long()
    # The last token is a target only. Not reading it also keeps a model that is not causal from seeing it.
    hidden_BTH = _hidden(model, input_ids_BT[:, :-1])
    hidden_RH = hidden_BTH[:, score_from - 1 :].flatten(0, 1)
    targets_R = input_ids_BT[:, score_from:].flatten()
    rows = max(1, min(_CHUNK_ROWS, _CHUNK_NUMBERS // _vocabulary(model)))
    losses = []
    for hidden, targets in zip(hidden_RH.split(rows), targets_R.split(rows), strict=True):
        logits_RV = _logits(model, hidden)
        losses.append(functional.cross_entropy(logits_RV, targets.to(logits_RV.device), reduction="none"))
    return torch.cat(losses).view(input_ids.shape[0], -1)


def _base(model: Any) -> Any:
    """Return the transformers model inside a PEFT model (its adapters stay in their places), or the model."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _hidden(model: Any, input_ids_BT: torch.Tensor) -> torch.Tensor:
    base = _base(model)
    decoder = base.get_decoder() if hasattr(base, "get_decoder") else None
    if decoder is None or decoder is base or base.get_output_embeddings() is None:
        raise ModelError(
            f"{type(base).__name__} has no decoder and output head of its own; perplexity needs a causal language "
            "model, such as AutoModelForCausalLM loads"
        )
    return decoder(input_ids=input_ids_BT.to(base.device), use_cache=False)[0]


def _logits(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Apply the output head and what the architecture does after it, in float32."""
    base = _base(model)
    config = base.config.get_text_config()
    logits = base.get_output_embeddings()(hidden).float()
    for name in ("logit_scale", "lm_head_multiplier"):  # Cohere, Falcon-H1
        if isinstance(scale := getattr(config, name, None), int | float):
            logits = logits * scale
    if scaling := getattr(config, "logits_scaling", None):  # Granite
        logits = logits / scaling
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma 2 and later
        logits = torch.tanh(logits / cap) * cap
    return logits


def _vocabulary(model: Any) -> int:
    return _base(model).get_input_embeddings().weight.shape[0]


@torch.inference_mode()
def _check_head(model: Any, input_ids_BT: torch.Tensor) -> None:
    """Refuse a model whose own logits are not the ones computed here, for its perplexity would be wrong.

    Compares all logits of a few tokens, not of one: a wrong softcap hardly shows in small logits.
    """
    ours = _logits(model, _hidden(model, input_ids_BT))
    own = model(input_ids=input_ids_BT.to(_base(model).device), use_cache=False).logits
    # Scales and softcaps are applied in the model's dtype there and in float32 here.
    tolerance = 1e-3 if own.dtype == torch.float32 else 2e-2
    own = own.float().to(ours.device)
    largest = own.nan_to_num(0, 0, 0).abs().max().item()
    if ours.shape != own.shape or not torch.allclose(ours, own, rtol=0, atol=tolerance * largest, equal_nan=True):
        raise ModelError(
            f"{type(_base(model)).__name__} does not get its logits from its decoder and output head in a way that "
            "lengthen knows (an own scale after the head, or a prompt in front); its perplexity would be wrong"
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
        if stride is not None or score_from:
            raise LengthenError(f"protocol {protocol} fixes its windows; leave stride and score_from out, or use strided")
        return _LONGLORA_STEP if protocol == "longlora" else context
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
            raise DataError(f"document {i} is not a row of token ids (shape {ids.shape}, {ids.dtype}); tokenise it first")
    return documents


def _check_ids(model: Any, documents: Sequence[np.ndarray]) -> None:
    vocabulary = _vocabulary(model)
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
    """Counts and sums of losses by key, in float64."""

    def __init__(self) -> None:
        self._sums: dict[int, tuple[int, float]] = {}

    def add(self, key: int, losses: np.ndarray) -> None:
        count, total = self._sums.get(key, (0, 0.0))
        self._sums[key] = (count + losses.size, total + float(losses.sum()))

    def means(self) -> list[tuple[int, int, float]]:
        """Return (key, count, mean) in the order of the keys."""
        return [(key, count, total / count) for key, (count, total) in sorted(self._sums.items())]

    def total(self) -> tuple[int, float]:
        """Return the count and the mean of all."""
        count = sum(n for n, _ in self._sums.values())
        return count, math.fsum(total for _, total in self._sums.values()) / count


def _exp(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
