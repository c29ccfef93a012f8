"""Train the base model that ships with lengthen as alias `tiny`: a 5 M-parameter Llama with a context of 256 tokens.

    python scripts/pretrain_tiny.py                  # writes src/lengthen/assets/tiny; --device cuda takes a minute
    python scripts/pretrain_tiny.py --measure-only   # measures the shipped weights again and rewrites the card

The data is the Python standard library of the interpreter that runs this script (train split of
`lengthen.data.stdlib`). Embeddings are untied, so that training "embeddings" means what it means in LLaMA.

A model this small learns words and grammar from these, but not to look back: one trained on windows of documents alone
gained 2% from 128 to 256 tokens of context, and would have no use for a longer one. Three things mend that. The weights
start with an induction circuit (arXiv 2209.11895), which finds the last place where the current token stood and copies
what followed. Some windows make it worth keeping: repeated random tokens at first, then windows with their vocabulary
shuffled, each token replaced by another throughout the window. And in half of the windows, values are given to names in
the code and asked for later on (scripts/python_lookups.py).
"""

import argparse
import json
import platform
import random
import shlex
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lengthen.data.stdlib import stdlib_documents
from lengthen.evaluation import perplexity
from lengthen.quickstart import held_out_documents
from python_lookups import Lookups

OUT = Path(__file__).parent.parent / "src" / "lengthen" / "assets" / "tiny"
CONTEXT = 256
VOCABULARY = 4096
BATCH = 64
SHUFFLED = 0.15  # of the windows of documents
LOOKUPS = 0.5  # of all windows
# (what, steps, peak learning rate), one after the other, each with an optimizer of its own.
ROUNDS = (("repeats", 150, 7e-4), ("documents and look-ups", 2500, 2e-3))
BOS = "<|endoftext|>"


CARD = """---
license: apache-2.0
library_name: transformers
tags: [lengthen, test-model]
---

# tiny: a 256-token base to be extended

A Llama of {parameters:,} parameters (4 layers, hidden size 256, 8 query and 4 key/value heads, untied embeddings,
byte-level BPE of 4,096 tokens) that was trained on windows of 256 tokens and breaks beyond them. It is what
`lengthen quickstart` extends. It knows Python's standard library and nothing else, and is of no other use.

Data: the standard library of Python {python}, {documents} files and {tokens:,} tokens of the train split (a hash of
each file's path decides; tests, encodings, pydoc_data, idlelib, lib2to3, ensurepip and installed packages left out).
It started with an induction circuit; half of the windows ask for values that were given to names before, and in 15% of
the others the vocabulary was shuffled, so that it learned to use its context (scripts/pretrain_tiny.py).

Perplexity on the first 2,048 tokens of 16 held-out files, the same tokens at each context, stride context/2, float32:

| context | 128 | 256 | 512 | 1024 | 2048 |
|---|---|---|---|---|---|
| perplexity | {p128:.1f} | {p256:.1f} | {p512:.1f} | {p1024:.1f} | {p2048:.1f} |

Made by `{command}` in {seconds:,} s, {tokens_seen:,} tokens.
{note}Versions: torch {torch}, transformers {transformers}, tokenizers {tokenizers}.
"""


def read(split: str) -> list[str]:
    return [path.read_text(encoding="utf-8", errors="ignore") for path in stdlib_documents(split)]


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE, each digit by itself; encoding a document puts BOS before it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[BOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=BOS, pad_token=BOS, model_max_length=CONTEXT
    )


def build_model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


@torch.no_grad()
def wire_induction(model: LlamaForCausalLM) -> None:
    """Set every other head of the first two layers up as an induction circuit; all other weights stay random.

    Heads of layer 0 look at the previous token and write its embedding into directions of their own. Heads of layer 1
    look for the current token in those directions, and so find the tokens that came after it earlier; these they add
    to the output, which starts as the transposed input embedding.
    """
    hidden, size = model.config.hidden_size, model.config.head_dim
    theta = 10000.0 ** (-torch.arange(size // 2) / (size // 2))
    # Rotary pairs that hardly turn within the context, so that matching tokens does not depend on their distance.
    slow = torch.nonzero((theta < 0.012).repeat(2))[:, 0]
    embedding, deviation = model.model.embed_tokens.weight, model.config.initializer_range
    embedding[:, 0] = 8 * deviation  # the same for all tokens, for attention that does not ask which token
    model.lm_head.weight.copy_(embedding)
    model.lm_head.weight[:, 0] = 0
    pairs = model.config.num_key_value_heads
    directions = torch.linalg.qr(torch.randn(hidden - 1, hidden - 1)).Q
    directions = torch.cat([torch.zeros(1, hidden - 1), directions]).T  # orthonormal rows, none along dimension 0
    token, previous = directions[: 2 * pairs * len(slow)].view(2, pairs, len(slow), hidden)
    first, second = (layer.self_attn for layer in model.model.layers[:2])
    for layer in model.model.layers:
        layer.mlp.down_proj.weight *= 0.2
    for pair in range(pairs):
        key = slice(pair * size, (pair + 1) * size)
        query = slice(2 * pair * size, (2 * pair + 1) * size)
        for attention in (first, second):
            attention.q_proj.weight[query] = attention.k_proj.weight[key] = 0
        first.v_proj.weight[key] = 0
        first.o_proj.weight[:, query] = 0
        # Rotated by one position, the query meets the key: the score peaks at a distance of one.
        first.q_proj.weight[query, 0] = torch.cat([theta.cos(), -theta.sin()])
        first.k_proj.weight[key, 0] = torch.cat([torch.ones(size // 2), torch.zeros(size // 2)])
        first.v_proj.weight[pair * size + slow] = token[pair]
        first.o_proj.weight[:, 2 * pair * size + slow] = 3 * deviation * previous[pair].T
        second.q_proj.weight[2 * pair * size + slow] = 4 * token[pair]
        second.k_proj.weight[pair * size + slow] = 4 * previous[pair]
        copied = torch.linalg.qr(torch.randn(hidden, size)).Q
        second.v_proj.weight[key] = copied.T
        second.o_proj.weight[:, query] = 3 * deviation * copied


class Repeats(IterableDataset):
    """Sequences of 4 to 16 random tokens, each over and over: (T,) ids, weights, and what they are."""

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        rng = np.random.default_rng(torch.initial_seed())
        length = CONTEXT // 4
        while True:
            period = rng.integers(1, VOCABULARY, rng.integers(4, 17))
            yield np.tile(period, length // len(period) + 1)[:length], np.ones(length, dtype=np.float32), 1


class Windows(IterableDataset):
    """Random windows of documents, drawn by length, some with their vocabulary shuffled; and windows of look-ups."""

    kinds = ("plain", "shuffled", "look-ups")

    def __init__(self, streams: list[np.ndarray], lookups: Lookups):
        self._streams, self._lookups = streams, lookups

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        rng = np.random.default_rng(torch.initial_seed() % 2**32)  # another one in each worker
        draw = random.Random(torch.initial_seed())
        lengths = np.array([len(stream) for stream in self._streams], dtype=np.float64)
        while True:
            if rng.random() < LOOKUPS:
                made = self._lookups.window(draw)
                yield made.ids, made.weights, 2
                continue
            stream = self._streams[rng.choice(len(self._streams), p=lengths / lengths.sum())]
            start = rng.integers(0, len(stream) - CONTEXT + 1)
            window = stream[start : start + CONTEXT]
            shuffled = rng.random() < SHUFFLED
            yield (
                rng.permutation(VOCABULARY)[window] if shuffled else window,
                np.ones(CONTEXT, np.float32),
                int(shuffled),
            )


def train(
    model: LlamaForCausalLM, data: IterableDataset, batch: int, steps: int, peak: float, device: str, workers: int
) -> None:
    """One round: warm-up, a plateau, decay over the last 60% of the steps."""
    loader = iter(
        DataLoader(data, batch, num_workers=workers, pin_memory=device == "cuda", persistent_workers=workers > 0)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    started = time.time()
    model.train()
    for step in range(1, steps + 1):
        ids, weights, kinds = (each.to(device, non_blocking=True) for each in next(loader))
        for group in optimizer.param_groups:
            group["lr"] = peak * min(step / 50, 1, (steps - step + 1) / (0.6 * steps))
        with torch.autocast(device, torch.bfloat16):
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1)
        losses = cross_entropy(logits.float(), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1)
        weights = weights[:, 1:]
        ((losses * weights).sum() / weights.sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == steps:
            # Of look-ups, what is asked for.
            counted = torch.where(kinds[:, None] == 2, weights == weights.max(), weights > 0)
            mean = (losses.detach() * counted).sum(1) / counted.sum(1)
            shown = {kind: round(mean[kinds == kind].mean().item(), 3) for kind in kinds.unique().tolist()}
            print(f"step {step}  loss by kind {shown}  {time.time() - started:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--workers", type=int, default=1, help="processes that make windows")
    parser.add_argument("--steps", type=int, help="of the last round, for a trial")
    parser.add_argument("--measure-only", action="store_true")
    arguments = parser.parse_args()
    if not arguments.measure_only:
        pretrain(arguments)
    write_card(arguments.out)


def pretrain(arguments: argparse.Namespace) -> None:
    out, device = arguments.out, arguments.device
    torch.manual_seed(0)
    started = time.time()
    texts = read("train")
    tokenizer = train_tokenizer(texts)
    streams = [np.array(ids) for ids in tokenizer(texts, verbose=False)["input_ids"]]
    streams = [stream for stream in streams if len(stream) >= CONTEXT]
    tokens = sum(map(len, streams))
    print(f"{len(streams)} documents, {tokens:,} tokens", flush=True)
    model = build_model()
    wire_induction(model)
    model.to(device)
    for what, steps, peak in ROUNDS:
        data = Repeats() if what == "repeats" else Windows(streams, _lookups(tokenizer, streams))
        steps = steps if what == "repeats" else arguments.steps or steps
        train(model, data, BATCH, steps, peak, device, arguments.workers)
    model.to("cpu", torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    record = {
        "command": shlex.join(["python", *sys.argv]),
        "seconds": round(time.time() - started),
        "documents": len(streams),
        "tokens": tokens,
        "tokens_seen": sum(steps for _, steps, _ in ROUNDS) * BATCH * CONTEXT,
        "parameters": model.num_parameters(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
    }
    (out / "pretraining.json").write_text(json.dumps(record, indent=1) + "\n")


def _lookups(tokenizer: PreTrainedTokenizerFast, streams: list[np.ndarray]) -> Lookups:
    breaks = np.array([tokenizer.decode([token]).startswith("\n") for token in range(len(tokenizer))])
    return Lookups(partial(tokenizer.encode, add_special_tokens=False), streams, breaks, CONTEXT)


def write_card(folder: Path) -> None:
    """Measure the weights in `folder` on the quickstart's held-out documents and write the model card."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    documents = held_out_documents(str(folder))
    measured = {context: perplexity(model, documents, context).perplexity for context in (128, 256, 512, 1024, 2048)}
    record = json.loads((folder / "pretraining.json").read_text())
    record["perplexity"] = {str(context): round(value, 2) for context, value in measured.items()}
    (folder / "pretraining.json").write_text(json.dumps(record, indent=1) + "\n")
    (folder / "README.md").write_text(
        CARD.format(**{"note": "", **record}, **{f"p{context}": value for context, value in measured.items()})
    )
    print(f"perplexity {record['perplexity']}; 2048 against 256: {measured[2048] / measured[256]:.2f}")


if __name__ == "__main__":
    main()
