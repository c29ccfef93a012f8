"""The tokenizer of an adapter: its own where one was written beside it, or else its base's."""

import copy
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from lengthen.models.load import load_tokenizer, read_tokenizer
from lengthen.models.resolve import ModelSource
from lengthen.run_folder import RunFolder
from lengthen.upstream import reading

__all__ = ["has_tokenizer", "own_tokenizer", "tokenizer_beside"]

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer is in a folder."""
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


def tokenizer_beside(model: str, adapter: Path | None) -> PreTrainedTokenizerBase:
    """The tokenizer beside an adapter, with which it was trained, or else MODEL's.

    axolotl, TRL, LLaMA-Factory and unsloth write theirs, with its chat template and added tokens, into the adapter's
    folder. A chat template alone is put over MODEL's tokenizer.

    Args:
        model: whose tokenizer it is otherwise.
        adapter: a PEFT folder; None for none.
    """
    if adapter is None:
        return load_tokenizer(model)
    if has_tokenizer(adapter):
        return read_tokenizer(ModelSource(str(adapter), str(adapter)))
    tokenizer = load_tokenizer(model)
    tokenizer.chat_template = _template_beside(adapter) or tokenizer.chat_template
    return tokenizer


def own_tokenizer(path: Path, base: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer beside an adapter that is served with others, or else its base's.

    Args:
        path: PEFT or run folder; a run keeps its tokenizer beside the adapter's folder.
        base: the base's tokenizer, which comes back where the adapter's does the same.

    Raises:
        ModelError: the files can't be read.
    """
    folder = path if (path / "adapter_config.json").is_file() else RunFolder(path).adapter
    place = next((candidate for candidate in (folder, path) if has_tokenizer(candidate)), None)
    if place is not None:
        own = read_tokenizer(ModelSource(str(place), str(place)))
    elif (template := _template_beside(folder)) is not None:
        own = copy.deepcopy(base)
        own.chat_template = template
    else:
        return base
    return base if _reading_of(own) == _reading_of(base) else own


def _template_beside(adapter: Path) -> str | None:
    template = adapter / "chat_template.jinja"
    if not template.is_file():
        return None
    with reading(str(template)):
        return template.read_text(encoding="utf-8")


def _reading_of(tokenizer: PreTrainedTokenizerBase) -> tuple[Any, ...]:
    """The properties by which a tokenizer reads and writes texts and chats."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = tokenizer.get_vocab() if backend is None else backend.to_str()
    return rules, tokenizer.special_tokens_map, tokenizer.chat_template
