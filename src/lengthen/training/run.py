"""A training run, top to bottom: resolve -> build_data -> build_model -> fit -> finish.

`resolve` makes every check that needs neither documents nor weights, so that what can't be done fails before anything
is loaded or written.
"""

import logging
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import set_seed
from transformers import PreTrainedConfig

from lengthen import attention
from lengthen.adapters.build import add_adapter, count_trainable
from lengthen.adapters.save import save_adapter, save_full
from lengthen.attention.backends import pick_backend
from lengthen.attention_pattern import layer_patterns
from lengthen.context import base_context, extend
from lengthen.data.instruct.templates import use_template
from lengthen.data.mixture import FiniteSource
from lengthen.data.packing import Block
from lengthen.data.sequences import describe, is_packed, training_sequences
from lengthen.data.tokens import default_cache, load_tokens
from lengthen.errors import ModelError, OutputError, RecipeError
from lengthen.evaluation.validation import validate
from lengthen.files import atomic_files, write_text, writing
from lengthen.head import check_head
from lengthen.models.devices import default_device, pick_dtype
from lengthen.models.fingerprint import weight_hashes
from lengthen.models.load import load_base, load_config, load_tokenizer
from lengthen.models.resolve import Source, resolve_model, resolved_name
from lengthen.progress import show_progress
from lengthen.quantization import check_nf4, check_not_quantized, count_quantized
from lengthen.recipe import Recipe, check_documents, load_recipe
from lengthen.run_folder import RunFolder
from lengthen.training.batches import Batches
from lengthen.training.checkpoint import check_readable, drop_old, last_checkpoint, load_trained, step_of
from lengthen.training.chunked import check_layers, chunk_layers
from lengthen.training.fused import check_fused, fuse_elementwise
from lengthen.training.loggers import check_loggers
from lengthen.training.loop import Loop
from lengthen.training.memory import enable_checkpointing, tile_mlps, trim_malloc
from lengthen.training.metrics import Utilization
from lengthen.training.objective import CausalLMObjective
from lengthen.training.optim import check_optimizer
from lengthen.training.parallel import check_parallel, shard, unshard
from lengthen.training.restoration import BasePositions, cut_windows
from lengthen.training.resume import check_recipe
from lengthen.training.sequence import check_heads
from lengthen.vocabulary import check_ids, embedding_rows, guard_embeddings

__all__ = ["Interrupted", "train"]

_LOG = logging.getLogger(__name__)

_LOOKED_AT = 16  # sequences of a mixture that tell how many of its tokens lie beyond the base's context


class Interrupted(Exception):
    """A signal stopped the run after a checkpoint.

    Attributes:
        signal: the signal's number.
    """

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.signal = signal


@dataclass(frozen=True)
class Setup:
    """What is settled before documents and weights are loaded.

    Attributes:
        recipe: of the run.
        run: the run folder.
        resume: whether to go on from its newest checkpoint.
        process: this process among all.
        device: of the run.
        dtype: of the base and the arithmetic.
        source: where the base is.
        base_config, config: the base's, and with its positions scaled.
        tokenizer: the base's, with the recipe's chat template.
    """

    recipe: Recipe
    run: RunFolder
    resume: bool
    process: PartialState
    device: torch.device
    dtype: torch.dtype
    source: Source
    base_config: PreTrainedConfig
    config: PreTrainedConfig
    tokenizer: Any

    @property
    def data_processes(self) -> int:
        """Processes with batches of their own, each of one or of several that share a sequence."""
        return self.process.num_processes // self.recipe.parallel.sequence

    @property
    def is_nf4(self) -> bool:
        """Whether the base is quantized to 4 bits."""
        return self.recipe.quantize == "nf4"

    @property
    def context(self) -> int:
        """The base's context, tokens."""
        return base_context(self.base_config)


def train(
    recipe: Recipe,
    resume: bool = False,
    on_step: Callable[[dict[str, Any]], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Path:
    """Extend a base as a recipe says.

    Runs as it is in one process, and in several under `torchrun` or `accelerate launch`.

    Args:
        recipe: what to do.
        resume: go on from the newest checkpoint in the run folder, on exactly the trajectory of a run that was
            never stopped; without a checkpoint, start from the beginning.
        on_step: called in the first process with each line of metrics.jsonl as it is written.
        stop: asked after each step; once it says so, the run stops as by a signal.

    Returns:
        The run folder: recipe.yaml, run.json, config.json (extended), tokenizer files, metrics.jsonl, checkpoints/,
        and adapter/ (for full fine-tuning model/, an ordinary model folder), evals/.

    Raises:
        LengthenError: the recipe, base, documents or run folder can't be used; an earlier run's files are untouched.
            Or the run diverges; its checkpoints are kept.
        Interrupted: Ctrl-C, SIGTERM or `stop`; a checkpoint was written.
    """
    setup = resolve(recipe, resume)
    if setup is None:  # finished already
        return _folder(recipe).path
    blocks, windows = build_data(setup), build_windows(setup)
    objective, base = build_model(setup, blocks)
    with _hold(setup):
        fit(setup, objective, base, blocks, windows, on_step, stop)
        finish(setup, objective.model, base)
    return setup.run.path


def resolve(recipe: Recipe, resume: bool) -> Setup | None:
    """Check all that can be checked without documents or weights; None where the run is finished already.

    Raises:
        LengthenError: what the recipe asks for can't be had here.
    """
    device = default_device()
    check_parallel(recipe, device)
    check_loggers(recipe.training.report_to)
    process = PartialState(cpu=device.type == "cpu")
    if not process.is_main_process:
        logging.getLogger("lengthen").setLevel(logging.ERROR)
        show_progress(False)
    run = _folder(recipe)
    state = _prepare_folder(run, recipe, resume)
    if process.is_main_process and state != "new":
        with run.held():
            pass  # fail now rather than after the documents and the base are loaded
    if state == "finished":
        _LOG.info(f"{run} is finished already")
        if process.is_main_process and recipe.data.validation and not run.validation.is_file():
            validate(recipe, run)  # stopped after the adapter
        return None
    _note_idle_devices(device)
    nf4 = recipe.quantize == "nf4"
    dtype = pick_dtype(recipe.training.dtype, device, nf4)
    if recipe.attention.kind == "s2":
        layer_patterns(recipe.attention.pattern)
        pick_backend(recipe.attention.backend, device, dtype)
    check_documents(recipe)
    source = resolve_model(recipe.model)
    if source.run is not None:
        raise ModelError(f"{recipe.model} is a run folder with an adapter; export it first and extend what comes out")
    base_config = load_config(source, recipe.context.base)
    check_not_quantized(base_config)
    if nf4:
        check_nf4(base_config, device)
    check_optimizer(recipe.training.optimizer, device)
    if recipe.memory.fused_kernels:
        check_fused(device)
    restoration = recipe.training.restoration
    if restoration.share and restoration.length > base_context(base_config):
        raise RecipeError(
            f"training.restoration.length {restoration.length} is beyond the base's context of "
            f"{base_context(base_config)} tokens, where the base has nothing to teach; lower it"
        )
    if recipe.parallel.sequence > 1:
        check_heads(recipe, base_config)
    config = extend(base_config, **recipe.context.scaling)
    tokenizer = load_tokenizer(recipe.model)
    if recipe.data.kind == "instruct" or any(source.kind == "instruct" for source in recipe.data.sources):
        use_template(tokenizer, recipe.data.template)
    return Setup(recipe, run, resume, process, device, dtype, source, base_config, config, tokenizer)


def build_data(setup: Setup) -> Sequence[Block]:
    """The training sequences. Their tokens are cached: the first process makes them, the others read them.

    Raises:
        DataError: a document can't be used, or nothing is left to train on.
    """
    recipe = setup.recipe
    with setup.process.main_process_first():
        return training_sequences(recipe, setup.tokenizer, setup.config, setup.context, setup.data_processes)


def build_windows(setup: Setup) -> FiniteSource | None:
    """The short windows of restoration; None without it.

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
    is_s2 = recipe.attention.kind == "s2"
    # What will be sharded need not fit on one device.
    place = torch.device("cpu") if recipe.parallel.data == "fsdp2" else setup.device
    model = load_base(setup.source, setup.config, setup.dtype, "s2" if is_s2 else "sdpa", place, setup.is_nf4)
    if setup.is_nf4:
        _LOG.info(f"quantized {count_quantized(model)}")
    if guard_embeddings(model, setup.tokenizer):  # it would be refused in some later step
        largest = max(int(block.input_ids.max()) for block in blocks)
        check_ids(largest, embedding_rows(model), setup.tokenizer)
    check_head(model, torch.from_numpy(blocks[0].input_ids)[None])
    if is_packed(blocks) and not attention.keeps_documents_apart(model):
        raise ModelError(
            f"documents packed into one sequence would see each other in {type(model).__name__}; leave the short ones "
            f"out with data.min_tokens={recipe.sequence_length}, or set data.packing={_other_packing(recipe)}"
        )
    by_shards = recipe.parallel.sequence > 1
    if not is_s2 and (is_packed(blocks) or by_shards) and not attention.use_full_by_layout(model):
        if by_shards:
            raise ModelError(f"{type(model).__name__} can't share out attention's heads; set parallel.sequence=1")
        _LOG.info("note: full attention keeps packed documents apart by a mask of all pairs of tokens in this model")
    base = {
        "id": setup.source.id,
        "model": resolved_name(recipe.model),
        **weight_hashes(model),
        "quantize": recipe.quantize,
        "context": setup.context,
    }
    if is_s2:
        wanted = recipe.attention
        attention.set_group_size(model, recipe.group_size, wanted.sinks, wanted.pattern, wanted.backend)
        used, layers = attention.check_s2(model)
        if used < layers:
            _LOG.info(f"S2 in {used} of {layers} attention layers; the others keep the window they have")
        _note_full_attention(blocks, recipe.group_size)
    if by_shards:
        check_layers(model, "parallel.sequence=1")
    if recipe.memory.activation_checkpointing and recipe.adapter.kind != "prefix_tuning":
        # Prefix tuning hands its prefix over as a key/value cache, which recomputing would fill twice.
        enable_checkpointing(model, recipe.keeps_attention, recipe.adapter.may_drop)
    if recipe.memory.fused_kernels:
        norms, mlps = fuse_elementwise(model)
        _LOG.info(f"fused kernels in {norms} norms and {mlps} MLPs")
    if recipe.memory.mlp_tile:
        tile_mlps(model, recipe.memory.mlp_tile)
    if recipe.memory.sequence_chunk:
        chunk_layers(model, recipe.memory.sequence_chunk, recipe.memory.checkpoint_every)
    positions = BasePositions(model, setup.base_config) if recipe.training.restoration.share else None
    model = add_adapter(model, recipe.adapter, recipe.uses_autocast(setup.dtype.itemsize))
    offload = recipe.memory.offload_activations
    return CausalLMObjective(model, setup.run.path if offload == "disk" else offload, positions), base


def fit(
    setup: Setup,
    objective: CausalLMObjective,
    base: dict[str, Any],
    blocks: Sequence[Block],
    windows: FiniteSource | None,
    on_step: Callable[[dict[str, Any]], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> None:
    """Begin the run folder, and take the steps that are left.

    Raises:
        DivergedError: loss or gradients are not finite.
        Interrupted: a signal stopped it.
    """
    recipe, run = setup.recipe, setup.run
    checkpoint = last_checkpoint(run.path) if setup.resume else None
    count = count_trainable(objective.model)
    _LOG.info(f"training {count}")
    if setup.process.is_main_process:
        if checkpoint:
            check_readable(checkpoint)
        with writing(run.path):
            drop_old(run.path)
        run.set_aside_result(step_of(checkpoint) if checkpoint else 0)
        _begin_folder(setup, base, asdict(count), blocks)
        run.trim_metrics(step_of(checkpoint) if checkpoint else 0)
    if recipe.parallel.data == "fsdp2":
        shard(objective, objective.model, setup.process.device)
    if checkpoint:
        _LOG.info(f"resuming from {checkpoint}")
        if step_of(checkpoint) >= Batches(blocks, recipe.training, recipe.seed, 0, setup.data_processes).steps:
            load_trained(checkpoint, objective)  # stopped between the last step and the adapter
            return
    utilization = Utilization(recipe, setup.config, setup.dtype)
    loop = Loop(objective, blocks, recipe, run.path, setup.dtype, _pad_id(setup.tokenizer), utilization, windows)
    signal = loop.run(checkpoint, on_step, stop)
    if signal is not None:
        raise Interrupted(f"stopped after step {loop.done}, with a checkpoint", signal)


def finish(setup: Setup, model: Any, base: dict[str, Any]) -> None:
    """Write what was trained, and measure it on the validation data."""
    recipe, run = setup.recipe, setup.run
    unshard(model, keep=setup.process.is_main_process)
    if setup.process.is_main_process:
        if not run.is_run:
            raise OutputError(f"{run} was removed while it was trained; start again")
        if recipe.adapter.kind == "full":
            save_full(model, run.model, setup.dtype, setup.tokenizer)
        else:
            save_adapter(model, run.adapter, setup.config, base)
        if recipe.data.validation:
            validate(recipe, run)
    setup.process.wait_for_everyone()


def _folder(recipe: Recipe) -> RunFolder:
    return RunFolder(Path(recipe.out or "runs/run"))


@contextmanager
def _hold(setup: Setup) -> Iterator[None]:
    """Keep other processes out of the run folder.

    Raises:
        OutputError: another one is in it, or began or finished a run there since `resolve` looked.
    """
    if not setup.process.is_main_process:
        yield
        return
    with writing(setup.run.path):
        setup.run.path.mkdir(parents=True, exist_ok=True)
    with setup.run.held():
        if _prepare_folder(setup.run, setup.recipe, setup.resume) == "finished":
            raise OutputError(f"{setup.run} was finished by another process meanwhile")
        yield


def _note_idle_devices(device: torch.device) -> None:
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if count > 1 and "LOCAL_RANK" not in os.environ:
        _LOG.info(
            f"note: training on one of {count} GPUs; for all of them start "
            f"torchrun --nproc-per-node {count} -m lengthen.cli train ..., or accelerate launch"
        )


def _begin_folder(setup: Setup, base: dict[str, Any], trainable: dict[str, int], blocks: Sequence[Block]) -> None:
    run, tokenizer = setup.run, setup.tokenizer
    write_text(run.recipe, setup.recipe.to_yaml())  # first: it tells that the folder is a run's
    tokenizer.model_max_length = setup.recipe.context.target
    with atomic_files(run.path) as temporary:
        setup.config.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    facts = {
        "base": base,
        "trainable": trainable,
        "data": describe(blocks),
        "device": _name(setup.device),
        "processes": setup.process.num_processes,
    }
    run.write_metadata(facts)


def _prepare_folder(run: RunFolder, recipe: Recipe, resume: bool) -> str:
    """Check that the run folder is new, or that it is this run's own and to be resumed; returns its state."""
    state = run.state()
    if state == "new":
        return state
    if not resume:
        raise OutputError(f"{run} holds a run already; go on with `resume`, or choose another out")
    is_longer = check_recipe(run.path, recipe, load_recipe(run.recipe))
    return "begun" if is_longer else state


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"


def _note_full_attention(blocks: Sequence[Block], group_size: int) -> None:
    longest = max(max(block.segments) for block in blocks[:_LOOKED_AT])
    if longest <= group_size // 2:
        _LOG.info(
            f"note: no document is longer than half a group ({group_size // 2} tokens), so S2 is full attention here"
        )


def _other_packing(recipe: Recipe) -> str:
    return "none" if recipe.data.kind == "instruct" else "concatenate to allow it"


def _pad_id(tokenizer: Any) -> int:
    """Any id does: padding is a document of its own whose tokens are not predicted."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
