"""Tokens from documents and from token files, and token files from tokens.

A token file is a flat array of little-endian uint16 ids (uint32 where the vocabulary has more than 65536 tokens)
without a header: the format of the published PG19 and proof-pile files. It holds one stream; where documents
begin is not in it, other than by the ids that a tokenizer puts there itself.
"""

import hashlib
import json
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from lengthen.data.control_tokens import ControlTokenError, ControlTokens
from lengthen.data.documents import Document, read_documents
from lengthen.data.hub import HubStream, is_hub_source, parse_hub_source
from lengthen.data.stdlib import expand_aliases
from lengthen.errors import DataError, OutputError
from lengthen.files import cache_folder, write_bytes
from lengthen.progress import progress_bar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "TokenStore",
    "default_cache",
    "load_tokens",
    "read_token_file",
    "tokenize",
    "write_token_file",
]

_DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
_CACHE_FORMAT = 2
# Bounds the tokenizer's own objects (about 100 bytes a token), and is often enough for a bar that moves.
_BATCH_CHARACTERS = 2_000_000
_SCAN_TOKENS = 1 << 24


@dataclass(frozen=True, eq=False)
class TokenStore:
    """Token ids of many documents in one flat array.

    Attributes:
        tokens: all ids, uint32; uint16 where it is the memory map of one uint16 token file.
        offsets: where each document starts in `tokens`, and the end of the last one; int64, one more than documents.
        names: the documents' names, for messages.
        spelled: control tokens that are written out in the documents, where they are plain text.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    names: list[str]
    spelled: int = 0

    def __post_init__(self) -> None:
        assert len(self.offsets) == len(self.names) + 1
        assert self.offsets[0] == 0
        assert self.offsets[-1] == len(self.tokens)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> np.ndarray:
        index = range(len(self.names))[index]
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens in each document, int64."""
        return np.diff(self.offsets)

    def take(self, indices: Sequence[int] | np.ndarray) -> "TokenStore":
        """A store of these documents, in this order, as often as they are named; at least one."""
        tokens = np.concatenate([self[index] for index in indices])
        offsets = np.cumsum([0, *self.lengths[list(indices)]], dtype=np.int64)
        return TokenStore(tokens, offsets, [self.names[index] for index in indices], self.spelled)

    def without(self, names: Collection[str]) -> "TokenStore":
        """A store of the documents that have other names than these.

        Raises:
            DataError: none is left.
        """
        kept = [index for index, name in enumerate(self.names) if name not in names]
        if len(kept) == len(self):
            return self
        if not kept:
            raise DataError(
                f"all documents ({', '.join(self.names[:3])}{', ...' if len(self) > 3 else ''}) are held out, so none "
                "is left to train on; shorten data.held_out"
            )
        return self.take(kept)


def load_tokens(
    paths: Sequence[str | Path],
    tokenizer: "PreTrainedTokenizerBase",
    vocab_size: int,
    cache: Path | None = None,
    dtype: str | None = None,
    max_documents: int | None = None,
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
            read = [tokenize_stream(stream, tokenizer, cache) for stream in streams]
            said += [line for stream in streams for line in stream.warnings]
        else:
            documents, about = read_documents(list(group), max_documents)
            read = [tokenize(documents, tokenizer, cache)]
            said += about
        for store in read:
            _check_vocabulary(store, vocab_size)
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
) -> TokenStore:
    """Turn documents into token ids, with the special tokens that the tokenizer adds by itself.

    Args:
        documents: the texts.
        tokenizer: any transformers tokenizer; the fast ones use all cores.
        cache: the folder where the result is kept under a hash of texts and tokenizer; None keeps nothing. If it
            can't be written, a `UserWarning` says so and the run goes on.

    Raises:
        DataError: a document spells a control token, and the tokenizer can't encode that as plain text.
    """
    names = [document.name for document in documents]
    kept = None
    if cache is not None:
        kept = cache / f"{_cache_key((document.text for document in documents), tokenizer)}.safetensors"
        cached = _read_cache(kept)
        if cached is not None and len(cached[1]) == len(names) + 1:
            return TokenStore(cached[0], cached[1], names, cached[2])
    total = sum(len(document.text) for document in documents)
    ids: list[np.ndarray] = []
    control = ControlTokens(tokenizer)
    spelled = sum(_spelled(control, document) for document in documents)
    with progress_bar("tokenizing", total, "characters") as advance:
        for batch in _batches(document.text for document in documents):
            ids += _encode(batch, tokenizer)
            advance(sum(map(len, batch)))
    store = _build(ids, names, spelled)
    if kept is not None:
        _write_cache(kept, store)
    return store


def tokenize_stream(stream: HubStream, tokenizer: "PreTrainedTokenizerBase", cache: Path | None = None) -> TokenStore:
    """Turn the documents of a hub dataset into token ids as they come, so that their text is never held whole.

    Args:
        stream: the documents.
        tokenizer: any transformers tokenizer.
        cache: as in `tokenize`, but under a hash of what the dataset's files are. Nothing is kept where that can't be
            told, nor where rows were left out, so that each run says so.
    """
    kept = None
    if cache is not None and stream.identity is not None:
        kept = cache / f"{_cache_key([stream.identity], tokenizer)}.safetensors"
        cached = _read_cache(kept)
        if cached is not None:
            names = [f"{stream.source}[{i}]" for i in range(len(cached[1]) - 1)]
            return TokenStore(cached[0], cached[1], names, cached[2])
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
    store = _build(ids, names, spelled)
    if kept is not None and not stream.warnings:
        _write_cache(kept, store)
    return store


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


def default_cache() -> Path:
    """The folder for tokenized documents."""
    return cache_folder("tokens")


def read_token_file(path: str | Path, vocab_size: int, dtype: str | None = None) -> TokenStore:
    """Map a token file into memory as one stream named after the file.

    Args:
        path: the file.
        vocab_size: tokens in the model's vocabulary; every id is checked against it.
        dtype: "uint16" or "uint32"; by default uint16 where `vocab_size` is at most 65536.

    Raises:
        DataError: the file is missing or empty, its size is no whole number of ids, or ids are outside the vocabulary.
    """
    path = Path(path)
    if dtype is not None and dtype not in _DTYPES:
        raise DataError(f"dtype {dtype!r} is not one of {', '.join(_DTYPES)}")
    if not path.is_file():
        raise DataError(f"token file {path} {'is a folder' if path.is_dir() else 'does not exist'}; check the name")
    chosen = dtype or _dtype_for(vocab_size)
    other = "uint16" if chosen == "uint32" else "uint32"
    item = _DTYPES[chosen]
    size = path.stat().st_size
    if size == 0:
        raise DataError(f"token file {path} is empty; write it again, such as with `lengthen data tokenize`")
    if size % item.itemsize:
        raise DataError(
            f"token file {path} has {size} bytes, no whole number of {chosen} ids; it is cut short, "
            f"or not an array of {chosen} ids"
        )
    try:
        tokens = np.memmap(path, dtype=item, mode="r").view(np.ndarray)
    except OSError as error:
        raise DataError(f"can't read token file {path}: {error.strerror or error}; check its permissions") from error
    outside = _first_outside(tokens, vocab_size)
    if outside is not None:
        raise DataError(
            f"token file {path} has id {tokens[outside]} at position {outside}, but the vocabulary has {vocab_size} "
            f"tokens; it was made for another tokenizer, or holds {other} ids (then read it with dtype {other})"
        )
    if dtype is None and chosen == "uint16" and _looks_like_uint32(tokens):
        raise DataError(
            f"token file {path} seems to hold uint32 ids, as every second uint16 in it is 0; "
            "read it with dtype uint32, or with dtype uint16 if it is right as it is"
        )
    return TokenStore(tokens, np.array([0, len(tokens)], dtype=np.int64), [path.name])


def write_token_file(path: str | Path, store: TokenStore, vocab_size: int) -> None:
    """Write all documents of a store, one after another, as a token file.

    Args:
        path: the file; an older one is replaced once the new one is whole.
        store: the tokens.
        vocab_size: tokens in the vocabulary; up to 65536 the ids are uint16, else uint32.

    Raises:
        DataError: an id is outside the vocabulary.
        OutputError: the file can't be written.
    """
    _check_vocabulary(store, vocab_size)
    write_bytes(Path(path), store.tokens.astype(_DTYPES[_dtype_for(vocab_size)]).tobytes())


def _kind(source: str | Path) -> str:
    if is_hub_source(source):
        return "hub"
    path = Path(source)
    return "tokens" if path.suffix.lower() == ".bin" and not path.is_dir() else "documents"


def _dtype_for(vocab_size: int) -> str:
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def _build(ids: list[np.ndarray], names: list[str], spelled: int) -> TokenStore:
    tokens = np.concatenate([np.empty(0, dtype=np.uint32), *ids])
    return TokenStore(tokens, np.cumsum([0, *map(len, ids)], dtype=np.int64), names, spelled)


def _join(stores: list[TokenStore]) -> TokenStore:
    ids = [store[i] for store in stores for i in range(len(store))]
    return _build(ids, [name for store in stores for name in store.names], sum(store.spelled for store in stores))


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


def _first_outside(tokens: np.ndarray, vocab_size: int) -> int | None:
    """Position of the first id that is not in the vocabulary; in parts, as the array can be larger than memory."""
    for start in range(0, len(tokens), _SCAN_TOKENS):
        part = tokens[start : start + _SCAN_TOKENS]
        if part.max() >= vocab_size:
            return start + int(np.argmax(part >= vocab_size))
    return None


def _looks_like_uint32(tokens: np.ndarray) -> bool:
    """Whether small uint32 ids were read as uint16: their upper halves, every second value, are all zero."""
    if len(tokens) < 16 or len(tokens) % 2:
        return False
    return not tokens[1:64:2].any() and not tokens[1::2].any() and bool(tokens[0::2].any())


def _check_vocabulary(store: TokenStore, vocab_size: int) -> None:
    outside = _first_outside(store.tokens, vocab_size)
    if outside is None:
        return
    name = store.names[int(np.searchsorted(store.offsets, outside, side="right")) - 1]
    raise DataError(
        f"{name} has token id {store.tokens[outside]}, but the vocabulary has {vocab_size} tokens; "
        "use the tokenizer that belongs to the model, or resize the model's embeddings"
    )


def _cache_key(content: Iterable[str], tokenizer: "PreTrainedTokenizerBase") -> str:
    digest = hashlib.sha256()
    for part in (str(_CACHE_FORMAT), _tokenizer_identity(tokenizer), *content):
        encoded = part.encode("utf-8")
        # The length before each part, so that moving text from one document to the next changes the key.
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.hexdigest()


def _tokenizer_identity(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Everything that decides which ids a tokenizer gives, as a string."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    identity: dict[str, Any] = {
        "class": type(tokenizer).__qualname__,
        "split_special_tokens": getattr(tokenizer, "split_special_tokens", False),
        "tokenizers": version("tokenizers"),
    }
    if backend is not None:
        identity["backend"] = json.loads(backend.to_str())
        # Left there by earlier calls, and set anew by each: they are no part of what a tokenizer is.
        identity["backend"].update(truncation=None, padding=None)
    else:
        identity["name"] = tokenizer.name_or_path
        identity["vocabulary"] = tokenizer.get_vocab()
        identity["settings"] = repr(sorted(tokenizer.init_kwargs.items()))
    return json.dumps(identity, sort_keys=True)


def _read_cache(path: Path) -> tuple[np.ndarray, np.ndarray, int] | None:
    """The tokens, offsets and `spelled` of a cached store, or None where there is none that is whole."""
    try:
        arrays = safetensors.numpy.load(path.read_bytes())
        tokens, offsets, checksum = arrays["tokens"], arrays["offsets"], arrays["checksum"]
        spelled = int(arrays["spelled"])
    except (OSError, KeyError, ValueError, SafetensorError):
        return None
    return (tokens, offsets, spelled) if np.array_equal(checksum, _checksum(tokens, offsets)) else None


def _write_cache(path: Path, store: TokenStore) -> None:
    arrays = {"tokens": store.tokens, "offsets": store.offsets, "checksum": _checksum(store.tokens, store.offsets)}
    arrays["spelled"] = np.asarray(store.spelled)
    try:
        write_bytes(path, safetensors.numpy.save(arrays))
    except (OutputError, OSError) as error:
        warnings.warn(f"tokenized documents are not cached: {error}", stacklevel=3)


def _checksum(tokens: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """A damaged byte in a cache would otherwise be a wrong token that nobody sees."""
    digest = hashlib.sha256(offsets.tobytes())
    digest.update(tokens.tobytes())
    return np.frombuffer(digest.digest(), dtype=np.uint8)
