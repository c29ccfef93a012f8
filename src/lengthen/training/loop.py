"""The training loop, top to bottom.

    for each optimizer step:
        set the learning rates
        for each of its batches:
            loss = sum(w * nll) / sum(w); the denominator is that of all batches of the step, over all processes
            backward: gradients add up, and in the last batch the processes' too
        for each of its windows for restoration: the same with KL(base || run)
        clip the gradients; stop if they or the loss are not finite
        step
        metrics, checkpoint; a signal stops the run after both

accelerate prepares model and optimizer for the device and for several processes (DDP, DeepSpeed); FSDP2's shards are
made before (`training/parallel.py`).
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import DeepSpeedPlugin, send_to_device, set_seed

from lengthen._compat import forget_accelerator
from lengthen.attention import set_group_size
from lengthen.data.blocks import Block
from lengthen.data.collate import IGNORED, collate
from lengthen.data.mixture import FiniteSource
from lengthen.errors import DivergedError
from lengthen.recipe import Recipe
from lengthen.run_folder import RunFolder
from lengthen.training.batches import Batches
from lengthen.training.checkpoint import last_checkpoint, load_checkpoint, save_checkpoint
from lengthen.training.loggers import start_loggers
from lengthen.training.metrics import (
    BySource,
    Metrics,
    StepSums,
    TrainingProgress,
    Utilization,
    flat,
)
from lengthen.training.objective import CausalLMObjective
from lengthen.training.optim import build_optimizer, lr_multiplier
from lengthen.training.parallel import is_sharded, share_head_weight, zero_config
from lengthen.training.restoration import Windows
from lengthen.training.sequence import SequenceShards
from lengthen.training.signals import StopOnSignal
from lengthen.training.token_weights import PrefixWeights

__all__ = ["Loop"]

_PRECISIONS = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "no"}
_BASE_SHARE = 1 / 3
"""Of a window's operations, those of the base's forward pass beside the run's forward and backward pass."""
_LEAST_SCALE = 1.0
"""Of float16's losses: where gradients overflow below it too, the scale is not why."""


class Loop:
    """The steps of a run.

    Args:
        objective: model and loss; sharded already where the recipe says fsdp2.
        blocks: the training sequences.
        recipe: of the run.
        run: the run folder.
        dtype: of the arithmetic.
        pad_id: what stands in a batch's padding.
        utilization: counts operations for the MFU.
        windows: for restoration; None for none.
    """

    def __init__(
        self,
        objective: CausalLMObjective,
        blocks: Sequence[Block],
        recipe: Recipe,
        run: RunFolder,
        dtype: torch.dtype,
        pad_id: int,
        utilization: Utilization,
        windows: FiniteSource | None = None,
    ):
        self.recipe, self.training, self.run_folder, self.pad_id = recipe, recipe.training, run, pad_id
        self.objective, self.blocks, self.utilization = objective, blocks, utilization
        self.accelerator = _accelerator(recipe, dtype)
        self.is_zero, self.dtype = recipe.parallel.data.startswith("zero"), dtype
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        self.shards = None
        if recipe.parallel.sequence > 1:
            self.shards = SequenceShards(self.accelerator.device, recipe.parallel.sequence, recipe.shard_step)
            process, processes = self.shards.data_rank, self.shards.data_count
        self.batches = Batches(blocks, self.training, recipe.seed, process, processes)
        self.weights = PrefixWeights(blocks) if self.training.token_weights == "exact" else None
        self.windows = Windows(windows, self.training, process, processes) if windows else None
        optimizer = build_optimizer(objective, self.training, self.accelerator.device)
        self.peak_rates = [group["lr"] for group in optimizer.param_groups]
        if is_sharded(objective):  # for autocast only: accelerate must not wrap shards in DDP
            self.model = self.accelerator.prepare_model(objective, device_placement=False, evaluation_mode=True)
            self.optimizer = self.accelerator.prepare(optimizer)
        else:
            self.model, self.optimizer = self.accelerator.prepare(objective, optimizer)
            share_head_weight(objective)
        self.steps, self.done = self.batches.steps, 0
        self.at_full_attention = False

    def run(
        self,
        checkpoint: Path | None,
        on_step: Callable[[dict[str, Any]], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> int | None:
        """Take all steps, or those after a checkpoint.

        Args:
            checkpoint: to go on from; None for the beginning.
            on_step: called in the first process with each record of metrics.jsonl.
            stop: asked after each step; it stops the run as SIGTERM does.

        Returns:
            The signal that stopped the run, perhaps after its last step, or None.

        Raises:
            DivergedError: loss or gradients are not finite; the checkpoints so far are kept.
            OutputError: a checkpoint or metrics can't be written.
        """
        set_seed(self.recipe.seed + self.accelerator.process_index)  # of dropout, whatever building the model drew
        if checkpoint is not None:
            self.done = load_checkpoint(checkpoint, self.accelerator, self.objective, self.model, self.optimizer)
        is_main = self.accelerator.is_main_process
        loggers = start_loggers(self.training.report_to, self.run_folder.path) if is_main else []
        metrics = Metrics(self.utilization.peak)
        self.model.train()
        with (
            StopOnSignal(self.accelerator, stop) as signals,
            TrainingProgress(self.done, self.steps, is_main) as progress,
        ):
            for step in range(self.done + 1, self.steps + 1):
                rate = self._set_learning_rates(step)
                sums = self._forward_backward(step)
                norm = self._update(step, sums.loss + (sums.divergence or 0.0))
                self.done = step

                metrics.add(sums)
                signal = signals.received()
                is_last = step == self.steps or signal is not None
                if step == 1 or step % self.training.log_every == 0 or is_last:
                    record = metrics.record(step, rate, norm)
                    progress.show(record)
                    if is_main:
                        self._report(record, loggers, on_step)
                if step % self.training.save_every == 0 or is_last:
                    save_checkpoint(
                        self.run_folder, step, self.steps, self.accelerator, self.objective, self.model, self.optimizer
                    )
                if signal is not None:
                    break
        for logger in loggers:
            logger.finish()
        return signal

    def _report(
        self, record: dict[str, Any], loggers: Sequence[Any], on_step: Callable[[dict[str, Any]], None] | None
    ) -> None:
        """Hand a record of metrics.jsonl to the file, the loggers and the caller; in the first process only."""
        self.run_folder.append_metrics(record)
        if on_step is not None:
            on_step(record)
        for logger in loggers:
            logger.log(flat(record), record["step"])

    def _set_attention(self, full: bool) -> None:
        """Change between S2 and full attention; its groups become whole documents, so that packed ones stay apart."""
        wanted = self.recipe.attention
        if wanted.kind == "s2" and full != self.at_full_attention:
            pattern, sinks = ("full", 0) if full else (wanted.pattern, wanted.sinks)
            set_group_size(self.objective.model, self.recipe.group_size, sinks, pattern, wanted.backend)
            self.at_full_attention = full

    def _wants_full_attention(self, step: int) -> bool:
        """Whether a step is among the last ones, which the recipe wants at full attention."""
        share = self.recipe.attention.full_last
        return share > 0 and step > self.steps - max(1, round(share * self.steps))

    def _set_learning_rates(self, step: int) -> float:
        """Set each group's rate, and return the first one's."""
        share = lr_multiplier(self.training.schedule, step, self.steps, self.training.warmup_steps)
        for group, peak in zip(self.optimizer.param_groups, self.peak_rates, strict=True):
            group["lr"] = peak * share
        return self.optimizer.param_groups[0]["lr"]

    def _forward_backward(self, step: int) -> StepSums:
        """The gradients of a step: of its batches, and of its windows for restoration.

        Returns:
            Its losses and tokens, of all processes together; this process's operations.
        """
        indices, blocks = self.batches.indices_of_step(step), self.batches.of_step(step)
        windows = self.windows.of_step(step) if self.windows else []
        batches = [self._batch(each) for each in blocks]
        window_batches = [collate(each, self.pad_id) for each in windows]
        weights = [_target_weights(batch) for batch in batches]
        weight, tokens, window_tokens = self._sum_of_processes(
            sum(sum(each) for each in weights), _count_tokens(batches), _count_tokens(window_batches)
        )
        loss, divergence = torch.zeros(2, device=self.accelerator.device)
        by_source = BySource(self.blocks)
        at_full = self._wants_full_attention(step)
        self._set_attention(at_full)
        for number, batch in enumerate(batches):
            is_last = not windows and number == len(batches) - 1
            loss += self._add_gradients(batch, weight or 1.0, is_last)
            by_source.add(indices[number], self.objective.sequence_losses, weights[number])
        for number, batch in enumerate(window_batches):
            self._set_attention(full=True)
            divergence += self._add_gradients(batch, window_tokens, number == len(windows) - 1, restore=True)
        # Windows are not cut: all that share a sequence have the same, and each counts for its part.
        sharing = self.recipe.parallel.sequence
        return StepSums(
            loss=self.accelerator.reduce(loss, "mean").item(),
            divergence=self.accelerator.reduce(divergence, "mean").item() if windows else None,
            by_source=by_source.sums(self._sum_of_processes),
            tokens=tokens + window_tokens / sharing,
            flops=self._flops(blocks, at_full) / sharing + self._flops(windows, True) * (1 + _BASE_SHARE),
        )

    def _add_gradients(self, batch: dict[str, Any], total: float, is_last: bool, restore: bool = False) -> torch.Tensor:
        """The forward and backward pass of a batch.

        Args:
            batch: of sequences, or of windows for restoration.
            total: weight of all targets of the step, or tokens of all its windows.
            is_last: whether it is the step's last batch.
            restore: whether the loss is the divergence from the base.

        Returns:
            Its part of the step's loss times the number of processes, a scalar.
        """
        inputs = send_to_device(batch, self.accelerator.device, non_blocking=True)
        with self._gradients_shared(is_last):
            # Gradients are averaged over processes, where we want their sum.
            part = self.model(**inputs, restore=restore) * self.accelerator.num_processes / total
            self._backward(part * self.training.restoration.weight if restore else part, is_last)
        return part.detach()

    def _flops(self, batches: Sequence[Sequence[Block]], full_attention: bool) -> float:
        return self.utilization.flops([block for each in batches for block in each], full_attention)

    def _batch(self, blocks: Sequence[Block]) -> dict[str, Any]:
        """A batch, or this process's shard of it."""
        if self.weights is not None:
            blocks = [self.weights.apply(block) for block in blocks]
        if self.shards is None:
            return collate(blocks, self.pad_id)
        return self.shards.cut(collate(blocks, self.pad_id, self.shards.shortest))

    def _sum_of_processes(self, *values: float) -> list[float]:
        if self.accelerator.num_processes == 1:
            return list(values)
        return self.accelerator.reduce(
            torch.tensor(values, dtype=torch.float64, device=self.accelerator.device)
        ).tolist()

    def _gradients_shared(self, is_last: bool) -> AbstractContextManager[Any]:
        """DDP adds the processes' gradients in the last batch of a step; shards are reduced in each of them.

        Kept whole until the last batch, gradients would undo the shards.
        """
        waits = not is_last and not self.is_zero and not is_sharded(self.objective)
        return self.accelerator.no_sync(self.model) if waits else nullcontext()

    def _backward(self, loss: torch.Tensor, is_last: bool) -> None:
        if self.is_zero:
            self.model.set_gradient_accumulation_boundary(is_last)
            self.model.backward(loss, scale_wrt_gas=False)
        else:
            self.accelerator.backward(loss)

    def _update(self, step: int, loss: float) -> float:
        """Take the optimizer step, unless the run has diverged; returns the norm of the gradients before clipping."""
        if self.is_zero:  # DeepSpeed clips inside its step
            self._check_finite(step, "loss", loss)
            self.model.step()
            norm = float(self.model.get_global_grad_norm())
            self._check_finite(step, "gradient norm", norm)
            return norm
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.training.max_grad_norm).item()
        self._check_finite(step, "loss", loss)
        self._check_finite(step, "gradient norm", norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def _check_finite(self, step: int, what: str, value: float) -> None:
        if math.isfinite(value):
            return
        scaler = self.accelerator.scaler
        if what == "gradient norm" and scaler is not None and scaler.get_scale() >= _LEAST_SCALE:
            return  # float16 overflows now and then: the scaler skips the step and lowers its scale
        last = last_checkpoint(self.run_folder)
        kept = f"{last.name} is kept" if last else "no checkpoint was written before"
        raise DivergedError(
            f"the run has diverged: in step {step} the {what} is {value}; {kept}; lower training.learning_rate (it is "
            f"{self.training.learning_rate:g}) and train into another out"
        )


def _accelerator(recipe: Recipe, dtype: torch.dtype) -> Accelerator:
    forget_accelerator()
    training = recipe.training
    options: dict[str, Any] = {}
    if recipe.parallel.data.startswith("zero"):
        config = zero_config(
            recipe.parallel.data, training.batch_size, training.accumulation, training.max_grad_norm, dtype
        )
        options = {
            "deepspeed_plugin": DeepSpeedPlugin(hf_ds_config=config),
            "gradient_accumulation_steps": training.accumulation,
        }
    return Accelerator(
        cpu=not torch.accelerator.is_available(),
        mixed_precision=_PRECISIONS[dtype],
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=False)],
        **options,
    )


def _target_weights(batch: dict[str, Any]) -> list[float]:
    """The sum of the targets' weights of each sequence."""
    is_target = batch["labels"] != IGNORED
    if "loss_weights" in batch:
        return (is_target * batch["loss_weights"].double()).sum(1).tolist()
    return is_target.sum(1).tolist()


def _count_tokens(batches: Sequence[dict[str, Any]]) -> int:
    return sum(batch["input_ids"].numel() for batch in batches)
