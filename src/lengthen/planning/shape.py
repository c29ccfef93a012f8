"""The facts about a base that a plan needs: sizes of the model and of its trained parameters, and its context.

Widths are elements per token.
"""

from dataclasses import dataclass

from lengthen.attention_pattern import heads_of

__all__ = ["Base", "LayerShape", "ModelShape"]


@dataclass(frozen=True)
class LayerShape:
    """One decoder layer with what is trained in it.

    Attributes:
        count: how many layers are like this one.
        heads, kv_heads: 0 where the layer has no softmax attention.
        query, key, value: widths of the queries, keys and values.
        window: tokens of its sliding window or of its chunks, None for full attention.
        chunks: whether these are chunks (Llama 4).
        score_copies: numbers that each head keeps of every pair of tokens, 0 where a kernel computes attention.
        up, inner: widths of what the MLP's first products give (gate and up, both) and of what its last takes; for
            experts, of those that a token is sent to.
        norms, qk_norms: widths of the norms of the block, and of those on queries and keys, added up.
        trained_norms: of these two, what is trained.
        attention_inputs, mlp_inputs: widths of what trained products take, added up: LoRA's two each, or the layers'.
        mlp_input: the widest of the latter.
        attention_dropout, mlp_dropout: widths that go through LoRA's dropout.
        parameters: all of the layer's base.
        trained: its trained parameters.
        active: its weights that one token is multiplied with, adapters left out.
        active_trained: of what is trained, the same.
        largest: elements of its largest linear weight.
    """

    count: int
    heads: int
    kv_heads: int
    query: int
    key: int
    value: int
    window: int | None
    chunks: bool
    score_copies: int
    up: float
    inner: float
    norms: int
    qk_norms: int
    trained_norms: int
    attention_inputs: int
    mlp_inputs: float
    mlp_input: float
    attention_dropout: int
    mlp_dropout: float
    parameters: int
    trained: int
    active: float
    active_trained: float
    largest: int

    @property
    def out(self) -> float:
        """Width of what attention gives, all heads."""
        return self.value * self.heads / max(1, self.kv_heads)

    def of_one(self, count: int) -> float:
        """Width of queries, keys, values and outputs of the heads that one of `count` processes has.

        Args:
            count: of processes that share out heads.
        """
        heads, kv_heads = heads_of(0, count, self.heads, self.kv_heads)
        of_keys = kv_heads.stop / self.kv_heads
        return heads.stop / self.heads * (self.query + self.out) + of_keys * (self.key + self.value)


@dataclass(frozen=True)
class ModelShape:
    """A model with what is trained in it; tied tensors count once.

    Attributes:
        hidden, vocabulary: E and V.
        layers: one entry for layers that are alike.
        parameters: the base's, all.
        linear: weights of the linear layers that NF4 takes.
        embeddings: elements of the input embeddings; `head` of the head's weight, its own or tied.
        tied: whether head and embeddings are one.
        trained: trained parameters, all; `trained_embeddings`, of these, embeddings and head.
        trains_embeddings, trains_head: whether the input embeddings and the head's weight are trained.
        replaced: base parameters that the run holds as float32 masters in the base's place (full fine-tuning).
        largest: elements of the largest trained tensor.
    """

    hidden: int
    vocabulary: int
    layers: tuple[LayerShape, ...]
    parameters: int
    linear: int
    embeddings: int
    head: int
    tied: bool
    trained: int
    trained_embeddings: int
    trains_embeddings: bool
    trains_head: bool
    replaced: int
    largest: int

    @property
    def layer_count(self) -> int:
        """Decoder layers."""
        return sum(layer.count for layer in self.layers)


@dataclass(frozen=True)
class Base:
    """A base whose positions can be scaled as a recipe says.

    Attributes:
        context: its own, tokens.
        shape: its sizes, and those of what is trained in it.
        warnings: about the scaling, for the user.
    """

    context: int
    shape: ModelShape
    warnings: tuple[str, ...]
