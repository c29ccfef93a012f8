"""A model's answers: the likelihood of the right one, and the one it gives itself.

Shapes: B prompts in a batch, T tokens of their contexts, S of what follows, V vocabulary, E end tokens.
"""

import copy
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lengthen._compat import with_cache
from lengthen.attention.peers import Peers
from lengthen.context import is_length_dependent
from lengthen.decoding.prefill import new_cache, prefill
from lengthen.decoding.shards import continue_shards, read_shard
from lengthen.decoding.stop import eos_token_ids
from lengthen.errors import ModelError
from lengthen.evaluation.prompts import Prompt, Question
from lengthen.head import causal_lm

__all__ = ["ScoredAnswer", "ask", "first_wrong_counts", "greedy_generate", "numbers"]


@dataclass(frozen=True)
class ScoredAnswer:
    """A model's answer to one question.

    Attributes:
        losses: of the right answer's scored tokens, each given those before it (teacher forcing), in nats.
        likeliest: for each of them, whether it is the model's most likely token.
        items: how many of them belong to each thing that was asked for.
        text: the model's own greedy answer; None where none was generated.
    """

    losses: tuple[float, ...]
    likeliest: tuple[bool, ...]
    items: tuple[int, ...]
    text: str | None = None

    @property
    def nats(self) -> float:
        """The mean loss of the right answer's tokens."""
        return sum(self.losses) / len(self.losses)

    @property
    def right(self) -> float:
        """The share of its tokens that are the most likely ones."""
        return sum(self.likeliest) / len(self.likeliest)

    @property
    def exact(self) -> bool:
        """Whether all are, so that greedy decoding begins with the right answer."""
        return all(self.likeliest)

    @property
    def found(self) -> float:
        """The share of the things asked for whose tokens are all the most likely ones."""
        starts = [sum(self.items[:i]) for i in range(len(self.items))]
        return sum(all(self.likeliest[at : at + n]) for at, n in zip(starts, self.items, strict=True)) / len(starts)

    @property
    def first_wrong(self) -> int | None:
        """The place in the answer of the first token that is not the most likely one."""
        return None if self.exact else self.likeliest.index(False)


def first_wrong_counts(answers: Sequence[ScoredAnswer]) -> list[int]:
    """For each place in an answer, how many answers have their first wrong token there.

    Args:
        answers: at least one; the list is as long as the longest.
    """
    wrong = [answer.first_wrong for answer in answers]
    return [wrong.count(place) for place in range(max(len(answer.losses) for answer in answers))]


@torch.inference_mode()
def ask(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    max_new_tokens: int | None = None,
    peers: Peers | None = None,
) -> list[list[ScoredAnswer]]:
    """Read each prompt's context once and ask all of its questions of the key/value cache.

    Each answer is what it would be after a prefill of its own. Long contexts are read in chunks
    (`lengthen.decoding.prefill`). A model whose RoPE depends on the length of its input reads all of it anew for each
    question: what it computed for a shorter input is not what it computes for a longer one.

    Args:
        model: a causal language model of transformers, or a PEFT model around one, in evaluation mode.
        tokenizer: its tokenizer.
        prompts: B of them, with equally many questions and contexts of about one length; they are run together.
        max_new_tokens: also generate answers of at most this many tokens, greedily, ended by an end token.
        peers: processes that read the contexts together, a shard of the tokens each, and call this with the same
            prompts; None for this process alone.

    Returns:
        For each prompt, an answer to each of its questions.

    Raises:
        ModelError: the logits are not numbers, or the contexts need chunks and the model can't be read so.
    """
    shared = min(len(prompt.context) for prompt in prompts)
    reader = _Reader(model, torch.tensor([prompt.context[:shared] for prompt in prompts]), peers)
    found: list[list[ScoredAnswer]] = [[] for _ in prompts]
    for place in range(len(prompts[0].questions)):
        questions = [prompt.questions[place] for prompt in prompts]
        before = [prompt.context[shared:] + q.ids for prompt, q in zip(prompts, questions, strict=True)]
        texts = None if max_new_tokens is None else _decoded(reader, tokenizer, before, max_new_tokens)
        for row, (losses, likeliest) in enumerate(_teacher_forced(reader, before, questions)):
            items = tuple(map(len, questions[row].items))
            found[row].append(ScoredAnswer(losses, likeliest, items, None if texts is None else texts[row]))
    return found


@torch.inference_mode()
def greedy_generate(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[str]:
    """Continue prompts of one length greedily and return the new text of each.

    The likeliest token is taken each time, whatever a model's generation config says of sampling or of penalties on
    repetition: an answer is a repetition. Long prompts are read in chunks (`lengthen.decoding.prefill`).

    Args:
        model: a causal language model of transformers, or a PEFT model around one, in evaluation mode.
        tokenizer: its tokenizer.
        prompts: B lists of T token ids, T at least 2.
        max_new_tokens: at most this many tokens each; an end token ends an answer before.

    Returns:
        B texts without special tokens.

    Raises:
        ModelError: the logits are not numbers, or the prompts need chunks and the model can't be read so.
    """
    ids_BT = torch.tensor([list(prompt) for prompt in prompts])
    assert ids_BT.shape[1] >= 2, ids_BT.shape
    reader = _Reader(model, ids_BT[:, :-1])
    return _decoded(reader, tokenizer, ids_BT[:, -1:].tolist(), max_new_tokens)


def numbers(text: str) -> list[str]:
    """The runs of ASCII digits in a text. Answers are compared as these: tokenizers cut one number in many ways."""
    return re.findall(r"[0-9]+", text)


class _Reader:
    """Contexts that are read once, and continued again and again.

    Args:
        model: as in `ask`.
        context_BT: token ids.
        peers: processes that read them together, where they have a token for each.
    """

    def __init__(self, model: Any, context_BT: torch.Tensor, peers: Peers | None = None):
        self.model, self.context_BT = model, context_BT.to(causal_lm(model).device)
        length = context_BT.shape[1]
        self._shard = peers.shard(length) if peers is not None and length >= peers.shortest else None
        self._cache = None
        if self._shard is not None:
            self._cache = new_cache(model)
            read_shard(model, self.context_BT, self._shard, self._cache)
        elif not is_length_dependent(causal_lm(model).config):
            self._cache = prefill(model, self.context_BT)
        self._length = 0 if self._cache is None else self._cache.get_seq_length()
        self._can_crop = self._cache is not None and not (any(self._cache.is_sliding) or any(self._cache.is_linear))

    def logits(self, rest: Sequence[Sequence[int]]) -> torch.Tensor:
        """The logits after each token of what follows each context, (B, S, V); shorter rows are padded on the right."""
        rest_BS = _padded(rest, self.context_BT.device)
        if self._cache is None:
            whole_BT = torch.cat([self.context_BT, rest_BS], dim=1)
            logits_BSV = self.model(input_ids=whole_BT, use_cache=False, logits_to_keep=rest_BS.shape[1]).logits
        else:
            logits_BSV = self.read(rest_BS, self.continued())
            self._rewind()
        return _checked(self.model, logits_BSV)

    def read(self, ids_BS: torch.Tensor, cache: Any) -> torch.Tensor:
        """The logits after each of some tokens, (B, S, V), which are added to a cache from `continued`."""
        if self._shard is not None:
            return continue_shards(self.model, ids_BS, self._shard, cache)
        logits_BSV: torch.Tensor = self.model(input_ids=ids_BS, **with_cache(cache)).logits
        return logits_BSV

    def continued(self) -> Any:
        """The cache of the contexts, to be added to; what was added before is gone."""
        self._rewind()
        if self._cache is None:
            return prefill(self.model, self.context_BT)
        return self._cache if self._can_crop else copy.deepcopy(self._cache)

    def _rewind(self) -> None:
        if self._cache is not None and self._can_crop:
            self._cache.crop(self._length - self._cache.get_seq_length())


def _teacher_forced(
    reader: _Reader, before: Sequence[list[int]], questions: Sequence[Question]
) -> list[tuple[tuple[float, ...], tuple[bool, ...]]]:
    """For each row, the losses of the answer's scored tokens, and whether each is the likeliest."""
    rows = [ids + question.answer[:-1] for ids, question in zip(before, questions, strict=True)]
    logits_BSV = reader.logits(rows)
    found = []
    for logits_SV, ids, question in zip(logits_BSV, before, questions, strict=True):
        places = [len(ids) - 1 + place for item in question.items for place in item]
        own = logits_SV[places].float()
        best, log_sums = own.argmax(-1).tolist(), own.logsumexp(-1)
        accepted = [own[i, tokens].logsumexp(-1) for i, tokens in enumerate(question.accepted)]
        losses = (log_sums - torch.stack(accepted)).tolist()
        found.append(
            (tuple(losses), tuple(token in right for token, right in zip(best, question.accepted, strict=True)))
        )
    return found


def _decoded(reader: _Reader, tokenizer: Any, rest: Sequence[Sequence[int]], max_new_tokens: int) -> list[str]:
    """Continue each context and what follows it greedily, and return the new texts."""
    ends = set(eos_token_ids(reader.model, tokenizer))
    rows_by_length: dict[int, list[int]] = {}
    for row, ids in enumerate(rest):
        rows_by_length.setdefault(len(ids), []).append(row)
    texts = [""] * len(rest)
    # Rows of one length run together: padding between a context and its answer would shorten a sliding window.
    for rows in rows_by_length.values():
        cache = reader.continued()
        if len(rows) < len(rest):
            cache = copy.deepcopy(cache)
            cache.batch_select_indices(torch.tensor(rows, device=reader.context_BT.device))
        ids_BS = _padded([rest[row] for row in rows], reader.context_BT.device)
        for row, new in zip(rows, _greedy(reader, cache, ids_BS, max_new_tokens, ends), strict=True):
            texts[row] = tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return texts


def _greedy(
    reader: _Reader, cache: Any, ids_BS: torch.Tensor, max_new_tokens: int, ends: Collection[int]
) -> Iterator[list[int]]:
    """For each row, the likeliest tokens one after another, up to an end token."""
    new: list[torch.Tensor] = []
    ended_B1 = torch.zeros_like(ids_BS[:, :1], dtype=torch.bool)
    ends_E = torch.tensor(sorted(ends), device=ids_BS.device, dtype=torch.long)
    while len(new) < max_new_tokens and not ended_B1.all():
        logits_BV = reader.read(ids_BS, cache)[:, -1]
        ids_BS = _checked(reader.model, logits_BV).argmax(-1, keepdim=True)
        ended_B1 |= torch.isin(ids_BS, ends_E)
        new.append(ids_BS)
    for row in torch.cat(new, dim=1).tolist():
        yield row[: next((i for i, token in enumerate(row) if token in ends), len(row))]


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    """(B, S) ids; what pads a row on the right is seen by nothing before it."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[row[-1]] * (longest - len(row))] for row in rows], device=device)


def _checked(model: Any, logits: torch.Tensor) -> torch.Tensor:
    if logits.isnan().any():
        raise ModelError(f"the model's logits are not numbers (dtype {model.dtype}); load it in bfloat16 or float32")
    return logits
