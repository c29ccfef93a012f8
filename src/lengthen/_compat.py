"""Everything that depends on upstream versions or private corners, each with the condition for its removal."""

import inspect
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = [
    "bf16_is_fast",
    "bf16_is_fast_on_cpu",
    "enable_activation_checkpointing",
    "flash_varlen",
    "float32_product",
    "forget_accelerator",
    "gguf_dequantized",
    "silence_upstream",
    "torch_varlen",
    "with_cache",
    "without_cudnn_attention",
]


def enable_activation_checkpointing(model: Any, arguments: dict[str, Any]) -> None:
    """Recompute a model's layers in the backward pass, with these arguments of torch's checkpoint.

    transformers 5.23 renamed it from `gradient_checkpointing_enable`; goes together with `with_cache`'s condition.

    Args:
        model: a transformers model.
        arguments: of `torch.utils.checkpoint.checkpoint`.
    """
    name = "activation_checkpointing_enable"
    getattr(model, name if hasattr(model, name) else "gradient_checkpointing_enable")(arguments)


def silence_upstream() -> None:
    """Leave out two messages of other packages about what nobody who sees them can change; all others stay.

    peft 0.21 reads a name that transformers 5.23 deprecated; goes with the first peft that doesn't. On CPUs with
    AVX512-BF16, bitsandbytes 0.50 says at import that it has no kernels for a path that lengthen turns off
    (`quantization.prepare_for_training`); goes when it says so only where that path is taken.
    """
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def bf16_is_fast(device: "torch.device") -> bool:
    """Whether matrix products in bfloat16 beat float32 there."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "mps" or (device.type == "cpu" and bf16_is_fast_on_cpu())


def bf16_is_fast_on_cpu() -> bool:
    """Whether this CPU has AVX512-BF16 or AMX.

    Linux says so without an import that takes seconds. Elsewhere it is torch.cpu's private probe; goes when a public
    one names both.
    """
    with suppress(OSError):
        flags = re.search(r"^flags\s*:(.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
        return flags is not None and not {"avx512_bf16", "amx_tile"}.isdisjoint(flags[1].split())
    import torch

    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def float32_product(a: "torch.Tensor", b: "torch.Tensor") -> "torch.Tensor":
    """a @ b as float32, of 16-bit matrices without rounding the sums to 16 bits where torch can.

    Only its CUDA products have `out_dtype`; goes when those of CPUs have it too.

    Args:
        a: (M, K).
        b: (K, N), of the same dtype.

    Returns:
        (M, N), float32.
    """
    import torch

    if a.is_cuda and a.dtype in (torch.bfloat16, torch.float16) and "dtype" in torch.ops.aten.mm.overloads():
        return torch.mm(a, b, out_dtype=torch.float32)
    return (a @ b).float()


def gguf_dequantized() -> Any:
    """The quantization config under which a GGUF file becomes an ordinary, trainable model.

    Goes when dequantizing is again what `from_pretrained(gguf_file=...)` does by default.
    """
    from transformers import GgufConfig

    return GgufConfig(dequantize=True)


def with_cache(cache: Any) -> dict[str, Any]:
    """The arguments of a forward pass that reads a key/value cache and adds to it.

    transformers 5.24 renamed `past_key_values` to `cache`. Goes when 5.24 is the oldest version that is taken, which
    is when Python 3.10 is no longer: its newest transformers is 5.20.
    """
    import transformers

    major, minor = transformers.__version__.split(".")[:2]
    return {"cache" if (int(major), int(minor)) >= (5, 24) else "past_key_values": cache, "use_cache": True}


def flash_varlen(module: str) -> "Callable[..., torch.Tensor]":
    """flash-attention's function for sequences of different lengths, from the module of version 2 or 3.

    Some releases of version 3 return the log-sum-exp too; goes when only those are left that don't.
    """
    function = import_module(module).flash_attn_varlen_func

    def varlen(*arguments: Any, **more: Any) -> "torch.Tensor":
        out = function(*arguments, **more)
        return out[0] if isinstance(out, tuple) else out

    return varlen


def torch_varlen() -> "Callable[..., torch.Tensor] | None":
    """`torch.nn.attention.varlen` under the arguments of flash-attention's function; None where torch lacks it.

    torch 2.10 has it without a scale, 2.11 takes fewer key/value heads without being told, 2.12 wants to be told;
    goes when torch 2.12 is the least that is supported.
    """
    import torch

    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    known = inspect.signature(varlen_attn).parameters
    if not {"scale", "window_size"} <= known.keys():
        return None

    def varlen(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        query_ends: torch.Tensor,
        key_ends: torch.Tensor,
        longest_query: int,
        longest_key: int,
        *,
        softmax_scale: float,
        causal: bool,
    ) -> torch.Tensor:
        window = (-1, 0) if causal else (-1, -1)
        shared: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in known and q.shape[1] != k.shape[1] else {}
        out = varlen_attn(
            q, k, v, query_ends, key_ends, longest_query, longest_key, scale=softmax_scale, window_size=window, **shared
        )
        assert isinstance(out, torch.Tensor)
        return out

    return varlen


@contextmanager
def without_cudnn_attention() -> Iterator[None]:
    """Keep torch's attention from cuDNN in this block, if it has another fused kernel: for shapes that change.

    torch prefers cuDNN on Hopper and Blackwell, and it builds a plan for each new shape: 0.7 s forward and 0.6 s
    backward on an H100, where a call takes a millisecond (docs/results/gpu.md). Goes when a plan serves other lengths.
    """
    import torch

    cuda = torch.backends.cuda
    if not (cuda.cudnn_sdp_enabled() and (cuda.flash_sdp_enabled() or cuda.mem_efficient_sdp_enabled())):
        yield
        return
    cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        cuda.enable_cudnn_sdp(True)


def forget_accelerator() -> None:
    """Let the next `Accelerator` have another precision than the last one in this process.

    accelerate keeps the settings of the first one; goes when it has a public way to drop them.
    """
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
