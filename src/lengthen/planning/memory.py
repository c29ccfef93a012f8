"""Bytes that a training step needs on each device, by kind, from sizes alone.

A step has four moments that can be its peak, and the largest is taken:

- *loss*: the forward pass is over, everything saved for the backward pass is there, and the loss works on logits;
- *last layer*: its backward pass has all layers' saved inputs beside it;
- *first layer*: its backward pass has all gradients beside it;
- *update*: all gradients, the masters and the optimizer's states.

What autograd saves in one decoder layer is counted tensor by tensor (`_layer`), in bytes per token. Trained tensors are
float32 masters under autocast (adapters/build.py): where what a trained product takes is cast, it keeps a copy.
"""

import math
from dataclasses import dataclass

from lengthen.models.logits import tokens_per_chunk
from lengthen.planning.devices import WIDTHS, Device
from lengthen.planning.shape import LayerShape, ModelShape
from lengthen.recipe import Recipe

__all__ = ["KINDS", "Memory", "memory_of"]

KINDS = (
    "weights",
    "quantization_constants",
    "adapter",
    "gradients",
    "optimizer",
    "saved_activations",
    "working_set",
    "logits",
    "communication",
    "runtime",
    "fragmentation",
)
"""What bytes are for: the frozen base; NF4's constants; float32 masters of what is trained; their gradients; Adam's
moments; what waits for the backward pass; what one layer holds while it is computed; the loss's; gathered weights and
buckets of several devices; the accelerator's context and libraries; what allocators can't use."""

_FLOAT32 = 4

# NF4 (arXiv 2305.14314, section 3): 4 bits a weight; blocks of 64 with an 8-bit constant each; of those, blocks of 256
# with a float32 constant each.
_NF4_WEIGHT, _NF4_CONSTANT = 0.5, 1 / 64 + _FLOAT32 / (64 * 256)

# Adam's two moments, bytes per trained parameter; the 8-bit ones with a float32 constant for each block of 256.
_MOMENTS = {"adamw": 8.0, "paged_adamw_32bit": 8.0, "adamw_8bit": 2 + 8 / 256, "paged_adamw_8bit": 2 + 8 / 256}

# Per logit of a chunk: float32 logits, log-softmax, and the gradients of both; the last chunk's 16-bit gradient.
_LOSS_COPIES = 4 * _FLOAT32

# Elements of gradient that DeepSpeed reduces at a time (training/parallel.py).
_ZERO_BUCKET = 50_000_000

# DeepSpeed's default of stage3_max_live_parameters: gathered parameters that it keeps at most.
_ZERO3_LIVE = 1_000_000_000

# CUDA context, cuBLAS workspaces and kernels.
_GPU_RUNTIME = 600 << 20
# Thread pools, oneDNN's packed copies and code that is loaded with the first step (measured, docs/results/plan.md).
_CPU_RUNTIME = 60 << 20

# Share of all tensors that come and go which torch holds beyond them on GPUs. On CPU none, if the C library
# gives freed tensors back; glibc by its defaults keeps those below 32 MiB (docs/results/plan.md).
_GPU_FRAGMENTATION = 0.06


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of a step.

    Attributes:
        breakdown: bytes on each device by kind, for every one of `KINDS`; they add up to `peak`.
        host: bytes in CPU memory for each device (offloaded or paged), not among them on GPUs.
        moment: which moment of the step is the peak.
    """

    breakdown: dict[str, int]
    host: int
    moment: str

    @property
    def peak(self) -> int:
        """Bytes on each device."""
        return sum(self.breakdown.values())


@dataclass(frozen=True)
class _Layer:
    """Bytes per token of one layer; `tile_*` of one MLP tile's tokens, 0 without tiles."""

    saved: float
    attention_only: float
    kept: float
    mlp_moment: float
    attention_moment: float
    tile_moment: float


def memory_of(
    shape: ModelShape,
    recipe: Recipe,
    device: Device,
    devices: int,
    dtype: str,
    *,
    unfused_loss: bool = False,
) -> Memory:
    """Bytes that one step of a recipe needs at its peak, on each device.

    Args:
        shape: of the model with what is trained in it.
        recipe: the run; its sequence length, batch, memory settings, optimizer and way of sharing count.
        device: what it runs on.
        devices: how many share the work.
        dtype: of the base's 16-bit (or 32-bit) weights and of the arithmetic.
        unfused_loss: plan for a loss that computes all logits at once, as the papers' code did.
    """
    width = WIDTHS[dtype]
    length = math.ceil(recipe.sequence_length / recipe.parallel.sequence)
    restoration = recipe.training.restoration
    if restoration.share:  # a step's passes come one after another, and windows are not shared: the longest decides
        length = max(length, restoration.length)
    tokens = length * recipe.training.batch_size
    settings = recipe.memory
    on_gpu = device.kind != "cpu"
    autocast = recipe.uses_autocast(width)
    state = _state(shape, recipe, devices, width, on_gpu)
    gradients = state.gradients
    host = state.host

    layers = [(layer, _layer(layer, shape.hidden, width, autocast, recipe, on_gpu)) for layer in shape.layers]
    inputs = shape.hidden * width * tokens
    recomputes = bool(settings.activation_checkpointing or settings.sequence_chunk)
    if recomputes:
        movable, staying = float(math.ceil(shape.layer_count / settings.checkpoint_every) * inputs), 0.0
        if recipe.keeps_attention:
            staying = sum(layer.count * each.kept for layer, each in layers) * tokens
    else:
        movable, staying = sum(layer.count * each.saved for layer, each in layers) * tokens, 0.0
    # Two layers' inputs are on the device at any time: one in use, one on its way.
    to_disk = settings.offload_activations == "disk"
    moved = max(0.0, movable - 2 * inputs) if to_disk or (settings.offload_activations and on_gpu) else 0.0
    host += 0.0 if to_disk else moved
    saved = movable - moved + staying
    at_once = length
    if settings.sequence_chunk:  # a chunk, the half group before it and the sinks
        at_once = min(length, settings.sequence_chunk + recipe.group_size // 2 + recipe.attention.sinks)
    tile = min(settings.mlp_tile, at_once) * recipe.training.batch_size
    working = max(_working(each, at_once * recipe.training.batch_size, tile, recomputes) for _, each in layers)
    if settings.sequence_chunk:  # the gradients of a layer's input and output are whole, and an input computed again
        working += (2 + (settings.checkpoint_every > 1)) * inputs
    if recipe.parallel.sequence > 1:
        working += max(_exchanged(layer, recipe, length, width) for layer in shape.layers)
    if recipe.quantize == "nf4":  # a product takes its weight out of 4 bits, one at a time
        working += max(layer.largest for layer in shape.layers) * width
    cast = (shape.trained - shape.trained_embeddings) * width if autocast else 0
    cast_layer = cast if not recomputes else cast / shape.layer_count
    # Final norm's float32 copy, its output, and the gradient of the hidden states.
    norm = _norm(width, bool(layers[0][0].trained_norms), settings.fused_kernels)
    ends = tokens * shape.hidden * (norm + 2 * width)
    if restoration.share:  # the base's hidden states
        ends += restoration.length * recipe.training.batch_size * shape.hidden * width
    head = shape.head * _FLOAT32 if shape.trains_head else 0
    rows = tokens if unfused_loss else min(tokens_per_chunk(shape.vocabulary, on_gpu), tokens)
    chunk = rows * shape.vocabulary * (_LOSS_COPIES + (0 if unfused_loss else width))
    if shape.trains_head:
        chunk += shape.head * width * (1 + autocast)  # one chunk's gradient, and the cast head
    accumulated = gradients if recipe.training.accumulation > 1 else 0.0
    embedding = shape.embeddings * _FLOAT32 if shape.trains_embeddings else 0
    after_loss = tokens * shape.hidden * width + head  # the loss keeps its gradients until the backward pass is over
    update = 0.0
    if recipe.training.optimizer == "adamw" and not recipe.parallel.data.endswith("_offload"):
        # torch takes all tensors at once on GPUs, and one after another on CPU.
        update = state.moments / 2 if on_gpu else 2.0 * shape.largest * _FLOAT32

    always = {
        "weights": state.weights,
        "quantization_constants": state.constants,
        "adapter": state.adapter,
        "optimizer": state.moments,
        "communication": state.communication,
        "runtime": _GPU_RUNTIME if on_gpu else _CPU_RUNTIME,
    }
    moments_of_step = {
        "loss": {
            "gradients": accumulated,
            "saved_activations": saved,
            "working_set": cast,
            "logits": ends + head + chunk,
        },
        "last layer": {
            "gradients": max(accumulated, min(gradients, head)),
            "saved_activations": saved,
            "working_set": working + cast_layer,
            "logits": after_loss,
        },
        "first layer": {
            "gradients": gradients,
            "saved_activations": (saved - moved) / shape.layer_count,
            "working_set": max(working + cast_layer, embedding),
            "logits": after_loss,
        },
        "update": {"gradients": gradients, "working_set": update},
    }
    share = _GPU_FRAGMENTATION if on_gpu else 0.0

    def whole(moment: dict[str, float]) -> dict[str, int]:
        coming_and_going = {"fragmentation": share * sum(moment.values())}
        found = {**always, **moment, **coming_and_going}
        return {kind: math.ceil(max(0.0, found.get(kind, 0))) for kind in KINDS}

    breakdowns = {name: whole(moment) for name, moment in moments_of_step.items()}
    name = max(breakdowns, key=lambda each: sum(breakdowns[each].values()))
    breakdown = breakdowns[name]
    if not on_gpu:  # its memory is the host's
        breakdown["optimizer"] += math.ceil(host)
        host = 0.0
    return Memory(breakdown, math.ceil(host), name)


@dataclass(frozen=True)
class _State:
    """Bytes on a device that do not depend on the tokens."""

    weights: float
    constants: float
    adapter: float
    gradients: float
    moments: float
    communication: float
    host: float


def _state(shape: ModelShape, recipe: Recipe, devices: int, width: int, on_gpu: bool) -> _State:
    """Weights, what is trained with its gradients and moments, and buckets, shared as the recipe says."""
    kind = recipe.parallel.data
    is_zero, offload = kind.startswith("zero"), kind.endswith("_offload")
    ways = 1 if kind == "ddp" else devices
    ways_weights = devices if kind in ("zero3", "zero3_offload", "fsdp2") else 1
    linear = shape.linear if recipe.quantize == "nf4" else 0
    weights = linear * _NF4_WEIGHT + (shape.parameters - shape.replaced - linear) * width
    constants = linear * _NF4_CONSTANT
    masters = shape.trained * _FLOAT32
    moments = shape.trained * _MOMENTS[recipe.training.optimizer] / ways
    # Under ZeRO the model computes with 16-bit copies, whose gradients have 16 bits too, and the optimizer has the
    # masters; elsewhere the model holds these.
    held, gradients = (shape.trained * width,) * 2 if is_zero else (masters,) * 2
    adapter = held / ways_weights
    host = 0.0
    if offload:
        host += moments + masters / ways
        moments = 0.0
    elif is_zero:
        adapter += masters / ways
    if recipe.training.optimizer.startswith("paged") and not offload:
        host, moments = moments, 0.0
    communication = 0.0
    if kind == "ddp" and devices > 1:
        communication = masters  # DDP's buckets are a copy of all gradients
    if is_zero:
        communication = 2 * min(shape.trained, _ZERO_BUCKET) * width  # one fills while another is reduced
    if ways_weights > 1:
        live = min(1.0, _ZERO3_LIVE / shape.parameters) if is_zero else min(1.0, 2 / shape.layer_count)
        communication += (weights + constants + held) * live * (1 - 1 / devices)
    weights, constants = weights / ways_weights, constants / ways_weights
    if kind == "zero3_offload" and on_gpu:
        host += weights + constants + adapter
        weights = constants = adapter = 0.0
    return _State(weights, constants, adapter, gradients / ways, moments, communication, host)


def _working(layer: _Layer, tokens: int, tile: int, checkpointing: bool) -> float:
    """Bytes that one layer's backward pass adds to what is saved."""
    mlp = layer.mlp_moment * tokens + layer.tile_moment * tile
    attention = layer.attention_moment * tokens
    if checkpointing:
        return max(mlp + layer.saved * tokens, attention + layer.attention_only * tokens)
    return max(mlp, attention - (layer.saved - layer.attention_only) * tokens)


def _exchanged(layer: LayerShape, recipe: Recipe, length: int, width: int) -> float:
    """Bytes of what an attention layer has of other shards, with its gradient."""
    if recipe.shares_heads:  # all tokens for some heads: as much again as its own tokens for all heads
        return 2 * (layer.query + layer.key + 2 * layer.value) * length * width
    tokens = recipe.group_size // 2 + recipe.attention.sinks
    # Half of the heads, whose own keys and values are copied behind them; queries are padded.
    return (layer.query + layer.key + layer.value) / 2 * (2 * tokens + length) * width


def _norm(width: int, is_trained: bool, is_fused: bool) -> int:
    """Bytes that a norm keeps of each element: its input, which eager norms take to float32, and what is multiplied
    with a trained weight.
    """
    return width if is_fused else _FLOAT32 + width * is_trained


def _layer(layer: LayerShape, hidden: int, width: int, autocast: bool, recipe: Recipe, on_gpu: bool) -> _Layer:
    attention_inputs, mlp_inputs = layer.attention_inputs, layer.mlp_inputs
    adapter = recipe.adapter
    has_casts = autocast and (adapter.kind != "lora" or adapter.variant == "dora")
    if not has_casts and not adapter.dropout:  # what several products take is one tensor
        attention_inputs = min(attention_inputs, hidden + layer.query)
        mlp_inputs = min(mlp_inputs, hidden + layer.inner)
    fused = recipe.memory.fused_kernels
    plain = layer.norms + layer.qk_norms - layer.trained_norms
    norms = plain * _norm(width, False, fused) + layer.trained_norms * _norm(width, True, fused)
    out = layer.value * layer.heads / max(1, layer.kv_heads)
    scores = layer.heads * _FLOAT32  # log-sum-exp
    keys, values, mask_row = float(layer.key), float(layer.value), 0
    if layer.window and not layer.chunks and layer.window < recipe.sequence_length:
        # By blocks (attention/window.py): keys and values of two windows as query heads see them, and the mask's row.
        keys, values, mask_row = 2.0 * layer.query, 2 * out, 2 * layer.window
    attention = (attention_inputs + layer.query + keys + values + out + mask_row) * width + scores
    # Dropout's mask: bytes on GPUs; on CPU in the dtype of what is dropped, float32.
    mask = 1 if on_gpu else _FLOAT32
    attention += layer.attention_dropout * mask
    gated = layer.up > layer.inner
    mlp = (mlp_inputs + layer.up + (layer.inner if gated and not fused else 0)) * width + layer.mlp_dropout * mask
    # Backward through the MLP: the gradients of the product and of both its factors (the fused kernel puts these in the
    # factors' place); with casts, a float32 gradient of
    # what the last product takes. The residual stream's gradient and the block's own.
    mlp_gradients = max(
        (1 if fused else 3) * layer.inner * width, layer.mlp_input * (width + (_FLOAT32 if has_casts else 0))
    )
    residual = 2 * hidden * width
    # Backward through attention: the output's gradient, also by groups; the gradients of queries, keys and values as
    # query heads see them, and gathered; the kernel's float32 sums.
    attention_gradients = (2 * out + 2 * layer.query + out + layer.query + keys + values) * width + mask_row
    attention_gradients += layer.query * _FLOAT32 if on_gpu else 0
    kept = out * width + scores
    if recipe.memory.mlp_tile:
        # What the tiles take is saved, the rest of it is there one tile at a time. The gradients of what they give and
        # take, the latter by tiles and as one.
        tiled = hidden * width
        return _Layer(
            saved=norms + attention + tiled,
            attention_only=norms / 2 + attention,
            kept=kept,
            mlp_moment=residual + 3 * tiled,
            attention_moment=attention_gradients + residual,
            tile_moment=mlp + mlp_gradients,
        )
    return _Layer(
        saved=norms + attention + mlp,
        attention_only=norms / 2 + attention,
        kept=kept,
        mlp_moment=mlp_gradients + residual,
        attention_moment=attention_gradients + residual,
        tile_moment=0.0,
    )
