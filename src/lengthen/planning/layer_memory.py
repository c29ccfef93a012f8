"""Bytes of decoder layers: what autograd saves in one, tensor by tensor, and what its backward pass takes.

Trained tensors are float32 masters under autocast (adapters/build.py): where what a trained product takes is cast, it
keeps a copy.
"""

from dataclasses import dataclass

from lengthen.planning.shape import LayerShape
from lengthen.recipe import Recipe

__all__ = ["FLOAT32", "LayerBytes", "exchanged_bytes", "layer_bytes", "norm_bytes", "working_bytes"]

FLOAT32 = 4

# Numbers of a pair of tokens that the backward pass adds where no kernel computes attention: the softmax's two
# gradients, in float32.
_PAIR_GRADIENTS = 4


@dataclass(frozen=True)
class LayerBytes:
    """Bytes per token of one layer.

    Attributes:
        saved: for the backward pass.
        attention_only: of these, by attention.
        kept: where the layer is recomputed, but not its attention.
        mlp_moment, attention_moment: that the backward pass of each adds at its peak.
        tile_moment: the same for the tokens of one MLP tile; 0 without tiles.
    """

    saved: float
    attention_only: float
    kept: float
    mlp_moment: float
    attention_moment: float
    tile_moment: float


def working_bytes(layer: LayerBytes, tokens: int, tile: int, checkpointing: bool) -> float:
    """Bytes that one layer's backward pass adds to what is saved.

    Args:
        layer: its bytes per token.
        tokens: that it computes at once.
        tile: of these, tokens in one tile of its MLP; 0 without tiles.
        checkpointing: whether the layer is computed again first.
    """
    mlp = layer.mlp_moment * tokens + layer.tile_moment * tile
    attention = layer.attention_moment * tokens
    if checkpointing:
        return max(mlp + layer.saved * tokens, attention + layer.attention_only * tokens)
    return max(mlp, attention - (layer.saved - layer.attention_only) * tokens)


def exchanged_bytes(layer: LayerShape, recipe: Recipe, length: int, width: int) -> float:
    """Bytes of what an attention layer has of other shards, with its gradient.

    Args:
        layer: its sizes.
        recipe: the run, whose sequences are in shards.
        length: tokens of a shard.
        width: bytes of a number.
    """
    if recipe.shares_heads or recipe.attention.full_last:  # all tokens for some heads
        return 2 * layer.of_one(recipe.parallel.sequence) * recipe.parallel.sequence * length * width
    tokens = recipe.group_size // 2 + recipe.attention.sinks
    # Half of the heads, whose own keys and values are copied behind them; queries are padded.
    return (layer.query + layer.key + layer.value) / 2 * (2 * tokens + length) * width


def norm_bytes(width: int, is_trained: bool, is_fused: bool) -> int:
    """Bytes that a norm keeps of each element: its input, which eager norms take to float32, and what is multiplied
    with a trained weight.

    Args:
        width: bytes of a number of the base's dtype.
        is_trained: whether its weight is.
        is_fused: whether one kernel computes it.
    """
    return width if is_fused else FLOAT32 + width * is_trained


def layer_bytes(layer: LayerShape, hidden: int, width: int, autocast: bool, recipe: Recipe, on_gpu: bool) -> LayerBytes:
    """Count a layer's tensors.

    Args:
        layer: its sizes.
        hidden: E.
        width: bytes of a number of the base's dtype.
        autocast: whether float32 masters are cast.
        recipe: the run; its adapter, kernels and tiles count.
        on_gpu: whether kernels are a GPU's.

    Returns:
        Bytes per token.
    """
    has_casts = autocast and (recipe.adapter.kind != "lora" or recipe.adapter.variant == "dora")
    sizes = (layer, hidden, width, has_casts, recipe, on_gpu)
    attention, attention_gradients, kept = _attention_bytes(*sizes)
    mlp, mlp_gradients = _mlp_bytes(*sizes)
    fused = recipe.memory.fused_kernels
    plain = layer.norms + layer.qk_norms - layer.trained_norms
    norms = plain * norm_bytes(width, False, fused) + layer.trained_norms * norm_bytes(width, True, fused)
    residual = 2 * hidden * width  # the residual stream's gradient and the block's own
    tile = 0.0
    if recipe.memory.mlp_tile:
        # The tiles' input is saved, the rest of it is there one tile at a time. The gradients of what they give and
        # take, the latter by tiles and as one.
        tile, mlp, mlp_gradients = mlp + mlp_gradients, hidden * width, 3 * hidden * width
    return LayerBytes(
        saved=norms + attention + mlp,
        attention_only=norms / 2 + attention,
        kept=kept,
        mlp_moment=mlp_gradients + residual,
        attention_moment=attention_gradients + residual,
        tile_moment=tile,
    )


def _attention_bytes(
    layer: LayerShape, hidden: int, width: int, has_casts: bool, recipe: Recipe, on_gpu: bool
) -> tuple[float, float, float]:
    """Bytes that attention saves, those of its gradients, and of what it saves, those that a kernel gives."""
    inputs = layer.attention_inputs
    if not has_casts and not recipe.adapter.dropout:  # what several products take is one tensor
        inputs = min(inputs, hidden + layer.query)
    out = layer.out
    keys, values, mask_row = float(layer.key), float(layer.value), 0
    window = None if layer.chunks or layer.score_copies else layer.window
    if window and window < recipe.sequence_length:
        # By blocks (attention/window.py): keys and values of two windows as query heads see them, and the mask's row.
        keys, values, mask_row = 2.0 * layer.query, 2 * out, 2 * window
    scores = layer.heads * FLOAT32  # log-sum-exp
    pairs = layer.heads * recipe.sequence_length * width if layer.score_copies else 0
    saved = (inputs + layer.query + keys + values + out + mask_row) * width + scores
    saved += layer.score_copies * pairs + layer.attention_dropout * _dropout_bytes(on_gpu)
    # The output's gradient, also by groups; the gradients of queries, keys and values as query heads see them, and
    # gathered; the kernel's float32 sums.
    gradients = (2 * out + 2 * layer.query + out + layer.query + keys + values) * width + mask_row
    gradients += (layer.query * FLOAT32 if on_gpu else 0) + _PAIR_GRADIENTS * pairs
    return saved, gradients, 0.0 if layer.score_copies else out * width + scores


def _mlp_bytes(
    layer: LayerShape, hidden: int, width: int, has_casts: bool, recipe: Recipe, on_gpu: bool
) -> tuple[float, float]:
    """Bytes that an MLP saves, and those of its gradients."""
    inputs, fused = layer.mlp_inputs, recipe.memory.fused_kernels
    if not has_casts and not recipe.adapter.dropout:  # what several products take is one tensor
        inputs = min(inputs, hidden + layer.inner)
    product = layer.inner if layer.up > layer.inner and not fused else 0  # of gate and up
    saved = (inputs + layer.up + product) * width + layer.mlp_dropout * _dropout_bytes(on_gpu)
    # The gradients of the product and of both its factors (the fused kernel puts these in the factors' place); with
    # casts, a float32 gradient of what the last product takes.
    widest = layer.mlp_input * (width + (FLOAT32 if has_casts else 0))
    return saved, max((1 if fused else 3) * layer.inner * width, widest)


def _dropout_bytes(on_gpu: bool) -> int:
    """Of an element of dropout's mask: bytes on GPUs; on CPU in the dtype of what is dropped, float32."""
    return 1 if on_gpu else FLOAT32
