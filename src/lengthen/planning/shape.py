"""The sizes of a model and of what a recipe trains in it.

They are measured on the model itself (`planning/measure.py`), which takes seconds of imports, and kept in the cache.

Widths are elements per token.
"""

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from transformers import PreTrainedConfig

import lengthen
from lengthen.data.tokens import default_cache
from lengthen.errors import OutputError
from lengthen.files import write_json
from lengthen.recipe import AdapterRecipe

__all__ = ["LayerShape", "ModelShape", "model_shape"]


@dataclass(frozen=True)
class LayerShape:
    """One decoder layer with what is trained in it.

    Attributes:
        count: how many layers are like this one.
        heads, kv_heads: 0 where the layer has no softmax attention.
        query, key, value: widths of the queries, keys and values.
        window: tokens of its sliding window, None for full attention.
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


def model_shape(config: PreTrainedConfig, adapter: AdapterRecipe) -> ModelShape:
    """The sizes of a model and what is trained in it, measured once and then read from the cache.

    Args:
        config: the base's.
        adapter: what is trained.

    Raises:
        ModelError: transformers can't build it, or it has no decoder layers that can be told apart.
        RecipeError: the adapter can't be put over it.
    """
    file = default_cache().with_name("shapes") / f"{_fingerprint(config, adapter)}.json"
    # What can't be read is measured again, and what can't be written is not kept.
    with suppress(OSError, ValueError, TypeError, KeyError):
        fields = json.loads(file.read_text(encoding="utf-8"))
        return ModelShape(**fields | {"layers": tuple(LayerShape(**layer) for layer in fields["layers"])})
    from lengthen.planning.measure import measure

    shape = measure(config, adapter)
    with suppress(OSError, OutputError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, asdict(shape))
    return shape


def _fingerprint(config: PreTrainedConfig, adapter: AdapterRecipe) -> str:
    """Of all that a measurement depends on: config, adapter, the versions of what builds them, and our own code."""
    digest = hashlib.sha256(config.to_json_string(use_diff=False).encode())
    digest.update(adapter.model_dump_json().encode())
    digest.update("".join(version(package) for package in ("torch", "transformers", "peft")).encode())
    for path in sorted(Path(lengthen.__file__).parent.glob("**/*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:32]
