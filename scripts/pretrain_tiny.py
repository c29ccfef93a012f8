"""Train the base model that ships with lengthen as alias `tiny`: a 5 M-parameter Llama with a context of 256 tokens.

    python scripts/pretrain_tiny.py                  # writes src/lengthen/assets/tiny; --device cuda takes a minute
    python scripts/pretrain_tiny.py --start FOLDER   # goes on from weights, also from those of another tokenizer
    python scripts/pretrain_tiny.py --measure-only   # measures the shipped weights again and rewrites the card

The data is the Python standard library of the interpreter that runs this script (train split of
`lengthen.data.stdlib`). Embeddings are untied, so that training "embeddings" means what it means in LLaMA.

A model this small learns words and grammar from these, but not to look back: one trained on windows of documents alone
gained 2% from 128 to 256 tokens of context, and would have no use for a longer one. So the weights start with an
induction circuit (arXiv 2209.11895), which finds the last place where the current token stood and copies what followed,
and most windows ask to look back: for repeated random tokens, for documents with their vocabulary shuffled (each token
replaced by another throughout the window), and for values that were given to names (`lengthen.data.retrieval.python`),
in documents or alone. Alone, facts and many questions about each, is what teaches look-ups: with a question or three
in a window of text, 300 steps taught next to nothing. Up to three digits are one token, so that most values are one or
two.
"""

import argparse
import json
import math
import platform
import random
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lengthen.data.retrieval.documents import SurroundingText
from lengthen.data.retrieval.episode import Episode, Fact, Passages, question
from lengthen.data.retrieval.python import WORDS, python
from lengthen.data.retrieval.source import Retrieval, Settings
from lengthen.data.retrieval.vocabulary import Draw
from lengthen.data.stdlib import STDLIB, stdlib_documents
from lengthen.data.tokens import default_cache, load_tokens
from lengthen.evaluation import perplexity
from lengthen.evaluation.answers import ask
from lengthen.evaluation.compare import Probe, copy_probe, needle_probe
from lengthen.evaluation.haystack import Haystack
from lengthen.evaluation.retrieval.needle import DEPTHS
from lengthen.extension.questions import spread_documents

OUT = Path(__file__).parent.parent / "src" / "lengthen" / "assets" / "tiny"
CONTEXT = 256
VOCABULARY = 5120
BATCH = 16
LOOKUP_WINDOWS = 8000  # different ones: they take time to make
LOOKUP_PROMPTS = 100  # of five questions: with 20, the standard error was two and a half percent
# (what, tokens of a window, steps, peak learning rate), one after the other, each with an optimizer of its own; shares
# of the kinds of windows by what they are (see `Windows.kinds`). The first three teach to look back, the last one all.
ROUNDS = (
    ("repeats", CONTEXT // 4, 600, 7e-4),
    ("short", CONTEXT // 2, 800, 1e-3),
    ("look back", CONTEXT, 1500, 1e-3),
    ("all", CONTEXT, 3500, 1e-3),
)
SHARES = {
    "repeats": (0, 1, 0, 0),
    "short": (0.15, 0.15, 0, 0.7),
    "look back": (0.2, 0.1, 0.4, 0.3),
    "all": (0.45, 0.1, 0.3, 0.15),
}
BOS = "<|endoftext|>"


CARD = """---
license: apache-2.0
library_name: transformers
tags: [lengthen, test-model]
---

# tiny: a 256-token base to be extended

A Llama of {parameters:,} parameters (4 layers, hidden size 256, 8 query and 4 key/value heads, untied embeddings,
byte-level BPE of {vocabulary:,} tokens, up to three digits always one) that was trained on windows of 256 tokens and
breaks beyond them. It is what `lengthen quickstart` extends. It knows Python's standard library, and looks up
values that code gave to names; it is of no other use.

Data: the standard library of Python {python}, {documents} files and {tokens:,} tokens of the train split (a hash of
each file's path decides; tests, encodings, pydoc_data, idlelib, lib2to3, ensurepip and installed packages left out).
{shares}. The forms in which it is
asked below, and the names, are in none of them (scripts/pretrain_tiny.py).

Look-ups found (`numbers["port"] = 41235` hidden at five depths of held-out source code, `assert numbers["port"] ==`
asked at the end, each number whole; {asked} at each length), and perplexity on the first 2,048 tokens of 16 held-out
files, the same tokens at each context, stride context/2, all in float32:

| tokens | {contexts} |
|---|{rule}
| look-ups found | {found} |
| perplexity | {perplexities} |

64 random tokens and once more: it copies {copied:.0%} of them. Numbers of 5, 8 and 12 digits after examples:
{digits:.0%} copied whole.

Made by `{command}` in {seconds:,} s, {tokens_seen:,} tokens.
{note}Versions: torch {torch}, transformers {transformers}, tokenizers {tokenizers}.
"""


def read(split: str) -> list[str]:
    return [path.read_text(encoding="utf-8", errors="ignore") for path in stdlib_documents(split)]


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE, up to three digits always one token; encoding a document puts BOS before it."""
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Split(Regex(r"\d{1,3}"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    numbers = [f"{number:0{length}} " for length in (2, 3) for number in range(10**length)]
    texts = [*texts, *(500 * number for number in numbers)]
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


Window = tuple[np.ndarray, np.ndarray, int]
"""Token ids and loss weights, (T,) each, and which of `Windows.kinds` it is."""


def repeat(rng: np.random.Generator, chosen: np.ndarray, period: int, tokens: int) -> Window:
    """So many tokens of the chosen ones, over and over; what comes the first time counts little."""
    ids = np.resize(rng.choice(chosen, period), tokens)
    return ids, np.where(np.arange(tokens) < period, 0.05, 1).astype(np.float32), 1


class Windows(IterableDataset):
    """What `tiny` is trained on.

    Args:
        streams: token ids of documents.
        lookups: makes windows of them with look-ups.
        tokenizer: of all.
        tokens: T, of a window.
        shares: of the kinds.
    """

    kinds = ("documents", "shuffled or repeated", "look-ups in documents", "look-ups alone")

    def __init__(
        self,
        streams: list[np.ndarray],
        lookups: Retrieval,
        tokenizer: PreTrainedTokenizerFast,
        tokens: int,
        shares: Sequence[float],
    ):
        self._tokens, self._shares = tokens, shares
        self._streams = streams
        self._lengths = np.array([len(stream) for stream in streams], dtype=np.float64)
        self._lookups = lru_cache(maxsize=None)(lambda index: lookups.sequences(index)[0])
        self._encode = partial(tokenizer.encode, add_special_tokens=False)
        vocabulary = tokenizer.get_vocab()
        self._numbers = np.array([row for token, row in vocabulary.items() if token.isdigit()])

    def __iter__(self) -> Iterator[Window]:
        rng = np.random.default_rng(torch.initial_seed() % 2**32)  # another one in each worker
        draw = random.Random(torch.initial_seed())
        while True:
            kind = draw.choices(range(4), self._shares)[0]
            if kind == 0:
                yield self._document(rng), np.ones(self._tokens, np.float32), kind
            elif kind == 1 and draw.random() < 0.4:
                yield rng.permutation(VOCABULARY)[self._document(rng)], np.ones(self._tokens, np.float32), kind
            elif kind == 1:
                chosen = self._numbers if draw.random() < 0.5 else np.arange(1, VOCABULARY)
                yield repeat(rng, chosen, rng.integers(4, self._tokens // 2), self._tokens)
            elif kind == 2:
                made = self._lookups(draw.randrange(LOOKUP_WINDOWS))
                yield made.input_ids, np.where(made.weights == 0, np.float32(0.2), made.weights), kind
            else:
                yield *self._alone(draw), kind

    def _document(self, rng: np.random.Generator) -> np.ndarray:
        stream = self._streams[rng.choice(len(self._streams), p=self._lengths / self._lengths.sum())]
        start = rng.integers(0, len(stream) - self._tokens + 1)
        return stream[start : start + self._tokens]

    def _alone(self, rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
        """Facts, and questions about them until the window is full: many answers in little text."""
        while True:
            made = rng.choices((_made_up, python, _twice), (0.4, 0.4, 0.2))[0]
            episode = made(Draw(rng), rng.randrange(2, self._tokens // 24), lambda _least, _most: None)
            pieces = [(f"{fact.text}\n", 0.2) for fact in episode.facts]
            for asked in rng.choices(episode.questions, k=self._tokens // 5):
                pieces += [(asked.prompt, 0.2), (asked.trained, 4.0)]
            ids: list[int] = []
            weights: list[float] = []
            for text, weight in pieces:
                tokens = self._encode(text)
                ids += tokens
                weights += [weight] * len(tokens)
            if len(ids) >= self._tokens:
                return np.array(ids[: self._tokens], dtype=np.int64), np.array(
                    weights[: self._tokens], dtype=np.float32
                )


# What can stand before and after a name; any statement with any question, but for the form that is measured.
_BEFORE = ("", "", "self.", "x['", 'x["', 'get("', "set('", "<", "--", "# ", "def ", "print(", "the ", "'", '"', "(")
_AFTER = (
    " = ", ": ", " -> ", " == ", " is ", "', ", '", ', "]: ", "'] = ", '"]: ', "') == ", "=", ">", ")  # ", ", ", " ",
)  # fmt: skip


def _made_up(draw: Draw, count: int, _passages: Passages) -> Episode:
    """Look-ups in made-up forms: what is to be learned is to find names, not forms."""
    rng = draw.rng
    kinds = (lambda: rng.choice(WORDS), draw.invented, lambda: "_".join(rng.choices(WORDS, k=2)))
    names = [draw.fresh(lambda: rng.choice(kinds)()) for _ in range(count)]
    values = [draw.fresh(lambda: str(rng.randrange(10 ** rng.choice((2, 3, 6))))) for _ in range(count)]
    before, after = rng.choice(_BEFORE), rng.choice(_AFTER)
    asked = [
        question(f"{rng.choice(_BEFORE)}{{k}}{rng.choice(_AFTER)}{{v}}", value, k=name)
        for name, value in zip(names, values, strict=True)
    ]
    facts = [Fact(f"{before}{name}{after}{value}") for name, value in zip(names, values, strict=True)]
    return Episode("made up", tuple(facts), tuple(asked), ())


def _twice(draw: Draw, count: int, _passages: Passages) -> Episode:
    """Numbers and words that are written twice, without any facts about them."""
    rng = draw.rng
    make = rng.choice((lambda: str(rng.randrange(10 ** rng.choice((2, 3, 6, 7, 9, 10)))), draw.invented))
    form = rng.choice(("{k}: {v}", "{k} -> {v}", "{k} == {v}", "{k}, {v}", "{k} is {v}", "# {k} {v}", "({k}, {v})"))
    return Episode("twice", (), tuple(question(form, each, k=each) for each in draw.several(make, 4 * count)), ())


def train(
    model: LlamaForCausalLM, data: IterableDataset, steps: int, peak: float, arguments: argparse.Namespace
) -> int:
    """One round: warm-up, a plateau, decay over the last 60% of the steps or, where they are fewer, of the minutes."""
    device, workers = arguments.device, arguments.workers
    loader = iter(
        DataLoader(data, BATCH, num_workers=workers, pin_memory=device == "cuda", persistent_workers=workers > 0)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    started, answers, done = time.time(), [0, 0], 0
    model.train()
    for step in range(1, steps + 1):
        left = 1 - max((step - 1) / steps, (time.time() - started) / (60 * arguments.minutes))
        if left <= 0:
            break
        ids, weights, kinds = (each.to(device, non_blocking=True) for each in next(loader))
        for group in optimizer.param_groups:
            group["lr"] = peak * min(step / 50, 1, left / 0.6)
        with torch.autocast(device, torch.bfloat16):
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1)
        losses = cross_entropy(logits.float(), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1)
        weights = weights[:, 1:]
        ((losses * weights).sum() / weights.sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        found = _found(logits.detach().argmax(-1).view(losses.shape), ids, weights, kinds)
        answers = [before + now for before, now in zip(answers, found, strict=True)]
        if step % 50 == 0 or step == steps:
            # Of look-ups, what is asked for.
            counted = torch.where(kinds[:, None] >= 2, weights == weights.max(), weights > 0)
            mean = (losses.detach() * counted).sum(1) / counted.sum(1)
            shown = {kind: round(mean[kinds == kind].mean().item(), 3) for kind in kinds.unique().tolist()}
            share = answers[0] / max(1, answers[1])
            print(f"step {step}  loss by kind {shown}  found {share:.2f}  {time.time() - started:.0f} s", flush=True)
            answers = [0, 0]
        if step % 100 == 0:
            model.save_pretrained(arguments.out / "checkpoint")  # for --start
        done = step
    return done


def _found(predicted: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, kinds: torch.Tensor) -> tuple[int, int]:
    """How many answers in a batch of look-ups are predicted whole, and how many there are."""
    asked = (weights == weights.max()) & (kinds[:, None] >= 2)
    wrong = asked & (predicted != ids[:, 1:])
    # Answers are runs of asked tokens, numbered through the batch.
    begins = asked & ~torch.nn.functional.pad(asked, (1, 0))[:, :-1]
    numbers = begins.flatten().cumsum(0).view(begins.shape)
    total = int(begins.sum())
    return total - len(numbers[wrong].unique()), total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--workers", type=int, default=1, help="processes that make windows")
    parser.add_argument("--minutes", type=float, default=math.inf, help="the most that a round takes")
    parser.add_argument("--rounds", default=",".join(what for what, *_ in ROUNDS), help="which ones")
    parser.add_argument("--start", type=Path, help="weights to go on from, with their own tokenizer")
    parser.add_argument("--seed", type=int, default=0, help="another one for other windows than those before")
    parser.add_argument("--measure-only", action="store_true")
    arguments = parser.parse_args()
    if not arguments.measure_only:
        pretrain(arguments)
    write_card(arguments.out)


def pretrain(arguments: argparse.Namespace) -> None:
    out, device = arguments.out, arguments.device
    torch.manual_seed(arguments.seed)
    started = time.time()
    texts = read("train")
    tokenizer = train_tokenizer(texts)
    streams = [np.array(ids) for ids in tokenizer(texts, verbose=False)["input_ids"]]
    streams = [stream for stream in streams if len(stream) >= CONTEXT]
    tokens = sum(map(len, streams))
    print(f"{len(streams)} documents, {tokens:,} tokens", flush=True)
    model = build_model()
    if arguments.start:
        carry_over(arguments.start, model, tokenizer)
    else:
        wire_induction(model)
    model.to(device)
    tokenizer.save_pretrained(out / "checkpoint")
    lookups, seen = _lookups(tokenizer), 0
    for what, length, steps, peak in ROUNDS:
        if what in arguments.rounds.split(","):
            print(what, flush=True)
            done = train(model, Windows(streams, lookups, tokenizer, length, SHARES[what]), steps, peak, arguments)
            seen += done * BATCH * length
    model.to("cpu", torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    record = {
        "command": shlex.join(["python", *sys.argv]),
        "seconds": round(time.time() - started),
        "documents": len(streams),
        "tokens": tokens,
        "tokens_seen": seen,
        "parameters": model.num_parameters(),
        "vocabulary": len(tokenizer),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
    }
    (out / "pretraining.json").write_text(json.dumps(record, indent=1) + "\n")


def _lookups(tokenizer: PreTrainedTokenizerFast) -> Retrieval:
    store, _ = load_tokens([f"{STDLIB}:train"], tokenizer, len(tokenizer), default_cache())
    settings = Settings(
        {"python": 1.0}, answer_weight=4.0, text_weight=1.0, bare=0.05, early=0.35, middle=0.1, facts=12
    )
    return Retrieval(tokenizer, SurroundingText([store], tokenizer), CONTEXT, settings, seed=0)


def carry_over(folder: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Start from the weights in a folder: tokens keep their rows by what they stand for.

    A new token gets those of some other one, moved half of the way to numbers, which most new ones are: rows that the
    layers can copy from the first step on, which random ones are not.
    """
    weights = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    before, after = AutoTokenizer.from_pretrained(folder).get_vocab(), tokenizer.get_vocab()
    numbers = [row for token, row in before.items() if token.isdigit()]
    like = torch.randperm(len(before)).repeat(2)[: len(after)]
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        rows = weights[name]
        new = rows[like] + 0.5 * (rows[numbers].mean(0) - rows.mean(0))
        new += 0.2 * rows.std(0) * torch.randn(new.shape)
        for token, row in after.items():
            if token in before:
                new[row] = rows[before[token]]
        weights[name] = new
    model.load_state_dict(weights)
    print(f"{len(before.keys() & after.keys())} of {len(after)} tokens have rows", flush=True)


def write_card(folder: Path) -> None:
    """Measure the weights in `folder` on held-out documents and write the model card."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    record = json.loads((folder / "pretraining.json").read_text())
    store, _ = load_tokens([f"{STDLIB}:validation"], tokenizer, len(tokenizer), default_cache())
    contexts = (128, 256, 512, 1024, 2048)
    documents = [store[i][: contexts[-1]] for i in spread_documents(store, 16, contexts[-1])]
    perplexities = {context: perplexity(model, documents, context).perplexity for context in contexts}
    haystack = Haystack(tokenizer, "\n\n".join(read("validation")[::8]))
    probes = [
        needle_probe(tokenizer, haystack, context, DEPTHS, LOOKUP_PROMPTS, 0, "lookup") for context in contexts[1:]
    ]
    found = {probe.tokens: _score(model, tokenizer, probe) for probe in probes}
    measured = {
        "perplexity": {str(context): round(value, 2) for context, value in perplexities.items()},
        "lookups": {str(context): round(value, 3) for context, value in found.items()},
        "copied": round(_copied(model), 3),
        "digits": round(_score(model, tokenizer, copy_probe(tokenizer, 20, seed=0)), 3),
    }
    (folder / "pretraining.json").write_text(json.dumps(record | measured, indent=1) + "\n")
    card = CARD.format(
        **{"note": "", **record, **measured, "asked": len(probes[0].prompts) * len(DEPTHS)},
        shares="; ".join(f"{share:.0%} {kind}" for share, kind in zip(SHARES["all"], Windows.kinds, strict=True)),
        contexts=" | ".join(f"{context:,}" for context in contexts),
        rule="---|" * len(contexts),
        found=" | ".join(f"{found[context]:.0%}" if context in found else "" for context in contexts),
        perplexities=" | ".join(f"{value:.1f}" for value in perplexities.values()),
    )
    (folder / "README.md").write_text(card)
    print(measured)


def _score(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, probe: Probe) -> float:
    return float(np.mean([probe.scores(ask(model, tokenizer, [prompt])[0]) for prompt in probe.prompts]))


@torch.no_grad()
def _copied(model: LlamaForCausalLM) -> float:
    """The share of random tokens that is predicted when they come again, from the fifth on."""
    ids = torch.randint(300, VOCABULARY, (16, 64), generator=torch.Generator().manual_seed(0)).repeat(1, 2)
    predicted = model(ids).logits.argmax(-1)
    return (predicted[:, 68:-1] == ids[:, 69:]).float().mean().item()


if __name__ == "__main__":
    main()
