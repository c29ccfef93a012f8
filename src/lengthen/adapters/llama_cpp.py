"""A merged folder for llama.cpp and Ollama: the lines that make it a GGUF file and run it with its whole context.

A GGUF file states its positions itself, and both programs take them from there. What llama.cpp's converter would drop
without a word is refused here. Neither program takes the context from the file: llama-server begins with what `-c`
says and Ollama with its own default of a few thousand tokens, so both are told.

Source of the rules: llama.cpp's converter, `conversion/base.py: TextModel.set_gguf_parameters` (linear and yarn in any
architecture) and `conversion/llama.py: LlamaModel.generate_extra_tensors` (llama3, as divisors in a tensor), as in
llama-cpp-python 0.3.36; Ollama's Modelfile reference (`num_ctx`).
"""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from lengthen.context import base_context
from lengthen.errors import ModelError
from lengthen.files import write_text
from lengthen.models.devices import Dtype

__all__ = ["GgufSteps", "check_positions", "gguf_steps"]

_OUT_TYPES = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}
# Architectures whose conversion is derived from Llama's.
_LLAMA3_KEPT = {"llama", "mistral", "mixtral", "smollm3", "arcee", "granite"}
_LONGROPE_KEPT = {"phi3", "minicpm", "minicpm3"}
# Settings of yarn in a config that llama.cpp computes otherwise.
_YARN_LOST = ("attention_factor", "mscale", "mscale_all_dim")


@dataclass(frozen=True)
class GgufSteps:
    """The steps after the export.

    Attributes:
        positions: what the GGUF file will state about positions.
        commands: to be typed, in order.
        modelfile: Ollama's, as it was written beside the weights; None for llama.cpp.
    """

    positions: str
    commands: list[str]
    modelfile: str | None


def check_positions(config: PreTrainedConfig) -> str:
    """The positions that a GGUF file will state for this config.

    Args:
        config: of the model that is exported.

    Returns:
        As text for people: kind, factor and original maximum.

    Raises:
        ModelError: llama.cpp would compute others.
    """
    parameters: dict[str, Any] = config.get_text_config().rope_parameters or {}
    parameters = parameters.get("full_attention", parameters)
    problem = _lost_positions(parameters, config.model_type)
    if problem is not None:
        raise ModelError(f"llama.cpp {problem}, so the model would be another one; serve it with vLLM or transformers")
    kind = parameters.get("rope_type", "default")
    if kind == "default":
        return f"RoPE base {parameters['rope_theta']:g}"
    original = parameters.get("original_max_position_embeddings")
    factor = f" x {parameters['factor']:g}" if "factor" in parameters else ""
    return f"RoPE {kind}{factor}" + (f" from {original:,} tokens" if original else "")


def _lost_positions(parameters: dict[str, Any], architecture: str) -> str | None:
    """The part of the positions that llama.cpp would compute otherwise; None where there is none."""
    kind = parameters.get("rope_type", "default")
    lost = [key for key in _YARN_LOST if kind == "yarn" and parameters.get(key) is not None]
    if lost or (kind == "yarn" and parameters.get("truncate") is False):
        return f"computes yarn without {', '.join(lost) or 'truncate=false'}"
    if kind == "llama3" and architecture not in _LLAMA3_KEPT:
        return f"drops llama3's scaling of positions for {architecture}"
    if kind == "longrope" and architecture not in _LONGROPE_KEPT:
        return f"drops longrope's factors for {architecture}"
    if kind not in ("default", "linear", "yarn", "llama3", "longrope"):
        return f"does not know the scaling {kind}"
    return None


def gguf_steps(folder: Path, target: str, dtype: Dtype, config: PreTrainedConfig) -> GgufSteps:
    """The lines that turn an exported folder into a running model; for Ollama the Modelfile is written into it.

    Args:
        folder: that `export` wrote.
        target: "llama.cpp" or "ollama".
        dtype: of its weights.
        config: of the exported model.

    Raises:
        ModelError: its positions would be lost.
        OutputError: the Modelfile can't be written.
    """
    positions, context, name = check_positions(config), str(base_context(config)), folder.resolve().name
    gguf, modelfile = folder / f"{name}.gguf", folder / "Modelfile"
    out_type = _OUT_TYPES[str(dtype).removeprefix("torch.")]
    lines = [["python", "convert_hf_to_gguf.py", str(folder), "--outtype", out_type, "--outfile", str(gguf)]]
    content = None
    if target == "llama.cpp":
        lines.append(["llama-server", "-m", str(gguf), "-c", context])
    else:
        content = f"FROM ./{gguf.name}\nPARAMETER num_ctx {context}\n"
        write_text(modelfile, content)
        lines += [["ollama", "create", name, "-f", str(modelfile)], ["ollama", "run", name]]
    return GgufSteps(positions, [shlex.join(line) for line in lines], content)
