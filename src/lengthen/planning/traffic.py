"""Bytes that processes which share sequences send each other."""

from dataclasses import dataclass

from lengthen.attention_pattern import Groups, head_parts, layer_patterns
from lengthen.planning.shape import LayerShape, ModelShape
from lengthen.recipe import Recipe

__all__ = ["Traffic", "sequence_traffic"]


@dataclass(frozen=True)
class Traffic:
    """Bytes that the process which sends most sends in an optimizer step.

    Attributes:
        neighbors: keys and values of the groups that shards cut, to the next process; their gradients, back.
        sinks: keys and values of a document's first tokens, to all that are behind; their gradients, back.
        heads: queries, keys, values and outputs of full attention, and their gradients, to all.

    With `attention.full_last`, a step is the mean over the run. What DDP or FSDP2 sends beside it is not counted.
    """

    neighbors: float = 0.0
    sinks: float = 0.0
    heads: float = 0.0

    @property
    def total(self) -> int:
        """All that it sends, bytes."""
        return round(self.neighbors + self.sinks + self.heads)


def sequence_traffic(shape: ModelShape, recipe: Recipe, width: int) -> Traffic:
    """Bytes that processes send to those that share their sequences, each of which is taken for one document.

    The forward pass sends what attention needs of others, its recomputation sends it again, and the backward pass sends
    gradients of the same size back.

    Args:
        shape: of the model.
        recipe: the run.
        width: bytes of a number.
    """
    count = recipe.parallel.sequence
    if count == 1:
        return Traffic()
    last = 1.0 if recipe.shares_heads else recipe.attention.full_last
    sequences = recipe.training.batch_size * recipe.training.accumulation
    forward = 1 + bool(recipe.memory.activation_checkpointing)
    under_s2, at_full = (1 - last) * sequences * width, last * sequences * width
    halo = sinks = heads = 0.0
    for layer in shape.layers:
        if last < 1:
            of_halo, of_sinks = _halo(layer, recipe)
            halo, sinks = halo + layer.count * of_halo * under_s2, sinks + layer.count * of_sinks * under_s2
        if last:
            heads += layer.count * _heads(layer, recipe) * at_full
    # The first process has nobody before it, and sends the sinks to all; the last one sends gradients only.
    of_processes = [
        Traffic(halo * (forward * (rank < count - 1) + (rank > 0)), sinks * (1 if rank else forward * (count - 1)))
        for rank in range(count)
    ]
    most = max(of_processes, key=lambda each: each.total)
    return Traffic(most.neighbors, most.sinks, heads * (forward + 1))


def _halo(layer: LayerShape, recipe: Recipe) -> tuple[float, float]:
    """Numbers of the keys and values that a layer sends to the next process, and as sinks to each one behind."""
    length, size = recipe.sequence_length, recipe.group_size
    start = max(1, round(length / recipe.parallel.sequence / size)) * size  # of the second shard
    patterns = layer_patterns(recipe.attention.pattern)
    halo = sinks = 0.0
    for pattern in patterns:
        groups = Groups(size, recipe.attention.sinks, pattern)
        for part in head_parts(layer.heads, layer.kv_heads, (((0, length),),), groups):
            share = (part.kv_heads.stop - part.kv_heads.start) / layer.kv_heads / len(patterns)
            begin = max(cut for cut in groups.cuts(length, part.half) if cut <= start)
            halo += share * (layer.key + layer.value) * (start - begin)
            sinks += share * (layer.key + layer.value) * groups.sinks
    return halo, sinks


def _heads(layer: LayerShape, recipe: Recipe) -> float:
    """Numbers that a process sends in a layer at full attention: its tokens to others, their heads' outputs back."""
    count = recipe.parallel.sequence
    return layer.of_one(count) * (count - 1) * recipe.sequence_length / count
