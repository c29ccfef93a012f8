"""A causal language model and its loss as one module, so that wrappers such as DDP see a single forward."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lengthen.attention.documents import Documents
from lengthen.attention.layout import Shard, known_documents
from lengthen.data.collate import IGNORED
from lengthen.head import LogitTransform, causal_lm, decoder_of
from lengthen.models.rotary import BasePositions
from lengthen.training.loss import linear_cross_entropy, linear_kl
from lengthen.training.offload import offload_saved

__all__ = ["CausalLMObjective"]


class CausalLMObjective(nn.Module):
    """Summed next-token loss of any transformers causal language model, PEFT-wrapped or not.

    The model runs as it is, but is asked for the last position's logits only; the loss comes from the decoder's
    hidden states through `linear_cross_entropy`. `lengthen.head.check_head` tells whether that is the model's own loss.

    Args:
        model: a causal language model or a PeftModel around one.
        offload: keep what the forward pass saves in CPU memory; or in a file in this folder.
        base_positions: those that restoration asks of the base; None for no restoration.

    Attributes:
        sequence_losses: (B,): what each sequence has of the last forward pass's loss, without gradient.

    Raises:
        ModelError: the model has no decoder or head that can be told apart.
    """

    def __init__(self, model: Any, offload: bool | Path = False, base_positions: BasePositions | None = None):
        super().__init__()
        self.model = model
        self._offload, self._base_positions = offload, base_positions
        self._transform = LogitTransform(causal_lm(model).config)
        self._hidden: torch.Tensor | None = None
        self.sequence_losses: torch.Tensor | None = None
        decoder_of(model).register_forward_hook(self._keep_hidden)

    def _keep_hidden(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        self._hidden = output[0]

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        loss_weights: torch.Tensor | None = None,
        documents: Documents | None = None,
        shard: Shard | None = None,
        restore: bool = False,
        **inputs: Any,
    ) -> torch.Tensor:
        """Weighted sum of the cross entropies of all labels; or, to restore, of the divergences from the base.

        Args:
            input_ids: (B, T).
            labels: (B, T), aligned with `input_ids`: position t is predicted from t - 1; -100 is not predicted. Or
                (B, T + 1), with the next token's, where the sequences go on in another shard.
            loss_weights: float32, aligned with `labels`; default 1.
            documents: per sequence, (start, length) of each document, without gaps; None to read it from the inputs.
            shard: of the sequences, where several processes share them: T tokens of what `documents` tells. All call
                this together, and the gradients of one's loss reach the others' keys and values.
            restore: sum KL(base || run) over all tokens instead, without labels and weights.
            inputs: passed on, such as position_ids and attention_mask.

        Returns:
            A float32 scalar.
        """
        with known_documents(documents, shard):
            if restore:
                return self._divergence(input_ids, **inputs)
            hidden_TE = self._hidden_states(input_ids, **inputs)
        weight, bias = self._head()
        targets = _next_ones(labels, input_ids.shape, IGNORED).flatten()
        weights = None if loss_weights is None else _next_ones(loss_weights, input_ids.shape, 0).flatten()
        losses_T = torch.empty(targets.shape, dtype=torch.float32, device=targets.device)
        loss = linear_cross_entropy(hidden_TE, weight, targets, bias, self._transform, weights, losses_T)
        self.sequence_losses = losses_T.view(input_ids.shape).sum(1)
        return loss

    def _divergence(self, input_ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
        with self._as_base():
            base_hidden_TE = self._hidden_states(input_ids, **inputs)
            base_weight, _ = self._head()
        hidden_TE = self._hidden_states(input_ids, **inputs)
        weight, bias = self._head()
        return linear_kl(hidden_TE, weight, base_hidden_TE, base_weight, bias, self._transform)

    @contextmanager
    def _as_base(self) -> Iterator[None]:
        """The base: no adapter, its own positions, no dropout, and so full attention."""
        assert self._base_positions is not None
        is_training = self.model.training
        with torch.no_grad(), self._base_positions.used(), self.model.disable_adapter():
            self.model.eval()
            yield
        self.model.train(is_training)

    def _hidden_states(self, input_ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
        """The decoder's last hidden states, (B * T, E)."""
        folder = self._offload if isinstance(self._offload, Path) else None
        with offload_saved(self.model, folder) if self._offload else nullcontext():
            self.model(input_ids=input_ids, use_cache=False, logits_to_keep=1, **inputs)
        hidden_BTE, self._hidden = self._hidden, None
        assert hidden_BTE is not None
        # Prompt-learning adapters put virtual tokens before the text. A slice of all tokens would copy its gradient.
        if hidden_BTE.shape[1] > input_ids.shape[1]:
            hidden_BTE = hidden_BTE[:, -input_ids.shape[1] :]
        return hidden_BTE.flatten(0, 1)

    def _head(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        head = causal_lm(self.model).get_output_embeddings()
        return head.weight, getattr(head, "bias", None)


def _next_ones(values: torch.Tensor, shape: torch.Size, last: float) -> torch.Tensor:
    """Values moved by one token: each place has that of the next token, and the last place `last`."""
    found = values.new_full(shape, last)
    following = values[:, 1 : shape[1] + 1]
    found[:, : following.shape[1]] = following
    return found
