"""Train the base model that ships with lengthen as alias `tiny`: a 5 M-parameter Llama with a context of 256 tokens.

    python scripts/pretrain_tiny.py                  # half an hour on 2 cores; writes src/lengthen/assets/tiny
    python scripts/pretrain_tiny.py --measure-only   # measures the shipped weights again and rewrites the card

The data is the Python standard library of the interpreter that runs this script (train split of
`lengthen.data.stdlib`). Embeddings are untied, so that training "embeddings" means what it means in LLaMA.

Some windows have their vocabulary shuffled: each token is replaced by another, the same one throughout the window.
Nothing the model knows of Python helps there, only looking back at what followed a token before. That is how a model
learns within 10 M tokens to use its context, which else takes some hundred millions; one that does not use its context
would have no use for a longer one.
"""

import argparse
import json
import platform
import shlex
import sys
import time
from pathlib import Path

import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lengthen.data.stdlib import stdlib_documents
from lengthen.evaluation import perplexity
from lengthen.quickstart import held_out_documents

OUT = Path(__file__).parent.parent / "src" / "lengthen" / "assets" / "tiny"
CONTEXT = 256
VOCABULARY = 4096
SHUFFLED = 0.15
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
In {shuffled:.0%} of the windows the vocabulary was shuffled, so that the model learnt to look back.

Perplexity on the first 2,048 tokens of 16 held-out files, the same tokens at each context, stride context/2, float32:

| context | 128 | 256 | 512 | 1024 | 2048 |
|---|---|---|---|---|---|
| perplexity | {p128:.1f} | {p256:.1f} | {p512:.1f} | {p1024:.1f} | {p2048:.1f} |

Made by `{command}` in {seconds:,} s on 2 CPU cores that did other work too:
{tokens_seen:,} tokens seen, last training loss {last_loss}. Versions: torch {torch}, transformers {transformers},
tokenizers {tokenizers}.
"""


def read(split: str) -> list[str]:
    return [path.read_text(encoding="utf-8", errors="ignore") for path in stdlib_documents(split)]


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE; encoding a document puts BOS before it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
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


def train(model: LlamaForCausalLM, streams: list[torch.Tensor], steps: int, batch: int, peak: float) -> float:
    """One random window of 256 tokens per sequence, documents drawn by length; returns the last plain loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    lengths = torch.tensor([len(stream) for stream in streams], dtype=torch.double)
    warmup, started = 50, time.time()
    recent: dict[bool, list[float]] = {False: [], True: []}  # losses of windows, by whether they were shuffled
    model.train()
    for step in range(1, steps + 1):
        windows = []
        shuffled = (torch.rand(batch) < SHUFFLED).tolist()
        drawn = torch.multinomial(lengths, batch, replacement=True).tolist()
        for which, is_shuffled in zip(drawn, shuffled, strict=True):
            start = int(torch.randint(0, len(streams[which]) - CONTEXT + 1, ()))
            window = streams[which][start : start + CONTEXT]
            windows.append(torch.randperm(VOCABULARY)[window] if is_shuffled else window)
        ids = torch.stack(windows)
        share = min(step / warmup, (steps - step + 1) / (0.6 * steps), 1)  # warm-up, plateau, decay over 60%
        for group in optimizer.param_groups:
            group["lr"] = peak * share
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1)
        losses = cross_entropy(logits.float(), ids[:, 1:].flatten(), reduction="none").view(batch, -1).mean(1)
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        for loss, is_shuffled in zip(losses.tolist(), shuffled, strict=True):
            recent[is_shuffled].append(loss)
        if step % 50 == 0 or step == steps:
            plain, other = (sum(found) / len(found) for found in recent.values())
            recent = {False: [], True: []}
            print(f"step {step}  loss {plain:.4f}, shuffled {other:.4f}  {time.time() - started:.0f} s", flush=True)
    return plain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument("--batch", type=int, default=16, help="windows of 256 tokens per step")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="peak")
    parser.add_argument("--measure-only", action="store_true")
    arguments = parser.parse_args()
    if not arguments.measure_only:
        pretrain(arguments)
    write_card(arguments.out)


def pretrain(arguments: argparse.Namespace) -> None:
    torch.manual_seed(0)
    started = time.time()
    texts = read("train")
    tokenizer = train_tokenizer(texts)
    streams = [torch.tensor(ids) for ids in tokenizer(texts)["input_ids"]]
    streams = [stream for stream in streams if len(stream) >= CONTEXT]
    tokens = sum(map(len, streams))
    print(f"{len(streams)} documents, {tokens:,} tokens", flush=True)
    model = build_model()
    loss = train(model, streams, arguments.steps, arguments.batch, arguments.learning_rate)
    model.to(torch.bfloat16).save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    record = {
        "command": shlex.join(["python", *sys.argv]),
        "seconds": round(time.time() - started),
        "documents": len(streams),
        "tokens": tokens,
        "tokens_seen": arguments.steps * arguments.batch * CONTEXT,
        "parameters": model.num_parameters(),
        "last_loss": round(loss, 4),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
    }
    (arguments.out / "pretraining.json").write_text(json.dumps(record, indent=1) + "\n")


def write_card(folder: Path) -> None:
    """Measure the weights in `folder` on the quickstart's held-out documents and write the model card."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    documents = held_out_documents(str(folder))
    measured = {context: perplexity(model, documents, context).perplexity for context in (128, 256, 512, 1024, 2048)}
    record = json.loads((folder / "pretraining.json").read_text())
    record["perplexity"] = {str(context): round(value, 2) for context, value in measured.items()}
    (folder / "pretraining.json").write_text(json.dumps(record, indent=1) + "\n")
    (folder / "README.md").write_text(
        CARD.format(**record, shuffled=SHUFFLED, **{f"p{context}": value for context, value in measured.items()})
    )
    print(f"perplexity {record['perplexity']}; 2048 against 256: {measured[2048] / measured[256]:.2f}")


if __name__ == "__main__":
    main()
