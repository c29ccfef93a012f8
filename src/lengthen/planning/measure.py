"""Sizes found by building a model and the recipe's adapter over it without weights.

The model is built from its config on torch's meta device, and the adapter as for a run, so that every architecture and
adapter is counted as it is and not as a formula would have it. Layers that are alike are built once.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from lengthen.adapters.build import add_adapter, count_trainable, has_tied_embeddings
from lengthen.adapters.targets import is_norm, norm_modules
from lengthen.errors import ModelError, one_line
from lengthen.head import causal_lm, decoder_of, embedding_parameters
from lengthen.models.load import quiet_transformers
from lengthen.planning.cache import remembered
from lengthen.planning.shape import LayerShape, ModelShape
from lengthen.quantization import quantizable
from lengthen.recipe import AdapterRecipe
from lengthen.upstream import reading

__all__ = ["model_shape"]


def model_shape(config: PreTrainedConfig, adapter: AdapterRecipe) -> ModelShape:
    """The sizes of a model and of what is trained in it, measured once and then read from the cache.

    Args:
        config: the base's.
        adapter: what is trained.

    Raises:
        ModelError: transformers can't build it, or it has no decoder layers that can be told apart.
        RecipeError: the adapter can't be put over it.
    """
    inputs = [config.to_json_string(use_diff=False), adapter.model_dump_json()]
    return remembered(ModelShape, inputs, lambda: _measure(config, adapter))


def _measure(config: PreTrainedConfig, adapter: AdapterRecipe) -> ModelShape:
    model = _build(config)
    layers = _decoder_layers(model)
    # Names in adapter.targets could mean one layer and not another.
    counts = [1] * len(layers) if isinstance(adapter.targets, list) else _keep_one_of_each(layers)
    fixed = sum(p.numel() for p in model.parameters()) - sum(p.numel() for layer in layers for p in layer.parameters())
    base_layers = [sum(p.numel() for p in layer.parameters()) for layer in layers]
    taken = set(quantizable(model)[0])
    linear = [
        sum(m.weight.numel() for name, m in model.named_modules() if name in taken and _is_in(m, layer))
        for layer in layers
    ]
    in_layers = {id(m) for layer in layers for m in layer.modules()}
    other_linear = sum(
        m.weight.numel() for name, m in model.named_modules() if name in taken and id(m) not in in_layers
    )
    embeddings = model.get_input_embeddings().weight.numel()
    head_module = model.get_output_embeddings()
    if head_module is None:
        raise ModelError(f"{config.model_type} has no output head; a plan is for causal language models")
    head, tied = head_module.weight.numel(), has_tied_embeddings(model)
    block_norms = {id(model.get_submodule(name)) for name in norm_modules(model)}
    plain = [_plain_layer(layer, config.get_text_config(), block_norms) for layer in layers]

    # PiSSA has LoRA's sizes, but would need the weights.
    wanted = adapter.model_copy(update={"variant": "lora"}) if adapter.variant == "pissa" else adapter
    try:
        model = add_adapter(model, wanted)
    except ValueError as error:  # peft's own
        raise ModelError(f"{type(model).__name__} can't have this adapter: {one_line(error)}") from error
    trained_all = count_trainable(model).trainable
    ends = embedding_parameters(model)
    trained_ends = sum(p.numel() for p in model.parameters() if p.requires_grad and id(p) in ends)
    layers = _decoder_layers(model)
    trained_layers = [sum(p.numel() for p in layer.parameters() if p.requires_grad) for layer in layers]
    hidden = config.get_text_config().hidden_size
    shapes = tuple(
        LayerShape(count=count, parameters=base, trained=trained, **sizes, **_trained_in(layer, sizes, adapter, hidden))
        for layer, count, base, trained, sizes in zip(layers, counts, base_layers, trained_layers, plain, strict=True)
    )
    outside = trained_all - sum(trained_layers)
    trained = outside + sum(shape.count * shape.trained for shape in shapes)
    parameters = fixed + sum(shape.count * shape.parameters for shape in shapes)
    base = causal_lm(model)
    return ModelShape(
        hidden=hidden,
        vocabulary=config.get_text_config().vocab_size,
        layers=shapes,
        parameters=parameters,
        linear=other_linear + sum(count * size for count, size in zip(counts, linear, strict=True)),
        embeddings=embeddings,
        head=head,
        tied=tied,
        trained=trained,
        trained_embeddings=trained_ends,
        trains_embeddings=any(p.requires_grad for p in base.get_input_embeddings().parameters()),
        trains_head=any(p.requires_grad for p in base.get_output_embeddings().parameters()),
        replaced=parameters if adapter.kind == "full" else 0,
        largest=max((p.numel() for p in model.parameters() if p.requires_grad), default=0),
    )


def _build(config: PreTrainedConfig) -> Any:
    config = copy.deepcopy(config)
    wrong = "can't build {name} from its config: {error}"
    with reading(config.model_type, wrong), torch.device("meta"), quiet_transformers():
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")


def _decoder_layers(model: Any) -> nn.ModuleList:
    lists = [m for m in decoder_of(model).modules() if isinstance(m, nn.ModuleList) and len(m)]
    found = [each for each in lists if any(hasattr(m, "is_causal") for m in each.modules())]
    if not found:
        raise ModelError(
            f"{type(causal_lm(model)).__name__} has no decoder layers with attention, so it can't be planned"
        )
    return found[0]


def _keep_one_of_each(layers: nn.ModuleList) -> list[int]:
    """Drop layers that are like an earlier one; how many there were of each that stays."""
    kept: dict[Any, list[nn.Module]] = {}
    for layer in layers:
        sizes = tuple((name, tuple(p.shape)) for name, p in layer.named_parameters())
        kinds = tuple((type(m).__name__, getattr(m, "sliding_window", None)) for m in layer.modules())
        kept.setdefault((sizes, kinds), []).append(layer)
    firsts = [same[0] for same in kept.values()]
    del layers[:]
    layers.extend(firsts)
    return [len(same) for same in kept.values()]


def _is_in(module: nn.Module, layer: nn.Module) -> bool:
    return any(module is each for each in layer.modules())


def _experts(layer: nn.Module) -> Iterator[nn.Parameter]:
    """The weights of experts that transformers keeps as one tensor: (experts, in, out) or (experts, out, in)."""
    for parameter in layer.parameters():
        if parameter.ndim == 3:
            yield parameter


def _plain_layer(layer: nn.Module, config: Any, block_norms: set[int]) -> dict[str, Any]:
    """What a layer has before anything is trained in it."""
    hidden = config.hidden_size
    attentions = [m for m in layer.modules() if hasattr(m, "is_causal")]
    inside = {id(m) for attention in attentions for m in attention.modules()}
    linear = [m for m in layer.modules() if isinstance(m, nn.Linear)]
    mlp = [m for m in linear if id(m) not in inside]
    up = float(sum(m.out_features for m in mlp if m.in_features == hidden and m.out_features != hidden))
    inner = float(sum(m.in_features for m in mlp if m.out_features == hidden and m.in_features != hidden))
    active = float(sum(m.weight.numel() for m in linear))
    chosen = getattr(config, "num_experts_per_tok", None) or getattr(config, "moe_top_k", None) or 1
    for weight in _experts(layer):
        count, wide = weight.shape[0], weight.numel() / weight.shape[0] / hidden
        share = min(1.0, chosen / count)
        active += weight.numel() * share
        # The first product's weight is the wider one where it holds gate and up; where equal, names tell.
        is_down = any(weight is p and "down" in name for name, p in layer.named_parameters())
        if is_down:
            inner += wide * share * count
        else:
            up += wide * share * count
    if inner == 0:
        inner = up / 2
    sizes: dict[str, Any] = {"heads": 0, "kv_heads": 0, "query": 0, "key": 0, "value": 0, "window": None}
    if attentions:
        attention: Any = attentions[0]
        heads = config.num_attention_heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        size = getattr(attention, "head_dim", None) or getattr(config, "head_dim", None) or hidden // heads
        # Multi-head latent attention has a key for every query head, and values of another size.
        key_size = getattr(attention, "qk_head_dim", None) or size
        value_size = getattr(attention, "v_head_dim", None) or size
        kv_heads = heads if key_size != size else kv_heads
        sizes = {
            "heads": heads,
            "kv_heads": kv_heads,
            "query": heads * key_size,
            "key": kv_heads * key_size,
            "value": kv_heads * value_size,
            "window": getattr(attention, "sliding_window", None),
        }
    norms = [m for m in layer.modules() if is_norm(m)]
    blocks = sum(id(m) in block_norms for m in norms)
    has_qk = len(norms) > blocks and attentions
    return {
        **sizes,
        "up": up,
        "inner": inner,
        "norms": blocks * hidden,
        "qk_norms": sizes["query"] + sizes["key"] if has_qk else 0,
        "active": active,
        "largest": max((m.weight.numel() for m in linear), default=0),
    }


def _trained_in(layer: nn.Module, sizes: dict[str, Any], adapter: AdapterRecipe, hidden: int) -> dict[str, Any]:
    """What is trained in a layer, as widths."""
    attentions = [m for m in layer.modules() if hasattr(m, "is_causal")]
    inside = {id(m) for attention in attentions for m in attention.modules()}
    trained_norms = 0
    if any(is_norm(m) and id(m) not in inside and _is_trained(m) for m in layer.modules()):
        trained_norms += sizes["norms"]
    if any(is_norm(m) and id(m) in inside and _is_trained(m) for m in layer.modules()):
        trained_norms += sizes["qk_norms"]
    if adapter.kind == "full":
        return {  # queries, keys and values share one input, gate and up another
            "trained_norms": trained_norms,
            "attention_inputs": hidden + sizes["query"] if attentions else 0,
            "mlp_inputs": hidden + sizes["inner"],
            "mlp_input": sizes["inner"],
            "attention_dropout": 0,
            "mlp_dropout": 0,
            "active_trained": sizes["active"],
        }
    inputs: dict[bool, list[int]] = {True: [], False: []}
    ranks = {True: 0, False: 0}
    for module in layer.modules():
        if hasattr(module, "lora_A") and hasattr(module, "in_features"):
            inputs[id(module) in inside].append(module.in_features)  # type: ignore[arg-type]
            ranks[id(module) in inside] += adapter.rank
    matrices = sum(p.numel() for p in layer.parameters() if p.requires_grad and p.ndim >= 2)
    return {
        "trained_norms": trained_norms,
        "attention_inputs": sum(inputs[True]) + ranks[True],
        "mlp_inputs": sum(inputs[False]) + ranks[False],
        "mlp_input": max(inputs[False], default=0),
        "attention_dropout": sum(inputs[True]) * (adapter.dropout > 0),
        "mlp_dropout": sum(inputs[False]) * (adapter.dropout > 0),
        "active_trained": matrices,
    }


def _is_trained(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters(recurse=False))
