"""A recipe's sources opened: documents, short windows, instructions, repositories and retrieval become a `Mixture`."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lengthen.data.blocks import Block
from lengthen.data.instruct.dataset import load_instructions, pack_instructions
from lengthen.data.mixture import BlockSource, FiniteSource, GeneratedSource, Mixture
from lengthen.data.packing import choose_documents, pack, pack_windows
from lengthen.data.repositories import read_repositories
from lengthen.data.retrieval.documents import SurroundingText
from lengthen.data.retrieval.source import Retrieval, Settings
from lengthen.data.retrieval.tasks import SHARES
from lengthen.data.skip_wise import skip_wise
from lengthen.data.token_store import TokenStore
from lengthen.data.tokens import default_cache, load_tokens, tokenize
from lengthen.errors import DataError
from lengthen.recipe import Recipe, SourceRecipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["open_mixture"]

_LOG = logging.getLogger(__name__)


def open_mixture(
    recipe: Recipe,
    tokenizer: "PreTrainedTokenizerBase",
    vocab_size: int,
    count: int,
) -> Mixture:
    """Read the sources of a recipe whose data are a mixture, and put them in order.

    Args:
        recipe: what its data section says of sources, lengths and limits, and its seed and target context.
        tokenizer: of the base, with the chat template that is meant.
        vocab_size: tokens in the model's vocabulary.
        count: sequences of the whole run, over all steps and processes.

    Returns:
        The sequences of the run, each a function of seed and index.

    Raises:
        DataError: a source can't be read, has nothing that can be used, or has lengths or tasks that can't be made.
    """
    opener = _Opener(recipe, tokenizer, vocab_size)
    chosen = [(number, source) for number, source in enumerate(recipe.data.sources) if source.weight != 0]
    weights = [1.0 if source.weight is None else source.weight for _, source in chosen]
    return Mixture([opener.open(number, source) for number, source in chosen], weights, count)


class _Opener:
    def __init__(self, recipe: Recipe, tokenizer: "PreTrainedTokenizerBase", vocab_size: int):
        self._recipe, self._tokenizer, self._vocab_size = recipe, tokenizer, vocab_size
        self._stores: dict[int, TokenStore] = {}

    def open(self, number: int, source: SourceRecipe) -> BlockSource:
        """A source of the recipe; its number there is a part of its seed."""
        place = self._recipe.data.place_of(number)
        name = f"{place} ({source.kind}{' ' + ', '.join(source.path) if source.path else ''})"
        seed = (self._recipe.seed, number)
        if source.kind == "retrieval":
            return self._open_retrieval(source, name, seed)
        if source.kind == "instruct":
            return self._open_instructions(source, name, seed)
        store = self._store(number, source)
        chosen = self._choose(store, source, name, seed)
        try:
            blocks = self._cut(chosen, source, seed)
        except DataError as error:
            raise DataError(f"{name}: {error}") from error
        what = ("repository", "repositories") if source.kind == "code" else ("document", "documents")
        about = f"{len(store)} {what[len(store) != 1]}, {store.lengths.sum():,} tokens"
        return FiniteSource(source.kind, name, about, blocks, seed)

    def _store(self, number: int, source: SourceRecipe) -> TokenStore:
        """The documents of a source, read once."""
        if number not in self._stores:
            if source.kind == "code":
                repositories, warnings = read_repositories(source.path)
                self._warn(warnings)
                chosen = repositories[: source.max_documents or self._recipe.data.max_documents]
                store = tokenize(chosen, self._tokenizer, default_cache())
                self._stores[number] = store.without(self._recipe.data.held_out)
            else:
                self._stores[number] = self._read(source.path, source)
        return self._stores[number]

    def _read(self, paths: Sequence[str], source: SourceRecipe) -> TokenStore:
        limit = source.max_documents or self._recipe.data.max_documents
        store, warnings = load_tokens(paths, self._tokenizer, self._vocab_size, default_cache(), max_documents=limit)
        self._warn(warnings)
        return store.without(self._recipe.data.held_out)

    @staticmethod
    def _warn(warnings: Sequence[str]) -> None:
        for warning in warnings:
            _LOG.warning("%s", warning)

    def _limits(self, source: SourceRecipe) -> tuple[int, int | None]:
        """The limits of lengths; those of the data section are for long documents."""
        data = self._recipe.data
        if source.kind == "long":
            return source.min_tokens or data.min_tokens, source.max_tokens or data.max_tokens
        return source.min_tokens or 1, source.max_tokens

    def _choose(self, store: TokenStore, source: SourceRecipe, name: str, seed: tuple[int, ...]) -> TokenStore:
        """The documents of one pass: those within the limits, each as often as its length says."""
        least, most = self._limits(source)
        inside = choose_documents(store, least, most)
        if source.length_weights:
            times = np.ones(len(inside))
            for start, weight in sorted(source.length_weights.items()):
                times[store.lengths[inside] >= start] = weight
            more = np.random.default_rng(_number(seed)).random(len(inside)) < times % 1
            inside = np.repeat(inside, times.astype(np.int64) + more)
        if len(inside) == len(store) and not source.length_weights:
            return store
        if len(inside) == 0:
            lengths = store.lengths
            raise DataError(
                f"{name} has no document that can be used: its {len(store)} documents have {lengths.min()} to "
                f"{lengths.max()} tokens; change min_tokens {least}, max_tokens {'none' if most is None else most} or "
                "length_weights"
            )
        return store.take(inside)

    def _cut(self, store: TokenStore, source: SourceRecipe, seed: tuple[int, ...]) -> Sequence[Block]:
        data, length, target = self._recipe.data, self._recipe.sequence_length, self._recipe.context.target
        if source.kind == "short":
            return pack_windows(store, min(source.window, length), length, _number(seed))
        if not data.is_skip_wise(source):
            return pack(store, length, data.packing)
        return skip_wise(pack(store, target, data.packing), length, target, _number(seed))

    def _open_instructions(self, source: SourceRecipe, name: str, seed: tuple[int, ...]) -> BlockSource:
        data, length = self._recipe.data, self._recipe.sequence_length
        limit = source.max_documents or data.max_documents
        loaded = load_instructions(source.path, self._tokenizer, length, data.template, *self._limits(source), limit)
        self._warn([warning for source in loaded for warning in source.warnings])
        examples = [example for source in loaded for example in source.examples]
        about = f"{len(examples)} examples, {sum(map(len, examples)):,} tokens"
        return FiniteSource("instruct", name, about, pack_instructions(examples, length), seed)

    def _open_retrieval(self, source: SourceRecipe, name: str, seed: tuple[int, ...]) -> BlockSource:
        data, length = self._recipe.data, self._recipe.sequence_length
        lengths = (source.length, source.length) if isinstance(source.length, int) else source.length
        settings = Settings(
            source.tasks or SHARES, source.facts, source.answer_weight, source.text_weight, source.bare, source.early,
            source.middle, lengths,
        )  # fmt: skip
        documents = self._haystack(source)
        target = self._recipe.context.target if data.is_skip_wise(source) else None
        try:
            retrieval = Retrieval(self._tokenizer, documents, length, settings, _number(seed), target)
        except DataError as error:
            raise DataError(f"{name}: {error}") from error
        about = "lists of facts" if documents is None else f"in {len(documents):,} tokens of documents"
        return GeneratedSource("retrieval", name, about, lengths is not None, retrieval.block, length)

    def _haystack(self, source: SourceRecipe) -> SurroundingText | None:
        """The documents around facts: those that are named, else those of the sources long and code, of any weight."""
        if source.haystack:
            return SurroundingText([self._read(source.haystack, source)], self._tokenizer)
        others = enumerate(self._recipe.data.sources)
        stores = [self._store(number, other) for number, other in others if other.kind in ("long", "code")]
        return SurroundingText(stores, self._tokenizer) if stores else None


def _number(seed: tuple[int, ...]) -> int:
    """One number, where a source takes no range."""
    return int(np.random.default_rng(seed).integers(2**63))
