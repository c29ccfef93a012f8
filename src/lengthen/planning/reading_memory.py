"""Bytes that reading one long text takes: weights, keys and values, and what one chunk's layer computes."""

from dataclasses import dataclass

from lengthen.planning.devices import WIDTHS, Device
from lengthen.planning.memory import GPU_RUNTIME
from lengthen.planning.shape import ModelShape
from lengthen.planning.state_memory import weight_bytes

__all__ = ["ReadingMemory", "reading_memory"]

# Tokens whose activations are held at once: what a CPU reads whole, and what a GPU's chunks go down to where its memory
# is short (lengthen/decoding/prefill.py).
_AT_ONCE, _AT_ONCE_ON_GPU = 8192, 1024

# A cache has room for an eighth more than it holds (lengthen/decoding/kv_cache.py).
_CACHE_ROOM = 1 + 1 / 8

# Tensors of the hidden size that attention and the norms, which compute in float32, hold at once.
_HIDDEN_COPIES = 8


@dataclass(frozen=True)
class ReadingMemory:
    """Bytes of reading one text at a time, without gradients.

    Attributes:
        weights: of the base, with the constants of its quantization.
        working: that do not grow with the text: a chunk's activations, windows of keys and values, the runtime.
        per_token: keys and values of the layers that see all tokens.
    """

    weights: int
    working: int
    per_token: float

    def cache(self, tokens: int) -> int:
        """Bytes of the keys and values of a text."""
        return int(self.per_token * tokens)

    def peak(self, tokens: int) -> int:
        """Bytes of everything for a text of so many tokens."""
        return self.weights + self.working + self.cache(tokens)

    def longest(self, memory: int) -> int:
        """Tokens of the longest text that can be read in so many bytes, in whole 1,024; 0 for none."""
        room = memory - self.weights - self.working
        return int(room / self.per_token) // 1024 * 1024 if room > 0 and self.per_token else 0


def reading_memory(shape: ModelShape, quantize: str | None, dtype: str, device: Device) -> ReadingMemory:
    """Count the bytes of reading with a base; an adapter's are too few to matter.

    Args:
        shape: of the base.
        quantize: "nf4" for its linear layers in 4 bits.
        dtype: of the arithmetic, and of weights that are not in 4 bits.
        device: what it is read on.
    """
    width, on_gpu = WIDTHS[dtype], device.kind != "cpu"
    layers = [(layer, layer.count * (layer.key + layer.value) * width) for layer in shape.layers]
    windows = sum(keys * layer.window for layer, keys in layers if layer.window)
    at_once = _AT_ONCE_ON_GPU if on_gpu else _AT_ONCE
    activations = max(layer.up + layer.inner for layer in shape.layers) + _HIDDEN_COPIES * shape.hidden
    return ReadingMemory(
        weights=int(sum(weight_bytes(shape, quantize, width))),
        working=int(at_once * activations * width + windows + (GPU_RUNTIME if on_gpu else 0)),
        per_token=_CACHE_ROOM * sum(keys for layer, keys in layers if not layer.window),
    )
