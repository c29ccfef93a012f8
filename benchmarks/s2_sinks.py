"""What S2 does to a pretrained model before any training, with and without attention sinks.

    python benchmarks/s2_sinks.py [--data books/validation] [--json FILE]

One minute on two cores. Loss of an untrained base on one stretch of text under full attention and under S2 in training
mode. S2 should start near full attention: what it loses, training has to win back before it teaches anything about
length.
"""

import argparse
import time
from pathlib import Path

import torch

from lengthen import attention
from lengthen.data.tokens import default_cache, load_tokens
from lengthen.files import write_json
from lengthen.models.devices import default_device, pick_dtype
from lengthen.models.load import load_base, load_config, load_tokenizer
from lengthen.models.resolve import resolve_model
from lengthen.training.objective import CausalLMObjective
from record import record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--data", default="python-stdlib:validation", help="documents; the longest one is used")
    parser.add_argument("--from", dest="begin", type=int, default=0, help="first token")
    parser.add_argument("--tokens", type=int, default=6144)
    parser.add_argument("--group-size", type=int, default=1536)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    source, tokenizer = resolve_model(arguments.model), load_tokenizer(arguments.model)
    config = load_config(source)
    store, _ = load_tokens([arguments.data], tokenizer, config.vocab_size, default_cache())
    longest = int(store.lengths.argmax())
    ids = torch.tensor(store[longest][arguments.begin : arguments.begin + arguments.tokens].astype("int64"))[None]
    assert ids.shape[1] == arguments.tokens, f"{store.names[longest]} is too short"
    model = load_base(source, config, pick_dtype("auto", default_device()), "s2")
    objective, ids = CausalLMObjective(model), ids.to(model.device)

    rows = []
    for sinks in (None, 0, 1, 4):
        if sinks is None:
            objective.eval()
        else:
            objective.train()
            attention.set_group_size(model, arguments.group_size, sinks)
        started = time.perf_counter()
        with torch.no_grad():
            loss = objective(input_ids=ids, labels=ids).item() / (arguments.tokens - 1)
        name = "full attention" if sinks is None else f"S2, {sinks} sinks"
        rows.append({"attention": name, "loss": round(loss, 4), "seconds": round(time.perf_counter() - started, 1)})
        print(f"{name:<16} loss {loss:.4f}  {rows[-1]['seconds']} s", flush=True)
    if arguments.json:
        content = {
            **record(model.device),
            "model": source.id,
            "document": Path(store.names[longest]).name,
            "dtype": str(model.dtype).removeprefix("torch."),
            "results": rows,
        }
        write_json(arguments.json, content)


if __name__ == "__main__":
    main()
