"""Which learning rates bring an interpolated model back in few steps, for LoRA and norms and for the embeddings.

    python benchmarks/learning_rates.py --train books/train --validation books/validation 2e-3,1e-4,8 5e-4,5e-4,8

Four minutes a setting on two cores. Interpolation by 2 hurts at short range as at long, so that short sequences tell
which rates recover it: 20 steps of 4 x 1,024 tokens under full attention, a warm-up of 3 steps and linear decay. A
setting is the rate of LoRA and norms, the rate of the embeddings, LoRA's rank (alpha is twice the rank), and what it is
put on (attention or all linear layers; default attention).
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from lengthen.adapters.build import add_adapter
from lengthen.context import base_context, extend
from lengthen.data.tokens import default_cache, load_tokens
from lengthen.files import write_json
from lengthen.models.load import load_base, load_config, load_tokenizer
from lengthen.models.resolve import resolve_model
from lengthen.recipe import AdapterRecipe
from lengthen.training.objective import CausalLMObjective
from lengthen.training.optim import BETAS
from record import record

LENGTH, BATCH = 1024, 4


def autocast() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def validation_loss(objective: CausalLMObjective, windows: list[torch.Tensor]) -> float:
    objective.eval()
    with torch.no_grad(), autocast():
        total = sum(objective(input_ids=ids, labels=ids).item() for ids in windows)
    objective.train()
    return total / len(windows) / (LENGTH - 1)


def draw(documents: list[np.ndarray], generator: np.random.Generator) -> torch.Tensor:
    rows = []
    for _ in range(BATCH):
        document = documents[int(generator.integers(len(documents)))]
        start = int(generator.integers(len(document) - LENGTH))
        rows.append(document[start : start + LENGTH].astype(np.int64))
    return torch.tensor(np.stack(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--train", default="python-stdlib:train")
    parser.add_argument("--validation", default="python-stdlib:validation")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "settings", nargs="*", default=["2e-3,2e-3,8", "2e-3,1e-4,8"], metavar="LORA,EMBEDDINGS,RANK[,TARGETS]"
    )
    arguments = parser.parse_args()

    source, tokenizer = resolve_model(arguments.model), load_tokenizer(arguments.model)
    config = load_config(source)
    train, validation = (
        load_tokens([data], tokenizer, config.vocab_size, default_cache())[0]
        for data in (arguments.train, arguments.validation)
    )
    train_documents = [ids for ids in train if len(ids) > LENGTH]
    long_enough = [ids for ids in validation if len(ids) >= 2 * LENGTH][:7]
    starts = [(ids, start) for ids in long_enough for start in (len(ids) // 3, len(ids) * 2 // 3)]
    windows = [torch.tensor(ids[min(s, len(ids) - LENGTH) :][:LENGTH].astype(np.int64))[None] for ids, s in starts]

    scaled = extend(config, 2 * base_context(config), "linear")
    rows = []
    base = validation_loss(CausalLMObjective(load_base(source, config, torch.bfloat16)), windows)
    print(f"base {base:.4f}", flush=True)
    for setting in arguments.settings:
        lora_rate, embedding_rate, rank, *targets = setting.split(",")
        adapter = AdapterRecipe(
            rank=int(rank), alpha=2 * int(rank), targets=(targets or ["attention"])[0], embeddings=True
        )
        torch.manual_seed(0)
        model = add_adapter(load_base(source, scaled, torch.bfloat16), adapter)
        objective = CausalLMObjective(model)
        untrained = validation_loss(objective, windows)
        embeddings = list(model.get_base_model().get_input_embeddings().parameters())
        others = [p for p in model.parameters() if p.requires_grad and all(p is not e for e in embeddings)]
        optimizer = torch.optim.AdamW(
            [{"params": others, "lr": float(lora_rate)}, {"params": embeddings, "lr": float(embedding_rate)}],
            betas=BETAS,
            weight_decay=0.0,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / 3, (arguments.steps - step) / (arguments.steps - 3))
        )
        generator, started = np.random.default_rng(0), time.perf_counter()
        for _ in range(arguments.steps):
            ids = draw(train_documents, generator)
            with autocast():
                loss = objective(input_ids=ids, labels=ids) / ids.numel()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([*others, *embeddings], 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        trained = validation_loss(objective, windows)
        seconds = round(time.perf_counter() - started)
        rows.append({"setting": setting, "untrained": untrained, "trained": trained, "seconds": seconds})
        print(f"{setting:<16} untrained {untrained:.4f}  trained {trained:.4f}  {seconds} s", flush=True)
    if arguments.json:
        content = {
            **record(),
            "model": source.id,
            "base": base,
            "results": rows,
        }
        write_json(arguments.json, content)


if __name__ == "__main__":
    main()
