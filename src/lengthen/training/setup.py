"""Everything that is decided and checked before documents and weights are loaded, so that a run fails early."""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from transformers import PreTrainedConfig

from lengthen.attention.backends import pick_backend
from lengthen.attention_pattern import layer_patterns
from lengthen.context import base_context, extend
from lengthen.data.instruct.templates import use_template
from lengthen.errors import RecipeError
from lengthen.evaluation.validation import validate
from lengthen.models.devices import default_device, pick_dtype
from lengthen.models.load import load_config, load_tokenizer
from lengthen.models.resolve import ModelSource, resolve_base
from lengthen.processes import has_launcher
from lengthen.progress import show_progress
from lengthen.quantization import check_nf4, check_not_quantized
from lengthen.recipe import Recipe, check_documents, check_heads
from lengthen.run_folder import RunFolder
from lengthen.training.folder import folder_of, prepare_folder
from lengthen.training.fused import check_fused
from lengthen.training.loggers import check_loggers
from lengthen.training.optim import check_optimizer
from lengthen.training.parallel import check_parallel

__all__ = ["Setup", "note_idle_devices", "resolve"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setup:
    """Everything that is settled before documents and weights are loaded.

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
    source: ModelSource
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


def resolve(recipe: Recipe, resume: bool) -> Setup | None:
    """Check all that can be checked without documents or weights.

    Args:
        recipe: of the run.
        resume: whether an earlier run in its folder is to go on.

    Returns:
        What is settled; None where the run is finished already.

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
    run = folder_of(recipe)
    if _is_finished(run, recipe, resume, process.is_main_process):
        return None
    note_idle_devices(device)
    dtype = pick_dtype(recipe.training.dtype, device, recipe.quantize == "nf4")
    _check_device(recipe, device, dtype)
    check_documents(recipe)
    source = resolve_base(recipe.model)
    base_config = load_config(source, recipe.context.base)
    _check_base(recipe, base_config, device)
    config = extend(base_config, **recipe.context.scaling)
    tokenizer = load_tokenizer(recipe.model)
    if recipe.data.kind == "instruct" or any(source.kind == "instruct" for source in recipe.data.sources):
        use_template(tokenizer, recipe.data.template)
    return Setup(recipe, run, resume, process, device, dtype, source, base_config, config, tokenizer)


def _is_finished(run: RunFolder, recipe: Recipe, resume: bool, is_main: bool) -> bool:
    """Whether nothing is left to train; what is left to measure is measured."""
    state = prepare_folder(run, recipe, resume)
    if is_main and state != "new":
        with run.held():
            pass  # fail now rather than after the documents and the base are loaded
    if state != "finished":
        return False
    _LOG.info(f"{run} is finished already")
    if is_main and recipe.data.validation and not run.validation.is_file():
        validate(recipe, run)  # stopped after the adapter
    return True


def _check_device(recipe: Recipe, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse what this device can't do."""
    if recipe.attention.kind == "s2":
        layer_patterns(recipe.attention.pattern)
    pick_backend(recipe.attention.backend, device, dtype)
    check_optimizer(recipe.training.optimizer, device)
    if recipe.memory.fused_kernels:
        check_fused(device)


def _check_base(recipe: Recipe, config: PreTrainedConfig, device: torch.device) -> None:
    """Refuse what this base can't do."""
    check_not_quantized(config)
    if recipe.quantize == "nf4":
        check_nf4(config, device)
    restoration = recipe.training.restoration
    if restoration.share and restoration.length > base_context(config):
        raise RecipeError(
            f"training.restoration.length {restoration.length} is beyond the base's context of "
            f"{base_context(config)} tokens, where the base has nothing to teach; lower it"
        )
    if recipe.parallel.sequence > 1:
        text = config.get_text_config()
        heads = text.num_attention_heads
        check_heads(recipe, heads, getattr(text, "num_key_value_heads", None) or heads)


def note_idle_devices(device: torch.device) -> None:
    """Say how to start a run on all GPUs of a machine, where it is on one of several.

    Args:
        device: of the run.
    """
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if count > 1 and not has_launcher():
        _LOG.info(
            f"note: training on one of {count} GPUs; for all of them start "
            f"torchrun --nproc-per-node {count} -m lengthen.cli train ..., or accelerate launch"
        )
