"""Instruction data from files and datasets by name: read, encoded, mixed by weight, packed into blocks."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lengthen.data.blocks import Block
from lengthen.data.documents import files_in
from lengthen.data.hub import HubSource, is_hub_source, parse_hub_source, read_hub_records
from lengthen.data.instruct.encoding import Encoded, encode
from lengthen.data.instruct.formats import WANTED, Example, take_example
from lengthen.data.instruct.templates import INPUT_JOINTS, RenderedChat, Template
from lengthen.data.packing import best_fit
from lengthen.data.records import RECORDS, BrokenRecordError, read_records, report_broken
from lengthen.data.text_files import kind_of
from lengthen.errors import DataError
from lengthen.progress import progress_bar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Instructions", "load_instructions", "mix", "pack_instructions"]

_KNOWN = {
    "Yukang/LongAlpaca-12k": HubSource("Yukang/LongAlpaca-12k"),
    # The dataset also holds the documents of the pretraining, of other columns.
    "YeungNLP/LongQLoRA-Dataset": HubSource("YeungNLP/LongQLoRA-Dataset", data_files="LongQLoRA-SFT-Data-39k.jsonl"),
}
_BATCH = 64  # examples tokenized at a time, on all cores


@dataclass
class Instructions:
    """The examples of one source.

    Attributes:
        source: its name.
        names: of each example.
        examples: in tokens.
        left_out: how many were not taken, by reason.
        warnings: lines for the user.
    """

    source: str
    names: list[str] = field(default_factory=list)
    examples: list[Encoded] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)

    @property
    def truncated(self) -> int:
        """Examples whose document was cut."""
        return sum(example.cut > 0 for example in self.examples)


def load_instructions(
    sources: Sequence[str | Path],
    tokenizer: "PreTrainedTokenizerBase",
    sequence_length: int | None = None,
    template: str = "tokenizer",
    min_tokens: int = 1,
    max_tokens: int | None = None,
    max_examples: int | None = None,
) -> list[Instructions]:
    """Read, lay out and tokenize instruction data.

    Args:
        sources: files that end in .json, .jsonl or .parquet, folders of these, datasets as `hf:NAME`, or one of the
            known datasets by its bare name (Yukang/LongAlpaca-12k, YeungNLP/LongQLoRA-Dataset).
        tokenizer: with the chat template that is meant, such as after `use_template`.
        sequence_length: tokens that an example has at most; longer ones lose the middle of their document.
        template: its name, which decides how an alpaca record's instruction and input are joined.
        min_tokens: examples with fewer tokens are left out.
        max_tokens: examples with more tokens, before anything is cut, are left out.
        max_examples: taken of each source, the first ones; None for all.

    Returns:
        One object for each source, in the order named. What was left out or cut is counted in it and in its warnings.

    Raises:
        DataError: a source can't be read, or nothing of it can be used.
    """
    if not sources:
        raise DataError(f"no instruction data were named; name files ({', '.join(RECORDS)}), folders or datasets")
    take = partial(take_example, joint=INPUT_JOINTS.get(template, "\n\n"))
    loaded = []
    for source in map(str, sources):
        records, warnings = _read(source, take, max_examples)
        instructions = Instructions(source, warnings=warnings)
        _encode_all(instructions, records, tokenizer, sequence_length, (min_tokens, max_tokens))
        _report(instructions, sequence_length)
        loaded.append(instructions)
    return loaded


def _read(source: str, take: Any, limit: int | None) -> tuple[list[tuple[str, Example]], list[str]]:
    path = Path(source)
    if not path.exists() and (is_hub_source(source) or source in _KNOWN):
        known = _KNOWN.get(source.removeprefix("hf:"))
        return read_hub_records(known or parse_hub_source(source), take, WANTED, limit)
    if not path.exists():
        raise DataError(f"{path} does not exist; check the name, or name a dataset of the hub as hf:{source}")
    files = files_in(path, RECORDS) if path.is_dir() else [path]
    if not files or kind_of(files[0]) not in RECORDS:
        raise DataError(f"{path} has no instruction data; give {', '.join(RECORDS)} files, or folders of these")
    records: list[tuple[str, Example]] = []
    warnings: list[str] = []
    for file in files:
        found, said = read_records(file, take, WANTED, limit)
        records += found
        warnings += said
    if not records:
        raise DataError(f"{path} is empty; leave it out or give a file with records")
    return records[:limit], warnings


def _encode_all(
    instructions: Instructions,
    records: list[tuple[str, Example]],
    tokenizer: "PreTrainedTokenizerBase",
    sequence_length: int | None,
    limits: tuple[int, int | None],
) -> None:
    template = Template(tokenizer)
    unused: Counter[str] = Counter()
    laid_out: list[tuple[str, RenderedChat]] = []
    broken: list[tuple[str, str]] = []
    for name, example in records:
        try:
            layout = template.lay_out(example)
            laid_out.append((name, layout))
            unused.update((*example.unused, *layout.unused))
        except BrokenRecordError as error:
            broken.append((name, str(error)))
    with progress_bar("tokenizing", len(laid_out), "examples") as advance:
        for start in range(0, len(laid_out), _BATCH):
            batch = laid_out[start : start + _BATCH]
            encoded = encode([layout for _, layout in batch], tokenizer, sequence_length, template.control)
            for (name, _), each in zip(batch, encoded, strict=True):
                _sort_in(instructions, name, each, limits)
            advance(len(batch))
    instructions.warnings += report_broken(
        instructions.source, "records", len(records) - len(broken), broken, "choose another template"
    )
    if unused:
        counts = ", ".join(f"{key} ({count:,} records)" for key, count in unused.most_common())
        instructions.warnings.append(f"{instructions.source}: not read: {counts}")
    spelled = sum(template.control.marks(layout.text) for _, layout in laid_out)
    if spelled:
        instructions.warnings.append(
            f"{instructions.source}: {spelled:,} control tokens written out in messages are read as plain text"
        )


def _sort_in(instructions: Instructions, name: str, encoded: Encoded | int, limits: tuple[int, int | None]) -> None:
    least, most = limits
    whole = encoded if isinstance(encoded, int) else encoded.whole
    if whole < least:
        instructions.left_out["shorter than min_tokens"] += 1
    elif most is not None and whole > most:
        instructions.left_out["longer than max_tokens"] += 1
    elif isinstance(encoded, int):
        instructions.left_out["too long without their document"] += 1
    else:
        instructions.names.append(name)
        instructions.examples.append(encoded)


def _report(instructions: Instructions, sequence_length: int | None) -> None:
    said = ", ".join(f"{count} {reason}" for reason, count in instructions.left_out.items())
    if not instructions.examples:
        raise DataError(
            f"{instructions.source}: no example can be used: {said} (sequence_length {sequence_length}); "
            "change the limits"
        )
    if instructions.left_out:
        instructions.warnings.append(f"{instructions.source}: left out {said} (sequence_length {sequence_length})")
    if instructions.truncated:
        lost = sum(example.cut for example in instructions.examples)
        instructions.warnings.append(
            f"{instructions.source}: {instructions.truncated} of {len(instructions.examples)} examples have a document "
            f"that is too long; {lost:,} tokens were cut out of their middles"
        )


def mix(loaded: Sequence[Instructions], weights: Sequence[float] | None, seed: int) -> list[Encoded]:
    """The examples of one pass over all sources.

    Args:
        loaded: the sources.
        weights: how often each source is seen in a pass; 0.5 takes half of its examples, 2.5 each one twice and half
            of them once more. None for once each.
        seed: decides which ones are taken of a fraction.

    Raises:
        DataError: there is not one weight for each source.
    """
    weights = [1.0] * len(loaded) if weights is None else weights
    if len(weights) != len(loaded):
        raise DataError(f"there are {len(weights)} weights for {len(loaded)} sources; give one for each")
    generator = np.random.default_rng(seed)
    mixed: list[Encoded] = []
    for instructions, weight in zip(loaded, weights, strict=True):
        examples = instructions.examples
        times, share = divmod(weight, 1)
        # At least one, so that a small source with a small weight does not vanish.
        more = max(round(share * len(examples)), 0 if times else 1)
        chosen = sorted(generator.permutation(len(examples))[:more].tolist())
        mixed += examples * int(times) + [examples[index] for index in chosen]
    return mixed


def pack_instructions(examples: Sequence[Encoded], sequence_length: int, packing: str = "documents") -> list[Block]:
    """Make training blocks of whole examples, each a segment of its own.

    Args:
        examples: of at most `sequence_length` tokens each.
        sequence_length: tokens in a block, at most.
        packing: "documents" puts several into a block (best-fit decreasing), "none" one.
    """
    if packing == "documents":
        bins = best_fit([len(example) for example in examples], sequence_length)
    else:
        assert packing == "none", packing
        bins = [[index] for index in range(len(examples))]
    blocks = []
    for indices in bins:
        ids = np.concatenate([examples[index].input_ids for index in indices]).astype(np.int64)
        trained = np.concatenate([examples[index].trained for index in indices])
        blocks.append(Block(ids, tuple(len(examples[index]) for index in indices), trained=trained))
    return blocks
