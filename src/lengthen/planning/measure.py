"""Sizes found by building a model and the recipe's adapter over it without weights.

The model is built from its config on torch's meta device, and the adapter as for a run, so that every architecture and
adapter is counted as it is and not as a formula would have it. Layers that are alike are built once.
"""

from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from lengthen.adapters.build import add_adapter, count_trainable, has_tied_embeddings
from lengthen.adapters.targets import is_norm, norm_modules
from lengthen.context import attention_layers, has_chunks
from lengthen.errors import ModelError, one_line
from lengthen.head import causal_lm, decoder_of, embedding_parameters
from lengthen.models.load import empty_model
from lengthen.planning.cache import remembered
from lengthen.planning.shape import LayerShape, ModelShape
from lengthen.quantization import quantizable
from lengthen.recipe import AdapterRecipe

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
    """Two measurements, of the base and of the same model with the adapter over it, put together layer by layer."""
    text = config.get_text_config()
    model = empty_model(config)
    layers = _decoder_layers(model)
    windows = _windows(config, layers)
    # Names in adapter.targets could mean one layer and not another.
    counts = [1] * len(layers)
    if not isinstance(adapter.targets, list):
        counts, windows = _keep_one_of_each(layers, windows)
    base = _base_sizes(model, layers, counts, config)
    block_norms = {id(model.get_submodule(name)) for name in norm_modules(model)}
    widths = [_layer_widths(layer, text, block_norms) for layer in layers]
    chunks, score_copies = has_chunks(config), _score_copies(model)

    model = _with_adapter(model, adapter)
    shapes = tuple(
        LayerShape(
            count=count,
            window=window,
            chunks=chunks and window is not None,
            score_copies=score_copies,
            **sizes,
            **_trained_in(layer, sizes, adapter, text.hidden_size),
        )
        for layer, count, window, sizes in zip(_decoder_layers(model), counts, windows, widths, strict=True)
    )
    in_layers = sum(shape.trained for shape in shapes)
    outside = count_trainable(model).trainable - in_layers
    return ModelShape(
        hidden=text.hidden_size,
        vocabulary=text.vocab_size,
        layers=shapes,
        **base,
        trained=outside + sum(shape.count * shape.trained for shape in shapes),
        **_trained_ends(model),
        replaced=base["parameters"] if adapter.kind == "full" else 0,
        largest=max((p.numel() for p in model.parameters() if p.requires_grad), default=0),
    )


def _base_sizes(model: Any, layers: nn.ModuleList, counts: list[int], config: PreTrainedConfig) -> dict[str, Any]:
    """The sizes of the base before anything is trained in it; `layers` has one of each kind, `counts` how many."""
    head = model.get_output_embeddings()
    if head is None:
        raise ModelError(f"{config.model_type} has no output head; a plan is for causal language models")
    by_layer = [sum(p.numel() for p in layer.parameters()) for layer in layers]
    taken = set(quantizable(model)[0])
    linear = {id(m): m.weight.numel() for name, m in model.named_modules() if name in taken}
    linear_by_layer = [sum(linear.get(id(m), 0) for m in layer.modules()) for layer in layers]
    outside = sum(p.numel() for p in model.parameters()) - sum(by_layer)
    linear_outside = sum(linear.values()) - sum(linear_by_layer)
    return {
        "parameters": outside + sum(count * size for count, size in zip(counts, by_layer, strict=True)),
        "linear": linear_outside + sum(count * size for count, size in zip(counts, linear_by_layer, strict=True)),
        "embeddings": model.get_input_embeddings().weight.numel(),
        "head": head.weight.numel(),
        "tied": has_tied_embeddings(model),
    }


def _with_adapter(model: Any, adapter: AdapterRecipe) -> Any:
    # PiSSA has LoRA's sizes, but would need the weights.
    measured = adapter.model_copy(update={"variant": "lora"}) if adapter.variant == "pissa" else adapter
    try:
        return add_adapter(model, measured)
    except ValueError as error:  # peft's own
        raise ModelError(f"{type(model).__name__} can't have this adapter: {one_line(error)}") from error


def _trained_ends(model: Any) -> dict[str, Any]:
    """The sizes of the trained embeddings and head."""
    base, ends = causal_lm(model), embedding_parameters(model)
    return {
        "trained_embeddings": sum(p.numel() for p in model.parameters() if p.requires_grad and id(p) in ends),
        "trains_embeddings": any(p.requires_grad for p in base.get_input_embeddings().parameters()),
        "trains_head": any(p.requires_grad for p in base.get_output_embeddings().parameters()),
    }


def _decoder_layers(model: Any) -> nn.ModuleList:
    lists = [m for m in decoder_of(model).modules() if isinstance(m, nn.ModuleList) and len(m)]
    found = [each for each in lists if any(hasattr(m, "is_causal") for m in each.modules())]
    if not found:
        raise ModelError(
            f"{type(causal_lm(model)).__name__} has no decoder layers with attention, so it can't be planned"
        )
    return found[0]


def _windows(config: PreTrainedConfig, layers: nn.ModuleList) -> list[int | None]:
    """How far each layer attends, by the config, as many attentions are told by their arguments or masks alone."""
    described = [layer.window for layer in attention_layers(config)]
    attends = [bool(_attentions(layer)[0]) for layer in layers]
    if sum(attends) != len(described):  # such as two attentions in a layer: counted as what costs most
        return [None] * len(attends)
    rest = iter(described)
    return [next(rest) if each else None for each in attends]


def _keep_one_of_each(layers: nn.ModuleList, windows: list[int | None]) -> tuple[list[int], list[int | None]]:
    """Drop layers that are like an earlier one; how many there were of each that stays, and its window."""
    kept: dict[Any, list[nn.Module]] = {}
    for layer, window in zip(layers, windows, strict=True):
        sizes = tuple((name, tuple(p.shape)) for name, p in layer.named_parameters())
        kinds = tuple(type(m).__name__ for m in layer.modules())
        kept.setdefault((window, sizes, kinds), []).append(layer)
    firsts = [same[0] for same in kept.values()]
    del layers[:]
    layers.extend(firsts)
    return [len(same) for same in kept.values()], [window for window, *_ in kept]


def _attentions(layer: nn.Module) -> tuple[list[nn.Module], set[int]]:
    """A layer's attention modules, and the ids of all modules in them."""
    attentions = [m for m in layer.modules() if hasattr(m, "is_causal")]
    return attentions, {id(m) for attention in attentions for m in attention.modules()}


def _layer_widths(layer: nn.Module, config: Any, block_norms: set[int]) -> dict[str, Any]:
    """The widths of a layer before anything is trained in it."""
    attentions, inside = _attentions(layer)
    attention = _attention_widths(attentions[0] if attentions else None, config)
    norms = [m for m in layer.modules() if is_norm(m)]
    blocks = sum(id(m) in block_norms for m in norms)
    has_qk = bool(attentions) and len(norms) > blocks
    return {
        **attention,
        **_mlp_widths(layer, inside, config),
        "norms": blocks * config.hidden_size,
        "qk_norms": attention["query"] + attention["key"] if has_qk else 0,
        "parameters": sum(p.numel() for p in layer.parameters()),
    }


def _score_copies(model: Any) -> int:
    """Numbers that each head keeps of every pair of tokens where transformers has no kernel for a model's attention.

    With learned sinks (gpt-oss) that is the softmax; with capped scores (Gemma 2) they, the softmax in float32, which
    counts as two, and its copy in 16 bits.
    """
    if model.config._attn_implementation != "eager":
        return 0
    return 1 if any(hasattr(module, "sinks") for module in model.modules()) else 4


def _attention_widths(attention: Any, config: Any) -> dict[str, Any]:
    """The widths of queries, keys and values, by the first attention of a layer; None where it has none."""
    if attention is None:
        return {"heads": 0, "kv_heads": 0, "query": 0, "key": 0, "value": 0}
    heads = config.num_attention_heads
    size = getattr(attention, "head_dim", None) or getattr(config, "head_dim", None) or config.hidden_size // heads
    # Multi-head latent attention has a key for every query head, and values of another size.
    key_size = getattr(attention, "qk_head_dim", None) or size
    value_size = getattr(attention, "v_head_dim", None) or size
    kv_heads = heads if key_size != size else getattr(config, "num_key_value_heads", None) or heads
    return {
        "heads": heads,
        "kv_heads": kv_heads,
        "query": heads * key_size,
        "key": kv_heads * key_size,
        "value": kv_heads * value_size,
    }


def _mlp_widths(layer: nn.Module, inside: set[int], config: Any) -> dict[str, Any]:
    """The widths of the linear layers outside of attention, and the weights that one token is multiplied with."""
    hidden = config.hidden_size
    linear = [m for m in layer.modules() if isinstance(m, nn.Linear)]
    mlp = [m for m in linear if id(m) not in inside]
    up = sum(m.out_features for m in mlp if m.in_features == hidden and m.out_features != hidden)
    inner = sum(m.in_features for m in mlp if m.out_features == hidden and m.in_features != hidden)
    experts = _expert_widths(layer, config)
    up_all, inner_all = up + experts["up"], inner + experts["inner"]
    return {
        "up": up_all,
        "inner": inner_all or up_all / 2,
        "active": sum(m.weight.numel() for m in linear) + experts["active"],
        "largest": max((m.weight.numel() for m in linear), default=0),
    }


def _expert_widths(layer: nn.Module, config: Any) -> dict[str, float]:
    """The widths of the experts that a token is sent to, which transformers keeps in tensors of three dimensions.

    They are (experts, in, out) or (experts, out, in). The last product's are told by their name.
    """
    widths = {"up": 0.0, "inner": 0.0, "active": 0.0}
    chosen = getattr(config, "num_experts_per_tok", None) or getattr(config, "moe_top_k", None) or 1
    for name, weight in layer.named_parameters():
        if weight.ndim == 3:
            count = weight.shape[0]
            share = min(1.0, chosen / count)
            widths["active"] += weight.numel() * share
            widths["inner" if "down" in name else "up"] += weight.numel() / config.hidden_size * share
    return widths


def _trained_in(layer: nn.Module, sizes: dict[str, Any], adapter: AdapterRecipe, hidden: int) -> dict[str, Any]:
    """The widths of a layer's trained parameters, and of the inputs that they save."""
    attentions, inside = _attentions(layer)
    trained = [p for p in layer.parameters() if p.requires_grad]
    norms_inside = {id(m) in inside for m in layer.modules() if is_norm(m) and _is_trained(m)}
    common = {
        "trained": sum(p.numel() for p in trained),
        "trained_norms": sizes["norms"] * (False in norms_inside) + sizes["qk_norms"] * (True in norms_inside),
    }
    if adapter.kind == "full":
        return common | {  # queries, keys and values share one input, gate and up another
            "attention_inputs": hidden + sizes["query"] if attentions else 0,
            "mlp_inputs": hidden + sizes["inner"],
            "mlp_input": sizes["inner"],
            "attention_dropout": 0,
            "mlp_dropout": 0,
            "active_trained": sizes["active"],
        }
    inputs: dict[bool, list[int]] = {True: [], False: []}
    for module in layer.modules():
        if hasattr(module, "lora_A") and hasattr(module, "in_features"):
            inputs[id(module) in inside].append(module.in_features)  # type: ignore[arg-type]
    return common | {
        "attention_inputs": sum(inputs[True]) + len(inputs[True]) * adapter.rank,
        "mlp_inputs": sum(inputs[False]) + len(inputs[False]) * adapter.rank,
        "mlp_input": max(inputs[False], default=0),
        "attention_dropout": sum(inputs[True]) * (adapter.dropout > 0),
        "mlp_dropout": sum(inputs[False]) * (adapter.dropout > 0),
        "active_trained": sum(p.numel() for p in trained if p.ndim >= 2),
    }


def _is_trained(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters(recurse=False))
