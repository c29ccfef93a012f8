"""Which layers of a model rotate their queries, found by running its code on tensors without data.

The outputs of the rotary embedding are marked, marks follow every operation, and the attention function looks for them
on its queries.
"""

import warnings
from dataclasses import dataclass
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM

FLAT = "all layers"


@dataclass(frozen=True)
class Probed:
    """An attention layer as its code has it: its number, whether it has a window, and whose RoPE it uses."""

    index: int
    windowed: bool
    rope: frozenset


class _Marks(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self._marks = {}  # the tensors are kept, so that no id is used twice

    def of(self, *values):
        tensors = (value for value in tree_flatten(values)[0] if isinstance(value, torch.Tensor))
        return frozenset().union(*(self._marks[id(tensor)][1] for tensor in tensors if id(tensor) in self._marks))

    def put(self, values, marks):
        for value in tree_flatten(values)[0]:
            if isinstance(value, torch.Tensor):
                self._marks[id(value)] = (value, frozenset(marks))

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        marks = self.of(args, kwargs)
        if marks:
            self.put(out, marks)
        return out


def probe(config):
    """The attention layers that a model of this config has, in the order in which they run."""
    marks, found = _Marks(), []

    def attention(module, query, key, value, *_, **more):
        found.append(Probed(module.layer_idx, more.get("sliding_window") is not None, marks.of(query)))
        shape = (query.shape[0], query.shape[2], query.shape[1], value.shape[-1])
        return torch.zeros(shape, device=query.device, dtype=query.dtype), None

    def rotary_output(_module, args, kwargs, out):
        names = [kwargs.get("layer_type"), *(value for value in args if isinstance(value, str))]
        marks.put(out, {next((name for name in names if name), FLAT)})

    AttentionInterface.register("rope_probe", attention)
    AttentionMaskInterface.register("rope_probe", lambda *_, **__: None)
    # Masks and experts read values, which tensors without data don't have.
    values = {"item": lambda _self: 0, "__bool__": lambda _self: False, "tolist": lambda self: [0] * self.numel()}
    with patch.multiple(torch.Tensor, **values), torch.device("meta"), warnings.catch_warnings(action="ignore"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="rope_probe", dtype=torch.bfloat16).eval()
        for module in model.modules():
            if "rotary" in type(module).__name__.lower():
                module.register_forward_hook(rotary_output, with_kwargs=True)
        with marks, torch.no_grad():
            model(input_ids=torch.ones(1, 8, dtype=torch.long), use_cache=False)
    return found
