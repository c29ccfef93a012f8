"""Bytes that a training step needs on each device, by kind, from sizes alone.

A step has four moments that can be its peak, and the largest is taken:

- *loss*: the forward pass is over, everything saved for the backward pass is there, and the loss works on logits;
- *last layer*: its backward pass has all layers' saved inputs beside it;
- *first layer*: its backward pass has all gradients beside it;
- *update*: all gradients, the masters and the optimizer's states.

`planning/state_memory.py` counts what does not depend on the tokens, `planning/layer_memory.py` the decoder layers.
"""

import math
from dataclasses import dataclass
from functools import cached_property

from lengthen.models.logits import tokens_per_chunk
from lengthen.planning.devices import WIDTHS, Device
from lengthen.planning.layer_memory import FLOAT32, LayerBytes, exchanged_bytes, layer_bytes, norm_bytes, working_bytes
from lengthen.planning.shape import LayerShape, ModelShape
from lengthen.planning.state_memory import StateBytes, state_bytes
from lengthen.recipe import Recipe

__all__ = ["GPU_RUNTIME", "KINDS", "Memory", "memory_of"]

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
"""Kinds of bytes: the frozen base; NF4's constants; float32 masters of what is trained; their gradients; Adam's
moments; what waits for the backward pass; what one layer holds while it is computed; the loss's; gathered weights and
buckets of several devices; the accelerator's context and libraries; what allocators can't use."""

# Per logit of a chunk: float32 logits, log-softmax, and the gradients of both; the last chunk's 16-bit gradient.
_LOSS_COPIES = 4 * FLOAT32

GPU_RUNTIME = 600 << 20
"""Bytes of the CUDA context, cuBLAS's workspaces and kernels."""
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

    Returns:
        The largest of the step's moments.
    """
    width, on_gpu = WIDTHS[dtype], device.kind != "cpu"
    state = state_bytes(shape, recipe, devices, width, on_gpu)
    step = _Step(shape, recipe, width, on_gpu, state, unfused_loss)
    always = {
        "weights": state.weights,
        "quantization_constants": state.constants,
        "adapter": state.adapter,
        "optimizer": state.moments,
        "communication": state.communication,
        "runtime": GPU_RUNTIME if on_gpu else _CPU_RUNTIME,
    }
    moments = {
        "loss": step.loss(),
        "last layer": step.last_layer(),
        "first layer": step.first_layer(),
        "update": step.update(),
    }
    breakdowns = {name: _breakdown(always, moment, on_gpu) for name, moment in moments.items()}
    name = max(breakdowns, key=lambda each: sum(breakdowns[each].values()))
    breakdown, host = breakdowns[name], state.host + step.saved.on_host
    if not on_gpu:  # its memory is the host's
        breakdown["optimizer"] += math.ceil(host)
        host = 0.0
    return Memory(breakdown, math.ceil(host), name)


def _breakdown(always: dict[str, float], moment: dict[str, float], on_gpu: bool) -> dict[str, int]:
    fragmentation = _GPU_FRAGMENTATION * sum(moment.values()) if on_gpu else 0.0
    found = {**always, **moment, "fragmentation": fragmentation}
    return {kind: math.ceil(max(0.0, found.get(kind, 0))) for kind in KINDS}


@dataclass(frozen=True)
class _Saved:
    """Bytes that wait for the backward pass: on the device, for each layer on average, and in CPU memory."""

    on_device: float
    per_layer: float
    on_host: float


@dataclass(frozen=True)
class _Step:
    """A step on one device: bytes by kind in each of its moments.

    Attributes:
        width: bytes of a number of the base's dtype.
        state: what does not depend on the tokens.
        unfused_loss: whether the loss computes all logits at once.
    """

    shape: ModelShape
    recipe: Recipe
    width: int
    on_gpu: bool
    state: StateBytes
    unfused_loss: bool

    def loss(self) -> dict[str, float]:
        """Bytes when the forward pass is over, and the loss works on logits."""
        return {
            "gradients": self._accumulated,
            "saved_activations": self.saved.on_device,
            "working_set": self._cast,
            "logits": self._ends + self._head_gradient + self._chunk,
        }

    def last_layer(self) -> dict[str, float]:
        """Bytes in its backward pass, with all layers' saved inputs."""
        return {
            "gradients": max(self._accumulated, min(self.state.gradients, self._head_gradient)),
            "saved_activations": self.saved.on_device,
            "working_set": self._layer_backward,
            "logits": self._after_loss,
        }

    def first_layer(self) -> dict[str, float]:
        """Bytes in its backward pass, with all gradients."""
        embedding = self.shape.embeddings * FLOAT32 if self.shape.trains_embeddings else 0
        return {
            "gradients": self.state.gradients,
            "saved_activations": self.saved.per_layer,
            "working_set": max(self._layer_backward, embedding),
            "logits": self._after_loss,
        }

    def update(self) -> dict[str, float]:
        """Bytes of all gradients, and of the optimizer beside its states."""
        working = 0.0
        if self.recipe.training.optimizer == "adamw" and not self.recipe.parallel.data.endswith("_offload"):
            # torch takes all tensors at once on GPUs, and one after another on CPU.
            working = self.state.moments / 2 if self.on_gpu else 2.0 * self.shape.largest * FLOAT32
        return {"gradients": self.state.gradients, "working_set": working}

    @cached_property
    def saved(self) -> _Saved:
        """The layers' saved activations, or their inputs where these are recomputed."""
        settings = self.recipe.memory
        staying = 0.0
        if self._recomputes:
            movable = float(math.ceil(self.shape.layer_count / settings.checkpoint_every) * self._inputs)
            if self.recipe.keeps_attention:
                staying = sum(layer.count * each.kept for layer, each in self._layers) * self._tokens
        else:
            movable = sum(layer.count * each.saved for layer, each in self._layers) * self._tokens
        to_disk = settings.offload_activations == "disk"
        # Two layers' inputs are on the device at any time: one in use, one on its way.
        moves = to_disk or (settings.offload_activations and self.on_gpu)
        moved = max(0.0, movable - 2 * self._inputs) if moves else 0.0
        # Where a layer's inputs were moved, they are back when its backward pass needs them.
        per_layer = (movable + staying) / self.shape.layer_count
        return _Saved(movable - moved + staying, per_layer, 0.0 if to_disk else moved)

    @property
    def _length(self) -> int:
        """Tokens of a sequence on this device: of its own shard, or of a restoration window where that is longer.

        A step's passes come one after another, and windows are not shared.
        """
        length = math.ceil(self.recipe.sequence_length / self.recipe.parallel.sequence)
        restoration = self.recipe.training.restoration
        return max(length, restoration.length) if restoration.share else length

    @property
    def _tokens(self) -> int:
        return self._length * self.recipe.training.batch_size

    @property
    def _inputs(self) -> int:
        """Bytes of a layer's input, all tokens."""
        return self.shape.hidden * self.width * self._tokens

    @property
    def _recomputes(self) -> bool:
        return bool(self.recipe.memory.activation_checkpointing or self.recipe.memory.sequence_chunk)

    @property
    def _autocast(self) -> bool:
        return self.recipe.uses_autocast(self.width)

    @cached_property
    def _layers(self) -> list[tuple[LayerShape, LayerBytes]]:
        sizes = (self.shape.hidden, self.width, self._autocast, self.recipe, self.on_gpu)
        return [(layer, layer_bytes(layer, *sizes)) for layer in self.shape.layers]

    @property
    def _working(self) -> float:
        """Bytes of the largest layer's backward pass beside the saved activations."""
        settings, batch = self.recipe.memory, self.recipe.training.batch_size
        at_once = self._length
        if settings.sequence_chunk:  # a chunk, the half group before it and the sinks
            at_once = min(at_once, settings.sequence_chunk + self.recipe.group_size // 2 + self.recipe.attention.sinks)
        tile = min(settings.mlp_tile, at_once) * batch
        working = max(working_bytes(each, at_once * batch, tile, self._recomputes) for _, each in self._layers)
        if settings.sequence_chunk:  # the gradients of a layer's input and output are whole; an input computed again
            working += (2 + (settings.checkpoint_every > 1)) * self._inputs
        if self.recipe.parallel.sequence > 1:
            sizes = (self.recipe, self._length, self.width)
            working += max(exchanged_bytes(layer, *sizes) for layer in self.shape.layers)
        if self.recipe.quantize == "nf4":  # a product takes its weight out of 4 bits, one at a time
            working += max(layer.largest for layer in self.shape.layers) * self.width
        return working

    @property
    def _cast(self) -> float:
        """The masters' 16-bit copies under autocast."""
        return (self.shape.trained - self.shape.trained_embeddings) * self.width if self._autocast else 0

    @property
    def _layer_backward(self) -> float:
        """Bytes of one layer's backward pass, with the casts that are there meanwhile."""
        return self._working + (self._cast / self.shape.layer_count if self._recomputes else self._cast)

    @property
    def _accumulated(self) -> float:
        return self.state.gradients if self.recipe.training.accumulation > 1 else 0.0

    @property
    def _head_gradient(self) -> int:
        return self.shape.head * FLOAT32 if self.shape.trains_head else 0

    @property
    def _ends(self) -> float:
        """What the final norm keeps (by chunks or fused its input), its output, the gradient of the hidden states."""
        keeps_input = self.recipe.memory.fused_kernels or self.recipe.memory.sequence_chunk > 0
        norm = norm_bytes(self.width, bool(self.shape.layers[0].trained_norms), keeps_input)
        ends = self._tokens * self.shape.hidden * (norm + 2 * self.width)
        restoration = self.recipe.training.restoration
        if restoration.share:  # the base's hidden states
            ends += restoration.length * self.recipe.training.batch_size * self.shape.hidden * self.width
        return ends

    @property
    def _chunk(self) -> float:
        """The logits of one chunk with their gradients, or all of them."""
        shape = self.shape
        rows = self._tokens
        if not self.unfused_loss:
            rows = min(tokens_per_chunk(shape.vocabulary, self.on_gpu), rows)
        chunk = rows * shape.vocabulary * (_LOSS_COPIES + (0 if self.unfused_loss else self.width))
        if shape.trains_head:
            chunk += shape.head * self.width * (1 + self._autocast)  # one chunk's gradient, and the cast head
        return chunk

    @property
    def _after_loss(self) -> float:
        """The loss keeps its gradients until the backward pass is over."""
        return self._tokens * self.shape.hidden * self.width + self._head_gradient
