"""Floating-point operations of a training step, and what S2 saves of them.

A multiplication with an addition is two. Backward, a product costs as much again for what it takes, and as much again
for its weight where that is trained; checkpointing computes the layers' forward pass a second time. Attention's
backward pass is 2.5 forward ones: five products instead of two, since flash kernels compute the scores again
(arXiv 2307.08691, section 4.1). Norms, rotations and activations are left out: they are below 1%.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from lengthen.attention_pattern import Groups, layer_patterns, s2_first_shifted_head
from lengthen.planning.shape import LayerShape, ModelShape
from lengthen.recipe import Recipe, SourceRecipe

__all__ = ["Flops", "flops_of", "model_flops", "visible_pairs"]

_ATTENTION_BACKWARD = 2.5


@dataclass(frozen=True)
class Flops:
    """Operations of one optimizer step on one device.

    Attributes:
        linear: of products with weights, the head's included.
        attention: of attention as the recipe has it.
        full_attention: of full attention in its place.

    With `attention.full_last`, a step is the mean over the run.
    """

    linear: float
    attention: float
    full_attention: float

    @property
    def total(self) -> float:
        """All that the step computes."""
        return self.linear + self.attention


def flops_of(shape: ModelShape, recipe: Recipe) -> Flops:
    """Operations of one optimizer step: all of its sequences on one device, and its windows for restoration.

    Every sequence is taken for one document, but for those of a mixture's sources that say how long theirs are; shorter
    packed ones need less attention.

    Args:
        shape: of the model with what is trained in it.
        recipe: the run.

    Raises:
        LengthenError: an attention pattern or group size that S2 can't use.
    """
    sequences = recipe.training.batch_size * recipe.training.accumulation
    per_token = _linear_per_token(shape, recipe)
    passes = 1 + _ATTENTION_BACKWARD + _recomputes(recipe) * (not recipe.keeps_attention)
    tokens = recipe.sequence_length * sequences / recipe.parallel.sequence
    groups = _groups(recipe)
    attention = full_attention = 0.0
    for share, length in _documents(recipe):
        count = share * tokens / length
        attention += count * passes * _attention(shape, groups, length, recipe.sequence_length)
        full_attention += count * passes * _attention(shape, None, length, recipe.sequence_length)
    attention *= 1 + _again(recipe) / 2  # of a group's pairs, half a group has a quarter
    attention += recipe.attention.full_last * (full_attention - attention)
    linear = per_token * tokens
    restoration = recipe.training.restoration
    if restoration.share:  # at full attention, and the base's forward pass beside the run's
        windows = sequences * restoration.share / (1 - restoration.share)
        forward = shape.head + sum(layer.count * layer.active for layer in shape.layers)
        linear += (per_token + forward) * windows * restoration.length
        beside = windows * (passes + 1) * _attention(shape, None, restoration.length, restoration.length)
        attention, full_attention = attention + beside, full_attention + beside
    return Flops(2 * linear, attention, full_attention)


def _linear_per_token(shape: ModelShape, recipe: Recipe) -> float:
    """Multiplications with weights for a token of a step, forward and backward."""
    recomputed = _recomputes(recipe)
    per_token = 0.0
    for layer in shape.layers:
        forward = _multiplied(layer, recipe.adapter.kind == "full")
        mlp = _mlp_weights(layer, shape.hidden)
        # The tiles of an MLP are computed once more, whether or not the layer is.
        tiles = mlp if recipe.memory.mlp_tile else 0
        per_token += layer.count * ((2 + recomputed) * forward + layer.active_trained + tiles)
        # Tokens before a chunk have no MLP.
        per_token += _again(recipe) * layer.count * (2 + recomputed) * max(0, forward - mlp)
    return per_token + shape.head * (3 if shape.trains_head else 2)


def _recomputes(recipe: Recipe) -> float:
    """How often layers' forward passes are repeated; of `every` layers, the ones that keep nothing are once more."""
    every = recipe.memory.checkpoint_every
    return bool(recipe.memory.activation_checkpointing or recipe.memory.sequence_chunk) + (every - 1) / 2


def _again(recipe: Recipe) -> float:
    """Share of the tokens that layers compute twice: half a group before each chunk but the first."""
    chunk, length = recipe.memory.sequence_chunk, recipe.sequence_length
    return (-(-length // chunk) - 1) * recipe.group_size / 2 / length if chunk else 0.0


def _documents(recipe: Recipe) -> list[tuple[float, float]]:
    """Shares of the run's tokens, and how long the documents are that they come in."""
    length, sources = recipe.sequence_length, recipe.data.sources
    weights = [1.0 if source.weight is None else source.weight for source in sources]
    if not recipe.data.is_mixture or not any(weights):
        return [(1.0, length)]
    return [
        (w / sum(weights), min(length, _typical(source, length))) for w, source in zip(weights, sources, strict=True)
    ]


def _typical(source: SourceRecipe, length: int) -> float:
    if source.kind == "short":
        return source.window
    if isinstance(source.length, tuple):  # drawn evenly in the logarithm
        shortest, longest = source.length
        return shortest if shortest == longest else (longest - shortest) / math.log(longest / shortest)
    return source.length or length


def model_flops(shape: ModelShape, recipe: Recipe, documents: Iterable[int], full_attention: bool = False) -> float:
    """Operations that forward and backward pass need however they are computed: the model's, as in an MFU.

    What is recomputed does not count, so that attention's backward pass is two forward ones, and frozen weights have
    no gradient of their own.

    Args:
        shape: of the model with what is trained in it.
        recipe: the run.
        documents: lengths of those in the batch, tokens.
        full_attention: in place of the recipe's.

    Source:
        arXiv 2204.02311, appendix B.
    """
    lengths = Counter(documents)
    tokens = sum(length * count for length, count in lengths.items())
    is_full = recipe.adapter.kind == "full"
    per_token = float(shape.head * (3 if shape.trains_head else 2))
    for layer in shape.layers:
        per_token += layer.count * (2 * _multiplied(layer, is_full) + layer.active_trained)
    groups = None if full_attention else _groups(recipe)
    attention = sum(count * 3 * _attention(shape, groups, length) for length, count in lengths.items())
    return 2 * per_token * tokens + attention


def _multiplied(layer: LayerShape, full: bool) -> float:
    """Weights that a token meets in the forward pass; in full fine-tuning the trained ones are the base's own."""
    return layer.active + (0 if full else layer.active_trained)


def _per_pair(layer: LayerShape) -> float:
    """Operations of attention's forward pass for a (query, key) pair, all heads."""
    return 2 * (layer.query + layer.out)


def _pairs(layer: LayerShape, groups: list[Groups] | None, length: int, sequence: int | None) -> float:
    """Pairs of a document that a head computes in a layer, as `_attention` says."""
    if layer.window and layer.chunks:
        return visible_pairs([*range(0, length, layer.window), length], length)
    if layer.window and sequence is not None and layer.window < sequence:
        return 2 * layer.window * length  # by blocks: its own and the one before (attention/window.py)
    if layer.window or groups is None:
        return visible_pairs([0, length], length, layer.window)
    return _mean_pairs(layer, groups, length)


def visible_pairs(cuts: list[int], length: int, window: int | None = None, sinks: int = 0) -> int:
    """How many (query, key) pairs are computed.

    Args:
        cuts: where the groups of one document begin and end, 0 to `length`.
        length: of the document, tokens.
        window: tokens back that a query sees at most, itself included.
        sinks: first tokens of the document that every group sees.
    """
    assert cuts[-1] == length
    if window is not None and window < length:
        return window * (window + 1) // 2 + (length - window) * window
    own = sum((end - begin) * (end - begin + 1) // 2 for begin, end in pairwise(cuts))
    return own + sinks * (length - cuts[1]) if len(cuts) > 2 else own


def _groups(recipe: Recipe) -> list[Groups] | None:
    """The groups that layers take turns with; None: full attention."""
    wanted = recipe.attention
    if wanted.kind != "s2":
        return None
    return [Groups(recipe.group_size, wanted.sinks, each) for each in layer_patterns(wanted.pattern)]


def _attention(shape: ModelShape, groups: list[Groups] | None, length: float, sequence: int | None = None) -> float:
    """Operations of attention's forward pass over one document, all layers.

    Args:
        shape: of the model.
        groups: of the layers that see the whole context; None for full attention.
        length: of the document, tokens.
        sequence: tokens of the sequence that it is packed in, to count what is computed; None for what is seen.
    """
    return sum(
        layer.count * _per_pair(layer) * _pairs(layer, groups, round(length), sequence)
        for layer in shape.layers
        if layer.heads
    )


def _mean_pairs(layer: LayerShape, groups: list[Groups], length: int) -> float:
    """Pairs that a head computes, over the halves of the heads and the layers' turns."""
    first = s2_first_shifted_head(layer.heads, layer.kv_heads) / layer.heads
    total = 0.0
    for each in groups:
        for half, share in enumerate((first, 1 - first)):
            total += share * visible_pairs(each.cuts(length, half), length, None, each.sinks) / len(groups)
    return total


def _mlp_weights(layer: LayerShape, hidden: int) -> float:
    return hidden * (layer.up + layer.inner)
