"""Bytes that do not depend on the tokens: weights, what is trained, the optimizer's states, by the way of sharing."""

from dataclasses import dataclass

from lengthen.planning.layer_memory import FLOAT32
from lengthen.planning.shape import ModelShape
from lengthen.recipe import Recipe

__all__ = ["StateBytes", "state_bytes", "weight_bytes"]

# NF4 (arXiv 2305.14314, section 3): 4 bits a weight; blocks of 64 with an 8-bit constant each; of those, blocks of 256
# with a float32 constant each.
_NF4_WEIGHT, _NF4_CONSTANT = 0.5, 1 / 64 + FLOAT32 / (64 * 256)

# Adam's two moments, bytes per trained parameter; the 8-bit ones with a float32 constant for each block of 256.
_MOMENTS = {"adamw": 8.0, "paged_adamw_32bit": 8.0, "adamw_8bit": 2 + 8 / 256, "paged_adamw_8bit": 2 + 8 / 256}

# Elements of gradient that DeepSpeed reduces at a time (training/parallel.py).
_ZERO_BUCKET = 50_000_000

# DeepSpeed's default of stage3_max_live_parameters: gathered parameters that it keeps at most.
_ZERO3_LIVE = 1_000_000_000


@dataclass(frozen=True)
class StateBytes:
    """Bytes on a device that do not depend on the tokens.

    Attributes:
        weights: the frozen base's.
        constants: of its quantization.
        adapter: float32 masters of what is trained, and under ZeRO the 16-bit copies beside them.
        gradients, moments: of what is trained; `moments` are Adam's two.
        communication: buckets, and weights that are gathered.
        host: in CPU memory, offloaded or paged.
    """

    weights: float
    constants: float
    adapter: float
    gradients: float
    moments: float
    communication: float
    host: float


def state_bytes(shape: ModelShape, recipe: Recipe, devices: int, width: int, on_gpu: bool) -> StateBytes:
    """Weights, what is trained with its gradients and moments, and buckets, shared as the recipe says.

    Args:
        shape: of the model with what is trained in it.
        recipe: the run.
        devices: how many share the work.
        width: bytes of a number of the base's dtype.
        on_gpu: whether the device's memory is another than the CPU's.

    Returns:
        Bytes on each device, and in CPU memory for each.
    """
    kind = recipe.parallel.data
    is_zero, offload = kind.startswith("zero"), kind.endswith("_offload")
    ways = 1 if kind == "ddp" else devices
    ways_weights = devices if kind in ("zero3", "zero3_offload", "fsdp2") else 1
    weights, constants = weight_bytes(shape, recipe.quantize, width)
    weights -= shape.replaced * width
    masters = shape.trained * FLOAT32
    moments = shape.trained * _MOMENTS[recipe.training.optimizer] / ways
    # Under ZeRO the model computes with 16-bit copies, whose gradients have 16 bits too, and the optimizer has the
    # masters; elsewhere the model holds these.
    held = shape.trained * width if is_zero else masters
    gradients = held / ways
    adapter = held / ways_weights
    communication = _buckets(kind, shape, devices, width)
    if ways_weights > 1:
        live = min(1.0, _ZERO3_LIVE / shape.parameters) if is_zero else min(1.0, 2 / shape.layer_count)
        communication += (weights + constants + held) * live * (1 - 1 / devices)
    weights, constants = weights / ways_weights, constants / ways_weights
    host = 0.0
    if offload:
        host, moments = moments + masters / ways, 0.0
    elif is_zero:
        adapter += masters / ways
    if recipe.training.optimizer.startswith("paged") and not offload:
        host, moments = moments, 0.0
    if kind == "zero3_offload" and on_gpu:
        host += weights + constants + adapter
        weights = constants = adapter = 0.0
    return StateBytes(weights, constants, adapter, gradients, moments, communication, host)


def weight_bytes(shape: ModelShape, quantize: str | None, width: int) -> tuple[float, float]:
    """Bytes of a base's weights, and of the constants of their quantization.

    Args:
        shape: of the base.
        quantize: "nf4" for linear layers in 4 bits, else None.
        width: bytes of a number of all other weights.
    """
    linear = shape.linear if quantize == "nf4" else 0
    return linear * _NF4_WEIGHT + (shape.parameters - linear) * width, linear * _NF4_CONSTANT


def _buckets(kind: str, shape: ModelShape, devices: int, width: int) -> float:
    """Gradients on their way between the devices."""
    if kind.startswith("zero"):
        return 2 * min(shape.trained, _ZERO_BUCKET) * width  # one fills while another is reduced
    if kind == "ddp" and devices > 1:
        return shape.trained * FLOAT32  # DDP's buckets are a copy of all gradients
    return 0.0
