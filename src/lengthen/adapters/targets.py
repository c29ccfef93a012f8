"""Which modules of a base an adapter trains, found by what they are and not by substring."""

from collections.abc import Iterator, Sequence

from torch import nn

from lengthen.errors import ModelError
from lengthen.head import decoder_modules

__all__ = ["expert_parameters", "is_norm", "linear_targets", "norm_modules", "shortest_suffixes"]


def _attention_layers(model: nn.Module) -> list[str]:
    # Every attention layer that goes through transformers' attention registry says whether it is causal.
    return [name for name, module in decoder_modules(model) if hasattr(module, "is_causal")]


def _inside(name: str, parents: Sequence[str]) -> bool:
    return any(name.startswith(parent + ".") for parent in parents)


def _linear_layers(model: nn.Module) -> Iterator[str]:
    head = model.get_output_embeddings()  # type: ignore[operator]
    for name, module in decoder_modules(model):
        # transformers' Conv1D (GPT-2 kind) has no RoPE models; packed 4-bit layers are subclasses of Linear.
        if isinstance(module, nn.Linear) and module is not head:
            yield name


def linear_targets(model: nn.Module, targets: str | Sequence[str]) -> list[str]:
    """Names of the linear layers that get LoRA matrices.

    Args:
        model: the base.
        targets: "attention": q, k, v, o of every attention layer, fused or not (LongLoRA). "all": every linear
            layer but the head (LongQLoRA). Or layer names, as full paths or last parts.

    Returns:
        The shortest names that pick exactly these layers, sorted.

    Raises:
        ModelError: nothing is picked, or a given name picks nothing.
    """
    linear = list(_linear_layers(model))
    if targets == "attention":
        attention = _attention_layers(model)
        chosen = [name for name in linear if _inside(name, attention)]
    elif targets == "all":
        chosen = linear
    else:
        chosen = _named(linear, [targets] if isinstance(targets, str) else targets)
    if not chosen:
        raise ModelError(f"{type(model).__name__} has no linear layers for adapter.targets={targets}")
    # peft tries whatever is called so, linear or not: Gemma 4's towers have wrappers of the names of our layers.
    return shortest_suffixes(chosen, [name for name, _ in model.named_modules()])


def _named(linear: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The layers with these names, full paths or last parts."""
    chosen = set()
    for given in wanted:
        found = [name for name in linear if name == given or name.endswith("." + given)]
        if not found:
            last_parts = sorted({name.rsplit(".", 1)[-1] for name in linear})
            raise ModelError(f"adapter.targets: no linear layer is called {given!r}; there are {', '.join(last_parts)}")
        chosen.update(found)
    return [name for name in linear if name in chosen]


def expert_parameters(model: nn.Module) -> list[str]:
    """Names of the weights that hold the linear layers of all experts in one tensor, as last two parts.

    transformers keeps the experts of a mixture so, (experts, out, in); they are no `nn.Linear`.
    """
    return sorted(
        {
            ".".join(name.split(".")[-2:])
            for module_name, module in decoder_modules(model)
            for own, parameter in module.named_parameters(recurse=False)
            if (name := f"{module_name}.{own}") and parameter.ndim == 3 and "expert" in name.rsplit(".", 1)[0].lower()
        }
    )


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm, by its class: LayerNorm, LlamaRMSNorm and the like."""
    return "norm" in type(module).__name__.lower()


def norm_modules(model: nn.Module, with_qk: bool = False) -> list[str]:
    """Full names of the norms of the blocks and the final one; with `with_qk` also those on queries and keys.

    q/k norms lie inside an attention layer, the others beside it: that tells them apart in every architecture.

    Args:
        model: a base.
        with_qk: whether the norms of queries and keys count.
    """
    attention = _attention_layers(model)
    norms = [name for name, module in decoder_modules(model) if is_norm(module)]
    return [name for name in norms if with_qk or not _inside(name, attention)]


def shortest_suffixes(chosen: Sequence[str], among: Sequence[str]) -> list[str]:
    """The last parts of `chosen` where they pick nothing else among `among`, else full names.

    peft matches names by their ends, so that a bare last part keeps adapter configs short but must not catch more.

    Args:
        chosen: names of modules.
        among: names of all modules.
    """
    wanted, names = set(chosen), set()
    for name in chosen:
        last = name.rsplit(".", 1)[-1]
        others = [other for other in among if other.endswith(last) and other not in wanted]
        names.add(name if others else last)
    return sorted(names)
