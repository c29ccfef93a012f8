"""A causal language model and its loss as one module, so that wrappers such as DDP see a single forward."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from lengthen.head import LogitTransform, causal_lm, decoder_of
from lengthen.training.loss import IGNORED, linear_cross_entropy
from lengthen.training.memory import offload_saved

__all__ = ["CausalLMObjective"]


class CausalLMObjective(nn.Module):
    """Summed next-token loss of any transformers causal language model, PEFT-wrapped or not.

    The model runs as it is, but is asked for the last position's logits only; the loss comes from the decoder's
    hidden states through `linear_cross_entropy`. `lengthen.head.check_head` tells whether that is the model's own loss.

    Args:
        model: a causal language model or a PeftModel around one.
        offload: keep what the forward pass saves in CPU memory.

    Raises:
        ModelError: the model has no decoder or head that can be told apart.
    """

    def __init__(self, model: Any, offload: bool = False):
        super().__init__()
        self.model = model
        self._offload = offload
        self._transform = LogitTransform(causal_lm(model).config)
        self._hidden: torch.Tensor | None = None
        decoder_of(model).register_forward_hook(self._keep_hidden)

    def _keep_hidden(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        self._hidden = output[0]

    def forward(
        self, input_ids: torch.Tensor, labels: torch.Tensor, loss_weights: torch.Tensor | None = None, **inputs: Any
    ) -> torch.Tensor:
        """Weighted sum of the cross entropies of all labels.

        Args:
            input_ids: (B, T).
            labels: (B, T), aligned with `input_ids`: position t is predicted from t - 1; -100 is not predicted.
            loss_weights: float32, (B, T), aligned with `labels`; default 1.
            inputs: passed on, such as position_ids and attention_mask.

        Returns:
            A float32 scalar.
        """
        with offload_saved(self.model) if self._offload else nullcontext():
            self.model(input_ids=input_ids, use_cache=False, logits_to_keep=1, **inputs)
        hidden_BTE, self._hidden = self._hidden, None
        assert hidden_BTE is not None
        # Prompt-learning adapters put virtual tokens before the text.
        hidden_BTE = hidden_BTE[:, -input_ids.shape[1] :]
        head = causal_lm(self.model).get_output_embeddings()
        weight, bias = head.weight, getattr(head, "bias", None)
        targets = _shifted(labels, IGNORED).flatten()
        weights = None if loss_weights is None else _shifted(loss_weights, 0).flatten()
        return linear_cross_entropy(hidden_BTE.flatten(0, 1), weight, targets, bias, self._transform, weights)


def _shifted(values_BT: torch.Tensor, last: float) -> torch.Tensor:
    """What belongs to the token that comes after each one."""
    shifted = torch.full_like(values_BT, last)
    shifted[:, :-1] = values_BT[:, 1:]
    return shifted
