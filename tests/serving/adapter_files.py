"""Adapter folders for tests: random weights over a random base, saved by peft."""

import torch
from peft import PeftModel

from lengthen.adapters.build import add_adapter
from lengthen.adapters.load import load_apart
from lengthen.adapters.save import save_adapter
from lengthen.context import base_context
from lengthen.models.fingerprint import weight_hashes
from lengthen.models.resolve import resolve_model
from lengthen.recipe import AdapterRecipe

CPU = torch.device("cpu")


def make_adapter(base, folder, seed, amount=0.3, few_tokens=False, alone=False, quantize=None, **recipe):
    """Save an adapter whose every weight is random.

    few_tokens: of the embeddings only five rows differ from the base's. alone: as peft saves it, without base.json and
    config.json. recipe: of `AdapterRecipe`.
    """
    apart = load_apart(base, "float32", quantize, CPU)
    hashes = weight_hashes(apart.model)
    model = add_adapter(apart.model, AdapterRecipe(**{"rank": 8, "alpha": 16, "embeddings": True, **recipe}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                change = torch.randn(parameter.shape, generator=generator) * amount
                if few_tokens and parameter.ndim == 2 and "lora" not in name:
                    change[5:] = 0
                parameter.add_(change)
    source = resolve_model(str(base))
    record = {"id": source.id, "model": str(base), **{key: value for key, value in hashes.items() if value}}
    save_adapter(model, folder, apart.model.config, record | {"context": base_context(apart.model.config)})
    if alone:
        (folder / "base.json").unlink()
        (folder / "config.json").unlink()
    return folder


def with_adapter(base, folder, quantize=None):
    """The same adapter over the same base, computed by peft."""
    model = load_apart(base, "float32", quantize, CPU).model
    return model if folder is None else PeftModel.from_pretrained(model, str(folder)).eval()


def greedy(model, prompt, count):
    """The likeliest tokens after a prompt, one after another, each from a pass over all before it."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return tuple(ids[len(prompt) :])


def is_decided(model, prompt, tokens, least=1e-5):
    """Whether each of these tokens is likelier than the second likeliest by more than rounding, in logits."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *tokens]]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    first, second = logits.topk(2).values.unbind(-1)
    return bool((first - second > least).all())
