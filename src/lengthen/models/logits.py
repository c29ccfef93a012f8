"""How many tokens' logits are held at a time: arithmetic, for the loss and for the plan of its memory."""

__all__ = ["tokens_per_chunk"]

LOGITS, LOGITS_ON_GPU = 2**24, 2**26
"""Logits held at a time, 64 and 256 MiB in float32; about four times that with their gradient."""
_GPU_TILE = 128
"""Rows that GPUs multiply at a time."""


def tokens_per_chunk(vocabulary: int, on_gpu: bool = False) -> int:
    """Tokens whose logits are held at a time.

    Each chunk reads the head's whole weight, so a GPU wants many rows: of 2^24 logits, 128,256 words leave 130.

    Args:
        vocabulary: V, words.
        on_gpu: for an accelerator.
    """
    if on_gpu:
        return min(4096, max(_GPU_TILE, LOGITS_ON_GPU // vocabulary // _GPU_TILE * _GPU_TILE))
    return min(1024, max(64, LOGITS // vocabulary))
