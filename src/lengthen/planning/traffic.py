"""Bytes that processes which share sequences send each other."""

from lengthen.planning.shape import LayerShape, ModelShape
from lengthen.recipe import Recipe

__all__ = ["sequence_traffic"]


def sequence_traffic(shape: ModelShape, recipe: Recipe, width: int) -> int:
    """Bytes that a process sends in an optimizer step to those that share its sequences, besides what is trained.

    With S2 keys and values of half a group go to the next process, and a document's sinks to all behind it (here: those
    of one document a sequence, sent by the first process; the largest is told). At full attention heads are shared out.
    The forward pass sends them, its repetition again, and the backward pass gradients of the same size.

    Args:
        shape: of the model.
        recipe: the run.
        width: bytes of a number.
    """
    count = recipe.parallel.sequence
    if count == 1:
        return 0
    sequences = recipe.training.batch_size * recipe.training.accumulation
    passes = 2 + bool(recipe.memory.activation_checkpointing)
    of_layers = sum(layer.count * _of_layer(layer, recipe, count) for layer in shape.layers)
    return round(of_layers * passes * sequences * width)


def _of_layer(layer: LayerShape, recipe: Recipe, count: int) -> float:
    if recipe.shares_heads:
        numbers = layer.query + layer.key + 2 * layer.value
        return numbers * recipe.sequence_length / count * (count - 1) / count
    halo = (layer.key + layer.value) / 2 * (recipe.group_size // 2)
    return halo + (layer.key + layer.value) * recipe.attention.sinks * (count - 1)
