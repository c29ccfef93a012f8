"""Export for vLLM: a plain LoRA adapter, and a base into which the adapter's other weights are merged.

vLLM takes LoRA matrices on linear layers and nothing else; embeddings and norms are part of its base. It reads few keys
of adapter_config.json and ignores the others without a word, so what would come out wrong there is refused here.

Source of the rules: vLLM 0.11, `vllm/lora/peft_helper.py` (which config is taken), `lora_model.py` and `utils.py`
(which tensor names), `vllm/config/lora.py` (which maximum ranks), `vllm/config/model.py` (the length: vLLM multiplies
the maximum of a linearly scaled config by its factor once more, so the length is given on the command line).
"""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file

from lengthen.adapters.export import check_is_new, load_for_export, save_model
from lengthen.adapters.finite import check_weights
from lengthen.errors import ModelError
from lengthen.files import atomic_folder, write_json
from lengthen.models.devices import Dtype, pick_dtype

__all__ = ["MAX_RANKS", "VllmExport", "export_for_vllm", "serve_command"]

MAX_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that `vllm serve --max-lora-rank` takes."""


@dataclass(frozen=True)
class VllmExport:
    """The folders for vLLM, and the command that serves them.

    Attributes:
        base: model folder: the base with the run's embeddings, norms and positions.
        adapter: PEFT folder with LoRA matrices only.
        command: the line that serves both.
    """

    base: Path
    adapter: Path
    command: str


def export_for_vllm(
    model: str | Path,
    out: Path,
    dtype: Dtype = "bfloat16",
    adapter: str | Path | None = None,
    merge_into: str = "original",
    base_context: int | None = None,
    adapter_scale: float = 1.0,
) -> VllmExport:
    """Write a base and a LoRA adapter that vLLM serves together, and that compute what the run does.

    Args:
        model: a run folder, or anything MODEL can name, with `adapter`.
        out: a new or empty folder, which gets `base` and `adapter`.
        dtype: of the base's weights: "bfloat16", "float16" or "float32". The adapter is written in float32.
        adapter: a PEFT folder, where `model` is not a run folder.
        merge_into: for 4-bit runs: over the "original" weights, or the "dequantized" ones.
        base_context: of the base, tokens, where its files leave that open.
        adapter_scale: the share of the adapter that is written, 0 to 1.

    Raises:
        ModelError: the model can't be loaded, or its adapter is of a kind that vLLM does not take.
        OutputError: `out` has content or can't be written.
    """
    check_is_new(out)
    written = pick_dtype(dtype, torch.device("cpu"))
    loaded, tokenizer = load_for_export(model, adapter, merge_into, base_context, adapter_scale)
    if not isinstance(loaded, PeftModel):
        raise ModelError(f"{model} has no adapter; vLLM serves it as it is, exported as a whole if it is a run")
    settings = loaded.active_peft_config
    tensors = get_peft_model_state_dict(loaded, save_embedding_layers=False)
    problems = _problems(settings, tensors)
    if problems:
        raise ModelError(
            f"vLLM does not take the adapter of {adapter or model}: {', '.join(problems)}; export it as a whole, "
            "which merges it"
        )
    # The other tensors of an adapter are merged into the base.
    lora = {name: tensor.float().contiguous() for name, tensor in tensors.items() if ".lora_" in name}
    context = loaded.config.get_text_config().max_position_embeddings
    base = loaded.unload()  # the base's linear layers, the adapter's embeddings and norms
    check_weights(lora.items())
    with atomic_folder(out) as temporary:
        for name in ("base", "adapter"):
            (temporary / name).mkdir()
        save_model(base, tokenizer, temporary / "base", written)
        save_file(lora, temporary / "adapter" / "adapter_model.safetensors", metadata={"format": "pt"})
        write_json(
            temporary / "adapter" / "adapter_config.json", _adapter_config(settings, str(out / "base"), adapter_scale)
        )
    name = Path(adapter or model).resolve().name
    return VllmExport(out / "base", out / "adapter", serve_command(out, name, settings.r, context))


def serve_command(folder: Path, name: str, rank: int, context: int) -> str:
    """The line that serves an export.

    Args:
        folder: with `base` and `adapter`.
        name: what requests call the adapter.
        rank: of the adapter; the next larger of `MAX_RANKS` is asked for.
        context: tokens.
    """
    maximum = next(allowed for allowed in MAX_RANKS if allowed >= rank)
    arguments = ["--enable-lora", "--max-lora-rank", str(maximum), "--max-model-len", str(context)]
    modules = ["--lora-modules", f"{name}={folder / 'adapter'}"]
    return shlex.join(["vllm", "serve", str(folder / "base"), *arguments, *modules])


def _problems(settings: Any, tensors: dict[str, torch.Tensor]) -> list[str]:
    """Why vLLM would refuse this adapter, or compute something else with it."""
    if not isinstance(settings, LoraConfig):
        return [f"it is of kind {str(settings.peft_type).rsplit('.', 1)[-1].lower()}, not LoRA"]
    found = {
        "it is DoRA": settings.use_dora,
        "it trains biases": settings.bias != "none" or settings.lora_bias,
        "its rank differs between layers": settings.rank_pattern,
        "its alpha differs between layers": settings.alpha_pattern,
        "it adapts experts": settings.target_parameters,
        "it repeats layers": settings.layer_replication,
        "it trains single tokens": settings.trainable_token_indices,
        "it has LoRA on the embeddings": any("lora_embedding_" in name for name in tensors),
        f"its rank {settings.r} is above {MAX_RANKS[-1]}": settings.r > MAX_RANKS[-1],
    }
    return [problem for problem, holds in found.items() if holds]


def _adapter_config(settings: LoraConfig, base: str, scale: float) -> dict[str, Any]:
    targets = settings.target_modules
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": settings.r,
        "lora_alpha": settings.lora_alpha if scale == 1 else settings.lora_alpha * scale,
        "lora_dropout": settings.lora_dropout,
        "use_rslora": settings.use_rslora,
        "target_modules": targets if isinstance(targets, str) else sorted(targets or ()),
        "modules_to_save": None,
        "bias": "none",
    }
