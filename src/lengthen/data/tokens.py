"""Tokens from documents, token files and hub datasets."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lengthen.data.control_tokens import ControlTokenError, ControlTokens
from lengthen.data.documents import Document, read_documents
from lengthen.data.hub import HubStream, is_hub_source, parse_hub_source
from lengthen.data.stdlib import expand_aliases
from lengthen.data.token_cache import cache_key, read_cache, write_cache
from lengthen.data.token_file import read_token_file
from lengthen.data.token_store import TokenStore, check_vocabulary
from lengthen.errors import DataError
from lengthen.files import cache_folder
from lengthen.progress import progress_bar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "default_cache",
    "load_tokens",
    "tokenize",
]

# Bounds the tokenizer's own objects (about 100 bytes a token), and is often enough for a bar that moves.
_BATCH_CHARACTERS = 2_000_000


def load_tokens(
    paths: Sequence[str | Path],
    tokenizer: "PreTrainedTokenizerBase",
    vocab_size: int,
    cache: Path | None = None,
    dtype: str | None = None,
    max_documents: int | None = None,
    on_read: Callable[[], None] = lambda: None,
) -> tuple[TokenStore, list[str]]:
    """Read token files (.bin), documents, folders of documents and hub datasets into one store, in the order named.

    Args:
        paths: what to read; see `read_documents`, `read_token_file` and `parse_hub_source`. "python-stdlib:train" and
            "python-stdlib:validation" mean the sources of Python's standard library.
        tokenizer: what turns documents into ids.
        vocab_size: tokens in the model's vocabulary, which may differ from the tokenizer's.
        cache: the folder for tokenized documents, such as `default_cache()`; None keeps nothing.
        dtype: "uint16" or "uint32" where token files are not what `vocab_size` suggests.
        max_documents: documents that are taken of each file, folder or dataset, the first ones; None for all.
        on_read: called after each file and each batch of text that was tokenized; what it raises ends the reading.

    Returns:
        The store, and warnings about what was left out, one line each.

    Raises:
        DataError: something can't be read, or has ids outside the vocabulary.
    """
    if not paths:
        raise DataError("no data was named; name token files (.bin), documents or folders of documents")
    stores: list[TokenStore] = []
    said: list[str] = []
    for kind, group in groupby(expand_aliases(paths), key=_kind):
        if kind == "tokens":
            stores += [read_token_file(path, vocab_size, dtype) for path in group]
            continue
        if kind == "hub":
            streams = [HubStream(parse_hub_source(str(source)), max_documents) for source in group]
            read = [tokenize_stream(stream, tokenizer, cache, on_read) for stream in streams]
            said += [line for stream in streams for line in stream.warnings]
        else:
            documents, about = read_documents(list(group), max_documents, on_read)
            read = [tokenize(documents, tokenizer, cache, on_read)]
            said += about
        for store in read:
            check_vocabulary(store, vocab_size)
            if store.spelled:
                said.append(
                    f"{store.names[0] if len(store) == 1 else f'{len(store):,} documents'}: {store.spelled:,} control "
                    "tokens written out in the text are read as plain text"
                )
        stores += read
    return (stores[0] if len(stores) == 1 else _join(stores)), said


def tokenize(
    documents: Sequence[Document],
    tokenizer: "PreTrainedTokenizerBase",
    cache: Path | None = None,
    on_read: Callable[[], None] = lambda: None,
) -> TokenStore:
    """Turn documents into token ids, with the special tokens that the tokenizer adds by itself.

    Args:
        documents: the texts.
        tokenizer: any transformers tokenizer; the fast ones use all cores.
        cache: the folder where the result is kept under a hash of texts and tokenizer; None keeps nothing. If it
            can't be written, a `UserWarning` says so and the run goes on.
        on_read: called after each batch of text.

    Raises:
        DataError: a document spells a control token, and the tokenizer can't encode that as plain text.
    """
    names = [document.name for document in documents]
    kept = None
    if cache is not None:
        kept = cache / f"{cache_key((document.text for document in documents), tokenizer)}.safetensors"
        cached = read_cache(kept)
        if cached is not None and len(cached[1]) == len(names) + 1:
            return TokenStore.of_stream(cached[0], cached[1], names, cached[2])
    total = sum(len(document.text) for document in documents)
    ids: list[np.ndarray] = []
    control = ControlTokens(tokenizer)
    spelled = sum(_spelled(control, document) for document in documents)
    with progress_bar("tokenizing", total, "characters") as advance:
        for batch in _batches(document.text for document in documents):
            ids += _encode(batch, tokenizer)
            advance(sum(map(len, batch)))
            on_read()
    store = _build(ids, names, spelled)
    if kept is not None:
        write_cache(kept, store)
    return store


def tokenize_stream(
    stream: HubStream,
    tokenizer: "PreTrainedTokenizerBase",
    cache: Path | None = None,
    on_read: Callable[[], None] = lambda: None,
) -> TokenStore:
    """Turn the documents of a hub dataset into token ids as they come, so that their text is never held whole.

    Args:
        stream: the documents.
        tokenizer: any transformers tokenizer.
        cache: as in `tokenize`, but under a hash of what the dataset's files are. Nothing is kept where that can't be
            told, nor where rows were left out, so that each run says so.
        on_read: called after each batch of text.
    """
    kept = None
    if cache is not None and stream.identity is not None:
        kept = cache / f"{cache_key([stream.identity], tokenizer)}.safetensors"
        cached = read_cache(kept)
        if cached is not None:
            names = [f"{stream.source}[{i}]" for i in range(len(cached[1]) - 1)]
            return TokenStore.of_stream(cached[0], cached[1], names, cached[2])
    names, spelled, control = [], 0, ControlTokens(tokenizer)

    def texts() -> Iterator[str]:
        nonlocal spelled
        for document in stream:
            spelled += _spelled(control, document)
            names.append(document.name)
            yield document.text

    ids: list[np.ndarray] = []
    with progress_bar("streaming", None, "documents") as advance:
        for batch in _batches(texts()):
            ids += _encode(batch, tokenizer)
            advance(len(batch))
            on_read()
    store = _build(ids, names, spelled)
    if kept is not None and not stream.warnings:
        write_cache(kept, store)
    return store


def default_cache() -> Path:
    """The folder for tokenized documents."""
    return cache_folder("tokens")


def _encode(texts: list[str], tokenizer: "PreTrainedTokenizerBase") -> list[np.ndarray]:
    # Documents longer than the model's present context are the point, so no warning about them. Nothing that stands in
    # one is a control token.
    encoded = tokenizer(
        texts, return_attention_mask=False, return_token_type_ids=False, verbose=False, split_special_tokens=True
    )
    return [np.asarray(one, dtype=np.uint32) for one in encoded["input_ids"]]


def _spelled(control: ControlTokens, document: Document) -> int:
    try:
        return control.check(document.text)
    except ControlTokenError as error:
        raise DataError(f"{document.name} {error}; take it out of the text") from error


def _kind(source: str | Path) -> str:
    if is_hub_source(source):
        return "hub"
    path = Path(source)
    return "tokens" if path.suffix.lower() == ".bin" and not path.is_dir() else "documents"


def _build(ids: list[np.ndarray], names: list[str], spelled: int) -> TokenStore:
    offsets = np.cumsum([0, *map(len, ids)], dtype=np.int64)
    return TokenStore.of_stream(_joined(ids), offsets, names, spelled)


def _join(stores: list[TokenStore]) -> TokenStore:
    lengths = [length for store in stores for length in store.lengths.tolist()]
    names, spelled = [name for store in stores for name in store.names], sum(store.spelled for store in stores)
    parts = [stores.pop().stream() for _ in range(len(stores))]
    return TokenStore.of_stream(_joined(parts[::-1]), np.cumsum([0, *lengths], dtype=np.int64), names, spelled)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """All ids in one array; the list is emptied on the way, so that hardly any are held twice."""
    tokens = np.empty(sum(map(len, parts)), dtype=np.uint32)
    end = len(tokens)
    while parts:
        part = parts.pop()
        tokens[end - len(part) : end] = part
        end -= len(part)
    return tokens


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Cut texts into batches of at most `_BATCH_CHARACTERS`, or of one text that is longer."""
    batch: list[str] = []
    characters = 0
    for text in texts:
        if batch and characters + len(text) > _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
        batch.append(text)
        characters += len(text)
    if batch:
        yield batch
