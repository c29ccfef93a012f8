"""Which windows of which documents a perplexity protocol reads, and what it scores in them."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from lengthen.errors import DataError, LengthenError
from lengthen.head import causal_lm

__all__ = [
    "PROTOCOLS",
    "Window",
    "as_documents",
    "batches",
    "begin_token",
    "check_ids",
    "pick_stride",
    "pick_windows",
    "stack",
]

PROTOCOLS = ("strided", "longlora", "longqlora")

_LONGLORA_STEP = 256


class Window(NamedTuple):
    """Tokens begin <= t < end of a document, of which score <= t < end are scored."""

    document: int
    begin: int
    end: int
    score: int


def pick_stride(context: int, stride: int | None, protocol: str, score_from: int = 0) -> int:
    """Check the settings of the windows, and return the stride in tokens.

    Args:
        context: of a window, tokens.
        stride: as asked for, tokens; None for the protocol's own.
        protocol: "strided", "longlora" or "longqlora".
        score_from: position in a document from which on tokens are scored.

    Raises:
        LengthenError: a setting is out of range, or the protocol has its own.
    """
    if protocol not in PROTOCOLS:
        raise LengthenError(f"protocol {protocol!r} is unknown; choose one of {', '.join(PROTOCOLS)}")
    if context < 2:
        raise LengthenError(f"context is {context} tokens; it has to be at least 2, one to predict the other from")
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


def pick_windows(
    documents: Sequence[np.ndarray], context: int, stride: int, protocol: str, score_from: int = 0
) -> list[Window]:
    """The windows of all documents, as `perplexity` defines them.

    Args:
        documents: token ids of each.
        context: of a window, tokens.
        stride: tokens between windows.
        protocol: "strided", "longlora" or "longqlora".
        score_from: position in a document from which on tokens are scored.

    Raises:
        DataError: there is none.
    """
    windows = [window for i, ids in enumerate(documents) for window in _windows(i, len(ids), context, stride, protocol)]
    # Windows keep their places and only lose what is not asked for: a token's loss is the same with any score_from.
    windows = [w._replace(score=max(w.score, score_from)) for w in windows if w.end > score_from]
    if not windows:
        raise DataError(_no_window(documents, context, stride, protocol, score_from))
    return windows


def as_documents(tokens: Any) -> list[np.ndarray]:
    """Return one array of ids a document, without copying arrays (they may be memory-mapped).

    Raises:
        DataError: a document is no row of whole numbers.
    """
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
                f"document {i} is not a row of token ids (shape {ids.shape}, {ids.dtype}); tokenize it first"
            )
    return documents


def check_ids(model: Any, documents: Sequence[np.ndarray]) -> None:
    """Refuse ids that the model has no embedding for.

    Args:
        model: the model that reads them.
        documents: token ids of each.

    Raises:
        DataError: an id is too large or negative.
    """
    vocabulary = causal_lm(model).get_input_embeddings().weight.shape[0]
    for i, ids in enumerate(documents):
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
            raise DataError(
                f"document {i} has token ids from {ids.min()} to {ids.max()}, but the model knows 0 to "
                f"{vocabulary - 1}; tokenize it with this model's tokenizer"
            )


def batches(windows: Sequence[Window], batch_size: int) -> Iterator[list[Window]]:
    """Group windows of equal length and equal scored part, the longest first: what does not fit fails at once.

    Args:
        windows: in any order.
        batch_size: windows that are run together, at most.
    """
    groups: dict[tuple[int, int], list[Window]] = {}
    for window in windows:
        groups.setdefault((window.end - window.begin, window.score - window.begin), []).append(window)
    for _, group in sorted(groups.items(), reverse=True):
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


def begin_token(model: Any, documents: Sequence[np.ndarray]) -> int | None:
    """The token that the model's texts begin with (BOS), where documents begin with it; None where none does.

    Args:
        model: the model that reads them.
        documents: token ids of each.
    """
    base = causal_lm(model)
    configs = (base.config.get_text_config(), getattr(base, "generation_config", None))
    tokens = (getattr(config, "bos_token_id", None) for config in configs)
    token = next((begin for begin in tokens if begin is not None), None)
    return token if isinstance(token, int) and any(len(ids) and ids[0] == token for ids in documents) else None


def stack(documents: Sequence[np.ndarray], windows: Sequence[Window], begin: int | None = None) -> torch.Tensor:
    """The ids of equally long windows, (B, T).

    Where a document begins with the token `begin`, its later windows begin with it too: it takes the place of their
    first token, which is context only. Many bases put much of their attention on it, and are lost without.

    Args:
        documents: token ids of each.
        windows: of one length.
        begin: token before each window; None for none.
    """
    rows = [documents[w.document][w.begin : w.end].astype(np.int64) for w in windows]
    for row, window in zip(rows, windows, strict=True):
        if begin is not None and documents[window.document][0] == begin:
            row[0] = begin
    return torch.from_numpy(np.stack(rows))


def _windows(document: int, length: int, context: int, stride: int, protocol: str) -> Iterator[Window]:
    if protocol != "strided":
        for begin in list(range(0, length - context, stride))[:-1]:
            yield Window(document, begin, begin + context, begin + 1)
        return
    lead = max(context - stride, 1)
    score, end = 1, min(context, length)
    while score < length:
        yield Window(document, max(score - lead, 0), end, score)
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
