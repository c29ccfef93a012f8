"""Control tokens that are written out in data, such as `<|im_end|>` in a text about chat templates, are plain text.

A tokenizer reads them as what they spell: the end of a message, of a document. In a document nothing but the text is
content, so all of it is encoded without them (`split_special_tokens`). In a conversation the template writes some that
are meant. There the content's are replaced by marks before the template sees them:

    content    What does <|im_end|> mean?
    shielded   What does {mark 2} mean?
    rendered   <|im_start|>user\\nWhat does {mark 2} mean?<|im_end|>\\n
    encoded    [1]      ... What does < | im _ end | > mean? ...   [2]

All control tokens that the rendered text spells are the template's, and each mark is encoded as the characters that it
stands for.
"""

import re
import secrets
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from lengthen.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["ControlTokenError", "ControlTokens"]


class ControlTokenError(DataError):
    """A text spells a control token that the tokenizer can't encode as plain text; completes "the text ..."."""


class ControlTokens:
    """The control tokens of a tokenizer, and how texts that spell them are encoded.

    Args:
        tokenizer: any of transformers; what `encode` does beyond ordinary encoding needs a fast one.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase"):
        self._tokenizer = tokenizer
        added = {str(token): (number, token) for number, token in tokenizer.added_tokens_decoder.items()}
        control = set(tokenizer.all_special_tokens) | {text for text, (_, token) in added.items() if token.special}
        # The longest first, so that none is taken for the beginning of another.
        self._texts = sorted(filter(None, control), key=lambda text: (-len(text), text))
        self._added = added
        self._numbers: list[Any] = [tokenizer.convert_tokens_to_ids(text) for text in self._texts]
        self._ids = {*self._numbers} - {tokenizer.unk_token_id, None}
        self._pattern = _any_of(self._texts)
        # Few texts hold any, and most have another beginning than "<": looking for that is much faster than a pattern.
        heads = sorted({text[:2] for text in self._texts})
        self._by_head = {head: _any_of([text for text in self._texts if text.startswith(head)]) for head in heads}
        # A random mark for control tokens, which no data can contain on purpose.
        self._nonce = f"Ctl{secrets.token_hex(8)}"
        self._mark = re.compile(rf"{self._nonce}D(\d+)E")
        self._either = re.compile(f"{self._mark.pattern}|({self._pattern.pattern})")
        self._number = {text: number for number, text in enumerate(self._texts)}
        self._checked: dict[str, bool] = {}

    def count(self, text: str) -> int:
        """How often a text spells a control token."""
        return sum(len(pattern.findall(text)) for head, pattern in self._by_head.items() if head in text)

    def check(self, text: str) -> int:
        """As `count`, for a text that will be encoded with `split_special_tokens`.

        Raises:
            ControlTokenError: the tokenizer would make a control token of it even then.
        """
        found = self.count(text)
        for token in set(self._pattern.findall(text)) if found else ():
            if token not in self._checked:
                self._checked[token] = not self._ids.intersection(self._as_text(f"a {token} b"))
            if not self._checked[token]:
                raise ControlTokenError(
                    f"has the control token {token}, which this tokenizer can't encode as ordinary text"
                )
        return found

    def _as_text(self, text: str) -> list[int]:
        if not self._tokenizer.is_fast:
            return self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        # Not by the tokenizer itself, which may be in use by another thread and would be set to it for a moment.
        ids: list[int] = self._copy[0].encode(text, add_special_tokens=False).ids
        return ids

    def shield(self, content: Any) -> Any:
        """Content for a chat template, with marks where it spells control tokens.

        Args:
            content: a text; or lists and objects, in which every text is shielded.

        Raises:
            ControlTokenError: the tokenizer can't encode one as plain text.
        """
        if isinstance(content, list):
            return [self.shield(item) for item in content]
        if isinstance(content, dict):
            return {self.shield(key): self.shield(value) for key, value in content.items()}
        if not isinstance(content, str) or not self.check(content):
            return content
        if not self._tokenizer.is_fast:
            raise ControlTokenError("has a control token, which takes a fast tokenizer to encode as ordinary text")
        return self._pattern.sub(lambda found: f"{self._nonce}D{self._number[found[0]]}E", content)

    def marks(self, text: str) -> int:
        """How many marks a text has."""
        return len(self._mark.findall(text))

    def plain(self, text: str) -> str:
        """A text with the control tokens' own characters in place of the marks."""
        return self._mark.sub(lambda found: self._texts[int(found[1])], text)

    def ids(self, text: str) -> list[int]:
        """As `encode`, without places: for texts without marks, by tokenizers that are not fast too."""
        if self._mark.search(text):
            return self.encode(text)[0]
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def encode(self, text: str) -> tuple[list[int], np.ndarray]:
        """Encode a rendered text: control tokens that it spells are meant, marks are plain text.

        Args:
            text: with the begin token where there is to be one.

        Returns:
            Ids (T,), and where each token starts and ends in `text`, in characters (T, 2). All tokens of a mark end
            where it ends, and begin where it begins.
        """
        if not self._mark.search(text):
            encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            return encoded["input_ids"], np.asarray(encoded["offset_mapping"]).reshape(-1, 2)
        backend, meant = self._copy
        seen, starts, spans, end = "", [], [], 0
        for found in [*self._either.finditer(text), None]:
            start, stop = found.span() if found else (len(text), len(text))
            starts.append(len(seen))
            spans.append((end, start, True))
            seen += text[end:start]
            if found:
                starts.append(len(seen))
                spans.append((start, stop, False))
                seen += self._texts[int(found[1])] if found[1] else self._stand_in(self._number[found[2]])
            end = stop
        encoding = backend.encode(seen, add_special_tokens=False)
        ids = [meant.get(token, token) for token in encoding.ids]
        offsets = np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        first = np.searchsorted(starts, offsets[:, 0], side="right") - 1
        last = np.maximum(np.searchsorted(starts, offsets[:, 1], side="left") - 1, 0)
        places, origins = np.asarray(spans, dtype=np.int64), np.asarray(starts)
        is_text = places[:, 2].astype(bool)
        begins = places[first, 0] + np.where(is_text[first], offsets[:, 0] - origins[first], 0)
        ends = np.where(is_text[last], places[last, 0] + offsets[:, 1] - origins[last], places[last, 1])
        return ids, np.stack([begins, ends], axis=1)

    def _stand_in(self, number: int) -> str:
        return f"{self._nonce}S{number}E"

    @cached_property
    def _copy(self) -> tuple[Any, dict[int, int]]:
        """A copy of the tokenizer to which control tokens are text, and other words mean them; ids by theirs."""
        from tokenizers import AddedToken, Tokenizer

        backend = Tokenizer.from_str(self._tokenizer.backend_tokenizer.to_str())
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True
        flags = [self._added[text][1] if text in self._added else AddedToken(text) for text in self._texts]
        backend.add_tokens(
            [
                AddedToken(self._stand_in(number), lstrip=flag.lstrip, rstrip=flag.rstrip, normalized=False)
                for number, flag in enumerate(flags)
            ]
        )
        # Of the tokens that were just added, each has an id.
        stand_ins: list[Any] = [backend.token_to_id(self._stand_in(i)) for i in range(len(self._texts))]
        return backend, dict(zip(stand_ins, self._numbers, strict=True))


def _any_of(texts: list[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, texts)) or r"(?!)")
