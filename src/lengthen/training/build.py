"""The sequences and the model of a run."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import set_seed

from lengthen import attention
from lengthen.adapters.build import add_adapter
from lengthen.attention_pattern import BackendName
from lengthen.data.blocks import Block
from lengthen.data.mixture import FiniteSource
from lengthen.data.sequences import is_packed, training_sequences
from lengthen.data.tokens import default_cache, load_tokens
from lengthen.errors import ModelError
from lengthen.head import check_head
from lengthen.models.fingerprint import weight_hashes
from lengthen.models.load import load_base
from lengthen.models.resolve import resolved_name
from lengthen.models.rotary import BasePositions, only_rotation_differs
from lengthen.quantization import count_quantized
from lengthen.recipe import Recipe
from lengthen.training.chunked import check_layers, chunk_layers
from lengthen.training.fused import fuse_elementwise
from lengthen.training.memory import enable_checkpointing, tile_mlps, trim_malloc
from lengthen.training.objective import CausalLMObjective
from lengthen.training.restoration import cut_windows
from lengthen.training.setup import Setup
from lengthen.vocabulary import check_ids, embedding_rows, guard_embeddings

__all__ = ["build_data", "build_model", "build_windows"]

_LOG = logging.getLogger(__name__)

_LOOKED_AT = 16  # sequences of a mixture whose documents tell whether S2 has any to cut


def build_data(setup: Setup) -> Sequence[Block]:
    """The training sequences. Their tokens are cached: the first process makes them, the others read them.

    Args:
        setup: of the run.

    Returns:
        As many as the run takes, or one epoch of them.

    Raises:
        DataError: a document can't be used, or nothing is left to train on.
    """
    recipe = setup.recipe
    with setup.process.main_process_first():
        return training_sequences(recipe, setup.tokenizer, setup.config, setup.context, setup.data_processes)


def build_windows(setup: Setup) -> FiniteSource | None:
    """The short windows of restoration.

    Args:
        setup: of the run.

    Returns:
        Windows in the order in which they are read; None without restoration.

    Raises:
        DataError: a document can't be used, or none is as long as a window.
    """
    recipe, wanted = setup.recipe, setup.recipe.training.restoration
    if not wanted.share:
        return None
    vocabulary = setup.config.get_text_config().vocab_size
    with setup.process.main_process_first():
        store, warnings = load_tokens(
            recipe.restoration_paths,
            setup.tokenizer,
            vocabulary,
            default_cache(),
            max_documents=recipe.data.max_documents,
        )
    for warning in warnings:
        _LOG.warning("%s", warning)
    windows = cut_windows(store.without(recipe.data.held_out), wanted.length, recipe.seed)
    _LOG.info(f"restoration: {wanted.share:.0%} of the forward passes, of {windows.about}")
    return windows


def build_model(setup: Setup, blocks: Sequence[Block]) -> tuple[CausalLMObjective, dict[str, Any]]:
    """The base with scaled positions, the recipe's attention, memory savers and adapter, and the loss over it.

    Args:
        setup: of the run.
        blocks: the training sequences, which the model must be able to keep apart.

    Returns:
        Model and loss, and what is written of the base.

    Raises:
        ModelError: the base can't be loaded, or trained as the recipe says.
    """
    recipe = setup.recipe
    if recipe.memory.trim_malloc:
        trim_malloc()
    set_seed(recipe.seed)
    # A model that will be sharded need not fit on one device.
    place = torch.device("cpu") if recipe.parallel.data == "fsdp2" else setup.device
    kind = "s2" if recipe.attention.kind == "s2" else None
    model = load_base(setup.source, setup.config, setup.dtype, kind, place, setup.is_nf4)
    if setup.is_nf4:
        _LOG.info(f"quantized {count_quantized(model)}")
    # Only the shards of FSDP2 go to the device, so that what is checked here is computed elsewhere.
    backend = recipe.attention.backend if place == setup.device else "auto"
    _check_model(model, setup, blocks, backend)
    base = {
        "id": setup.source.id,
        "model": resolved_name(recipe.model),
        **weight_hashes(model),
        "quantize": recipe.quantize,
        "context": setup.context,
    }
    if recipe.attention.kind == "s2":
        _set_s2(model, recipe, blocks, backend)
    if recipe.parallel.sequence > 1:
        check_layers(model, "parallel.sequence=1")  # runs the model, so S2 has to be set
    _save_memory(model, recipe)
    if place != setup.device:
        attention.set_backend(model, recipe.attention.backend, setup.device)
    positions = _base_positions(model, setup) if recipe.training.restoration.share else None
    model = add_adapter(model, recipe.adapter, recipe.uses_autocast(setup.dtype.itemsize))
    offload = recipe.memory.offload_activations
    return CausalLMObjective(model, setup.run.path if offload == "disk" else offload, positions), base


def _check_model(model: Any, setup: Setup, blocks: Sequence[Block], backend: BackendName) -> None:
    """Refuse a model that can't take these sequences: their ids, their packing, their shards, their backend."""
    recipe, packed, by_shards = setup.recipe, is_packed(blocks), setup.recipe.parallel.sequence > 1
    if guard_embeddings(model, setup.tokenizer):  # it would be refused in some later step
        largest = max(int(block.input_ids.max()) for block in blocks)
        check_ids(largest, embedding_rows(model), setup.tokenizer)
    check_head(model, torch.from_numpy(blocks[0].input_ids)[None])
    if packed and not attention.keeps_documents_apart(model):
        raise ModelError(
            f"documents packed into one sequence would see each other in {type(model).__name__}; leave the short ones "
            f"out with data.min_tokens={recipe.sequence_length}, or set data.packing={_other_packing(recipe)}"
        )
    has_choice = recipe.attention.backend != "auto"
    by_layout = recipe.attention.kind == "full" and (packed or by_shards or has_choice)
    if by_layout and not attention.use_full_by_layout(model, backend):
        if by_shards:
            raise ModelError(f"{type(model).__name__} can't share out attention's heads; set parallel.sequence=1")
        if has_choice:
            raise ModelError(f"attention.backend can't be chosen for {type(model).__name__}; leave it out")
        _LOG.info("note: full attention keeps packed documents apart by a mask of all pairs of tokens in this model")


def _base_positions(model: Any, setup: Setup) -> BasePositions:
    """What restoration asks of the base inside the model."""
    if not only_rotation_differs(setup.config, setup.base_config):
        raise ModelError(
            f"the scaled positions of {type(model).__name__} are not in its rotary embeddings alone, so that the "
            "base is not in the model any more; set training.restoration.share=0"
        )
    return BasePositions(model, setup.base_config)


def _set_s2(model: Any, recipe: Recipe, blocks: Sequence[Block], backend: BackendName) -> None:
    wanted = recipe.attention
    attention.set_group_size(model, recipe.group_size, wanted.sinks, wanted.pattern, backend)
    used, layers = attention.check_s2(model)
    if used < layers:
        _LOG.info(f"S2 in {used} of {layers} attention layers; the others keep the window they have")
    longest = max(max(block.segments) for block in blocks[:_LOOKED_AT])
    if longest <= recipe.group_size // 2:
        _LOG.info(
            f"note: no document is longer than half a group ({recipe.group_size // 2} tokens), so S2 is full attention "
            "here"
        )


def _save_memory(model: Any, recipe: Recipe) -> None:
    settings = recipe.memory
    if settings.activation_checkpointing and recipe.adapter.kind != "prefix_tuning":
        # Prefix tuning hands its prefix over as a key/value cache, which recomputing would fill twice.
        enable_checkpointing(model, recipe.keeps_attention, recipe.adapter.may_drop)
    if settings.fused_kernels:
        norms, mlps = fuse_elementwise(model)
        _LOG.info(f"fused kernels in {norms} norms and {mlps} MLPs")
    if settings.mlp_tile:
        tile_mlps(model, settings.mlp_tile)
    if settings.sequence_chunk:
        chunk_layers(model, settings.sequence_chunk, settings.checkpoint_every)


def _other_packing(recipe: Recipe) -> str:
    return "none" if recipe.data.kind == "instruct" else "concatenate to allow it"
