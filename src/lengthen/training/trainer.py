"""transformers' Trainer with our loss, whole-or-nothing checkpoints of what is trained, and honest counts."""

import importlib.util
import math
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerState

from lengthen.errors import OutputError, RecipeError
from lengthen.files import sync_folder
from lengthen.head import embedding_parameters
from lengthen.training.loss import IGNORED
from lengthen.training.parallel import is_sharded, shard_like, share_head_weight, whole_states, whole_tensors

__all__ = [
    "LengthenTrainer",
    "check_optimizer",
    "is_last",
    "last_checkpoint",
    "page_states",
    "rate_share",
    "step_of",
]

BETAS = (0.9, 0.95)  # LongLoRA's; with 0.999, the large gradients of the first steps would hold back a short run
KEEP = 2
TRAINABLE = "trainable.safetensors"
OPTIMIZER, SCHEDULER = "optimizer.pt", "scheduler.pt"


def last_checkpoint(run: Path) -> Path | None:
    """The newest whole checkpoint of a run folder, or None."""
    return max((run / "checkpoints").glob("checkpoint-*"), key=step_of, default=None)


def is_last(checkpoint: Path) -> bool:
    """Whether no step is left to do after this checkpoint."""
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    return state.global_step >= state.max_steps


def step_of(checkpoint: Path) -> int:
    """The optimiser step after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def check_optimizer(name: str, device: torch.device) -> None:
    """Refuse an optimiser that is not there.

    Args:
        name: of `training.optimizer`.
        device: of the run.

    Raises:
        RecipeError: bitsandbytes is missing, or pages are wanted without CUDA.
    """
    if name == "adamw":
        return
    if importlib.util.find_spec("bitsandbytes") is None:
        raise RecipeError(f"training.optimizer={name} needs the package bitsandbytes: pip install 'lengthen[nf4]'")
    if name.startswith("paged") and device.type != "cuda":
        raise RecipeError(
            f"training.optimizer={name} moves pages between CUDA and CPU memory, and the model is on {device.type}; "
            f"take {'adamw_8bit' if '8bit' in name else 'adamw'}"
        )


def page_states(optimizer: Any) -> None:
    """Put the loaded states of a paged optimizer into pages again; bitsandbytes itself moves them to the GPU, to stay.

    Args:
        optimizer: any, accelerate's wrapper included; others than paged ones are left alone.
    """
    optimizer = getattr(optimizer, "optimizer", optimizer)
    if not getattr(optimizer, "is_paged", False):
        return
    for parameter, states in optimizer.state.items():
        for name in ("state1", "state2"):
            if name in states:
                pages = optimizer.get_state_buffer(parameter, dtype=states[name].dtype)
                if parameter.is_cuda:
                    torch.cuda.synchronize()  # the kernel that fills the pages with zeros is not waited for
                states[name] = pages.copy_(states[name])


def _optimizer_class(name: str) -> Any:
    if name == "adamw":
        return torch.optim.AdamW
    import bitsandbytes

    classes = {"adamw_8bit": "AdamW8bit", "paged_adamw_32bit": "PagedAdamW32bit", "paged_adamw_8bit": "PagedAdamW8bit"}
    return getattr(bitsandbytes.optim, classes[name])


def rate_share(schedule: str, step: int, steps: int, warmup: int) -> float:
    """Share of the peak learning rate in a step.

    Unlike transformers' schedules this is never 0: no step is lost.

    Args:
        schedule: "constant", "linear" or "cosine", after the warm-up.
        step: from 1 to `steps`; torch asks for the one after the last too.
        steps: of the whole run.
        warmup: steps of linear warm-up; the last of them has the whole peak.
    """
    if step <= warmup:
        return step / warmup
    progress = (step - warmup) / (steps - warmup + 1)
    return {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}[schedule]


class LengthenTrainer(Trainer):
    """Trains a `CausalLMObjective`.

    Differences from Trainer: the loss is a sum that is divided by the tokens of the whole step, over all processes
    and accumulation steps; a checkpoint holds the trained tensors (float32) instead of a model, and gets its final
    name only when every file of it is on the disk.
    """

    tokens_seen: int = 0
    """Tokens this process has trained on since the run (or its resumption) started."""

    def __init__(
        self,
        *arguments: Any,
        optimizer: str,
        schedule: str,
        embedding_learning_rate: float | None = None,
        **more: Any,
    ):
        super().__init__(*arguments, **more)
        self._optimizer_name = optimizer
        self._schedule = schedule
        self._embedding_learning_rate = embedding_learning_rate
        # compute_loss divides by the tokens of the whole step already.
        self.loss_is_scaled_for_ga = True
        # Set after the start, which refuses checkpoints of such models: ours below gather what is sharded.
        self.is_distributed_loading_by_transformers = is_sharded(self.model)  # type: ignore[arg-type]

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Loss of one forward pass, scaled so that a step's passes add up to the mean over its tokens."""
        assert not return_outputs
        self.tokens_seen += inputs["input_ids"].numel()
        assert num_items_in_batch is not None
        # DDP averages gradients over processes, where we want their sum.
        return model(**inputs) * self.accelerator.num_processes / num_items_in_batch

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor:
        """Predicted tokens of one optimiser step, over all processes."""
        count = torch.stack([(batch["labels"] != IGNORED).sum() for batch in batch_samples]).sum().to(device)
        return self.accelerator.gather(count).sum().clamp(min=1)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The recipe's AdamW over all trained tensors, the embeddings in a group of their own."""
        if self.optimizer is None:
            embeddings = embedding_parameters(self.model.model)  # type: ignore[union-attr]
            groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
            # Embeddings last: the first group's rate is the one that is logged.
            for parameter in sorted(self._trained_parameters().values(), key=lambda p: id(p) in embeddings):
                rate, decay = self.args.learning_rate, self.args.weight_decay
                if id(parameter) in embeddings:
                    rate = self._embedding_learning_rate or rate
                if parameter.ndim < 2:  # norms and biases don't decay
                    decay = 0.0
                groups.setdefault((rate, decay), []).append(parameter)
            self.optimizer = _optimizer_class(self._optimizer_name)(
                [
                    {"params": parameters, "lr": rate, "weight_decay": decay}
                    for (rate, decay), parameters in groups.items()
                ],
                betas=BETAS,
            )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """The recipe's schedule, for all groups alike."""
        if self.lr_scheduler is None:
            optimizer, warmup = optimizer or self.optimizer, self.args.get_warmup_steps(num_training_steps)
            assert optimizer is not None
            self.lr_scheduler = LambdaLR(
                optimizer,
                lambda done: rate_share(self._schedule, done + 1, num_training_steps, warmup),
            )
        return self.lr_scheduler

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._checkpoints / ".tmp")

    @property
    def _checkpoints(self) -> Path:
        assert self.args.output_dir is not None
        return Path(self.args.output_dir) / "checkpoints"

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write into a temporary folder, sync, rename, and drop all but the newest checkpoints."""
        temporary = self._checkpoints / ".tmp"
        name = f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(temporary, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                sync_folder(temporary / name)
                shutil.rmtree(self._checkpoints / name, ignore_errors=True)
                (temporary / name).rename(self._checkpoints / name)
                sync_folder(self._checkpoints)
                shutil.rmtree(temporary)
                for old in sorted(self._checkpoints.glob("checkpoint-*"), key=step_of)[:-KEEP]:
                    shutil.rmtree(old)
        except (OSError, SafetensorError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
            reason = str(error).splitlines()[0]
            raise OutputError(f"can't write {name}: {reason}; free space and start again with --resume") from error
        self.accelerator.wait_for_everyone()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the trained tensors; on the first process only, but all have to call it."""
        assert output_dir is not None
        tensors = whole_tensors(self._trained_parameters(), keep=self.args.should_save)
        if self.args.should_save:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            save_file(tensors, Path(output_dir) / TRAINABLE)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_deepspeed_enabled:
            self.model_wrapped.save_checkpoint(output_dir, exclude_frozen_parameters=True)  # type: ignore[operator]
        elif self.is_distributed_loading_by_transformers:
            states = whole_states(self.optimizer.state_dict(), keep=self.args.should_save)  # type: ignore[union-attr]
            if self.args.should_save:
                torch.save(states, Path(output_dir) / OPTIMIZER)
        else:
            return super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER)  # type: ignore[union-attr]
        return None

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        if not self.is_deepspeed_enabled:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        # Trainer would load a checkpoint strictly, and ours are without the frozen weights.
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        share_head_weight(self.model)
        if resume_from_checkpoint is not None:
            self.model_wrapped.load_checkpoint(resume_from_checkpoint, load_module_strict=False)  # type: ignore[operator]
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
        return prepared

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.load_trained(Path(resume_from_checkpoint))

    def load_trained(self, checkpoint: Path) -> None:
        """Take the trained tensors of a checkpoint over, and nothing else of it."""
        saved = load_file(checkpoint / TRAINABLE)
        current = self._trained_parameters()
        if saved.keys() != current.keys():
            raise OutputError(f"{checkpoint} holds other tensors than this recipe trains; choose another out")
        with torch.no_grad():
            for name, tensor in current.items():
                tensor.copy_(shard_like(saved[name], tensor))

    def _defer_fsdp_gradient_reduction(self) -> Any:
        # Each pass's gradients are reduced at once: kept whole until the step's last pass, they would undo the shards.
        return nullcontext()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        assert self.optimizer is not None
        if not self.is_distributed_loading_by_transformers:
            super()._load_optimizer_and_scheduler(checkpoint)
            page_states(self.optimizer)
            return
        assert self.lr_scheduler is not None
        saved = torch.load(Path(checkpoint) / OPTIMIZER, map_location="cpu", weights_only=True)
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for index, state in saved["state"].items():
            for name, value in state.items():
                state[name] = shard_like(value, parameters[index])
        self.optimizer.load_state_dict(saved)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER, weights_only=True))

    def _trained_parameters(self) -> dict[str, torch.nn.Parameter]:
        assert self.model is not None
        # named_parameters lists a tied tensor once.
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}
