"""From a decoder's hidden states to logits, for training and evaluation, which both avoid a full (T, V) tensor."""

from collections.abc import Iterator
from typing import Any

import torch

from lengthen._compat import without_cudnn_attention
from lengthen.errors import ModelError

__all__ = [
    "LogitTransform",
    "causal_lm",
    "check_head",
    "decoder_modules",
    "decoder_of",
    "embedding_parameters",
    "hidden_states",
    "logits_from",
]

_CHECKED_TOKENS = 16


def causal_lm(model: Any) -> Any:
    """The transformers model inside a PeftModel (its adapters stay in their places), or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder_of(model: Any) -> Any:
    """The part of a causal language model that ends in hidden states.

    Raises:
        ModelError: the model has no decoder and output head of its own.
    """
    base = causal_lm(model)
    decoder = base.get_decoder() if hasattr(base, "get_decoder") else None
    if decoder is base:  # transformers looks for Llama 4's under another name than it has
        decoder = getattr(base, "model", base)
    if decoder is None or decoder is base or base.get_output_embeddings() is None:
        raise ModelError(
            f"{type(base).__name__} has no decoder and output head that could be run apart; lengthen needs a causal "
            "language model, such as AutoModelForCausalLM loads"
        )
    return decoder


def decoder_modules(model: Any) -> Iterator[tuple[str, Any]]:
    """The modules of the text decoder by their names in the model, without those of a vision or audio tower beside it.

    Where the decoder is not apart from the model, or what the model calls its decoder has no attention in it
    (ModernBERT's is the head), these are all.
    """
    base = causal_lm(model)
    decoder = base.get_decoder() if hasattr(base, "get_decoder") else None
    if decoder is None or not any(hasattr(module, "is_causal") for module in decoder.modules()):
        decoder = base
    inside = {id(module) for module in decoder.modules()}
    return ((name, module) for name, module in model.named_modules() if id(module) in inside)


def embedding_parameters(model: Any) -> set[int]:
    """The `id` of every parameter of the input embeddings and of the head, adapters' copies in their places."""
    base = causal_lm(model)
    ends = (base.get_input_embeddings(), base.get_output_embeddings())
    return {id(parameter) for module in ends if module is not None for parameter in module.parameters()}


class LogitTransform:
    """The changes that an architecture makes to its head's output before the softmax, from its config.

    Cohere multiplies (`logit_scale`), so does Falcon-H1 (`lm_head_multiplier`); Granite divides (`logits_scaling`);
    Gemma 2 and later cap (`final_logit_softcapping`). Whether that is all is checked against the model's own logits
    wherever this is used.

    Args:
        config: the model's.
    """

    def __init__(self, config: Any):
        config = config.get_text_config()

        def number(name: str) -> float:
            value = getattr(config, name, None)
            return float(value) if isinstance(value, int | float) else 1.0

        self.scale = number("logit_scale") * number("lm_head_multiplier") / number("logits_scaling")
        self.cap: float | None = getattr(config, "final_logit_softcapping", None)

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Scale, then cap; the shape stays."""
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.cap:
            logits = torch.tanh(logits / self.cap) * self.cap
        return logits


def hidden_states(model: Any, input_ids_BT: torch.Tensor) -> torch.Tensor:
    """The decoder's last hidden states, (B, T, H).

    Args:
        model: a causal language model of transformers, or a PEFT model around one.
        input_ids_BT: token ids.

    Raises:
        ModelError: as `decoder_of`.
    """
    return decoder_of(model)(input_ids=input_ids_BT.to(causal_lm(model).device), use_cache=False)[0]


def logits_from(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """The head and what the architecture does after it, (..., H) -> (..., V), in float32.

    Args:
        model: a causal language model of transformers, or a PEFT model around one.
        hidden: (..., H), from `hidden_states`.
    """
    base = causal_lm(model)
    return LogitTransform(base.config)(base.get_output_embeddings()(hidden).float())


@torch.inference_mode()
def check_head(model: Any, input_ids: torch.Tensor) -> None:
    """Refuse a model whose own logits are not those of its decoder, head and `LogitTransform`: losses would be wrong.

    Compares all logits of a few tokens, not of one: a wrong softcap hardly shows in small logits.

    Args:
        model: a causal language model of transformers, or a PEFT model around one, in evaluation mode.
        input_ids: (B, T) token ids, of which the first 16 are used.

    Raises:
        ModelError: the logits differ, or there is no head.
    """
    input_ids_BT = input_ids[:, :_CHECKED_TOKENS].long()
    with without_cudnn_attention():  # a plan for 16 tokens would serve nothing else
        ours = logits_from(model, hidden_states(model, input_ids_BT))
        own = model(input_ids=input_ids_BT.to(causal_lm(model).device), use_cache=False).logits
    # Scales and softcaps are applied in the model's dtype there and in float32 here.
    tolerance = 1e-3 if own.dtype == torch.float32 else 2e-2
    own = own.float().to(ours.device)
    largest = own.nan_to_num(0, 0, 0).abs().max().item()
    if ours.shape != own.shape or not torch.allclose(ours, own, rtol=0, atol=tolerance * largest, equal_nan=True):
        raise ModelError(
            f"{type(causal_lm(model)).__name__} does not get its logits from its decoder and output head in a way that "
            "lengthen knows (an own scale after the head, or a prompt in front); its loss would be wrong"
        )
