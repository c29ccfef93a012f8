"""Keys and values in memory with room for more, so that a new token does not copy all that was read before.

Shapes: B sequences, K key/value heads, T tokens, D size of a head.
"""

from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

__all__ = ["GrowingLayer"]

# Room for more: at least 256 tokens, beyond 2,048 an eighth of those that are there.
_LEAST, _SHARE = 256, 8


class GrowingLayer(DynamicLayer):
    """transformers' layer of a growing cache, which concatenates; this one writes behind what it has.

    Attributes:
        keys: (B, K, T, D), a view of the memory's beginning.
        values: the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self._memory: list[torch.Tensor | None] = [None, None]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add keys and values (B, K, t, D), and return all of them.

        Args:
            key_states: (B, K, t, D), those of the new tokens.
            value_states: the same.
            args, kwargs: of transformers' caches; not used.

        Returns:
            Keys and values of all tokens, (B, K, T, D).
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._memory = [None, None]
        length = self.get_seq_length()
        self.keys, self._memory[0] = _appended(self.keys, self._memory[0], key_states, length)
        self.values, self._memory[1] = _appended(self.values, self._memory[1], value_states, length)
        return self.keys, self.values


def _appended(
    old: torch.Tensor | None, memory: torch.Tensor | None, new_BKtD: torch.Tensor, length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Old and new values as one view of the memory, and this memory, which is a new one where it must be."""
    batch, heads, added, size = new_BKtD.shape
    total = length + added
    # A selection of rows puts other tensors in the place of these views.
    is_view = memory is not None and old is not None and old.data_ptr() == memory.data_ptr()
    if memory is None or not is_view or len(memory) != batch or total > memory.shape[2]:
        room = total + max(_LEAST, total // _SHARE)
        with torch.inference_mode(False):  # else nobody could write into it outside of inference mode
            larger = torch.empty(batch, heads, room, size, dtype=new_BKtD.dtype, device=new_BKtD.device)
        if length:
            assert old is not None
            larger[:, :, :length] = old
        memory = larger
    memory[:, :, length:total] = new_BKtD
    return memory[:, :, :total], memory
