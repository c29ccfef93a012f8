"""Prompts of an exact number of tokens, and a model's greedy answers to them.

Shapes: B prompts in a batch, T tokens of each, V vocabulary.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

from lengthen._compat import with_cache
from lengthen.errors import DataError, ModelError
from lengthen.head import causal_lm
from lengthen.inference.generation import end_tokens
from lengthen.inference.prefill import prefill

__all__ = ["answers", "encode", "fit", "numbers"]

_TRIES = 16


def encode(tokenizer: Any, text: str) -> list[int]:
    """The token ids of a prompt, with what the tokenizer puts before a text (BOS) and without what it puts behind.

    An end token behind a prompt would tell the model that there is nothing to answer.
    """
    ids = list(tokenizer(text, verbose=False)["input_ids"])
    while ids and ids[-1] in tokenizer.all_special_ids:
        ids.pop()
    return ids


def fit(tokenizer: Any, builds: Sequence[Callable[[int], str]], tokens: int, answer_tokens: int) -> list[int]:
    """Make a prompt that, with room for its answer, is exactly `tokens` long, and return its ids.

    The ids are those that the tokenizer makes of one text; nothing is glued together from pieces. So the length is
    found by trying: each miss says by how much to grow or shrink.

    Args:
        tokenizer: of the model.
        builds: from a size to the prompt; size 0 is the shortest, and one more adds about one token (see
            `Haystack.take`). Some tokenizers leave lengths out (a full stop and a line end as one token, a character
            as three); then the next of these is tried, which should cut its text at other places.
        tokens: the length of prompt and answer, BOS included where the tokenizer adds it.
        answer_tokens: tokens kept free for the answer, so that it has its place inside the context.

    Returns:
        ``tokens - answer_tokens`` ids.

    Raises:
        DataError: even size 0 is too long (the message says how much is needed), or no size tried gives exactly this
            length (it says how near they came).
    """
    wanted = tokens - answer_tokens
    seen: list[int] = []
    for build in builds:
        lengths: dict[int, int] = {}
        size = 0
        while len(lengths) < _TRIES:
            ids = encode(tokenizer, build(size))
            if len(ids) == wanted:
                return ids
            if size == 0 and len(ids) > wanted:
                raise DataError(
                    f"a length of {tokens} tokens is too short: the prompt without filler has {len(ids)} and its "
                    f"answer gets {answer_tokens}; use at least {len(ids) + answer_tokens}"
                )
            lengths[size] = len(ids)
            size = _next_size(lengths, wanted)
        seen += lengths.values()
    nearest = min(seen, key=lambda length: abs(length - wanted))
    raise DataError(
        f"this tokenizer makes no prompt of exactly {wanted} tokens here (length {tokens} less {answer_tokens} for the "
        f"answer); the nearest has {nearest}; choose another length, such as {nearest + answer_tokens}"
    )


def _next_size(lengths: dict[int, int], wanted: int) -> int:
    """What to try after these sizes, none of which gave the wanted length."""
    short = max(size for size, length in lengths.items() if length < wanted)
    long = min((size for size, length in lengths.items() if length > wanted), default=None)
    guess = short + wanted - lengths[short]
    if long is None or short < guess < long:
        return guess
    if long - short > 1:
        return (short + long) // 2
    # Nothing lies between them; but text cut elsewhere nearby may fall into tokens otherwise.
    nearby = range(max(0, short - _TRIES), short + _TRIES + 1)
    return min((size for size in nearby if size not in lengths), key=lambda size: abs(size - short))


@torch.inference_mode()
def answers(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[str]:
    """Continue prompts of one length greedily and return the new text of each.

    The likeliest token is taken each time, whatever a model's generation config says of sampling or of penalties on
    repetition: an answer is a repetition. Long prompts are read in chunks (`lengthen.inference.prefill`).

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
    ids_BT = torch.tensor([list(prompt) for prompt in prompts]).to(causal_lm(model).device)
    assert ids_BT.shape[1] >= 2, ids_BT.shape
    ends = torch.tensor(sorted(end_tokens(model, tokenizer)), device=ids_BT.device, dtype=torch.long)
    cache = prefill(model, ids_BT[:, :-1])
    last_B1, ended_B1 = ids_BT[:, -1:], torch.zeros_like(ids_BT[:, -1:], dtype=torch.bool)
    new: list[torch.Tensor] = []
    while len(new) < max_new_tokens and not ended_B1.all():
        logits_BV = model(input_ids=last_B1, **with_cache(cache)).logits[:, -1]
        if logits_BV.isnan().any():
            raise ModelError(
                f"the model's logits are not numbers (dtype {model.dtype}); load it in bfloat16 or float32"
            )
        last_B1 = logits_BV.argmax(-1, keepdim=True)
        ended_B1 |= torch.isin(last_B1, ends)
        new.append(last_B1)
    rows = torch.cat(new, dim=1).tolist()
    return [_decoded(tokenizer, row, set(ends.tolist())) for row in rows]


def _decoded(tokenizer: Any, ids: list[int], ends: set[int]) -> str:
    kept = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    return tokenizer.decode(ids[:kept], skip_special_tokens=True, clean_up_tokenization_spaces=False)


def numbers(text: str) -> list[str]:
    """The runs of ASCII digits in a text. Answers are compared as these: tokenizers cut one number in many ways."""
    return re.findall(r"[0-9]+", text)
