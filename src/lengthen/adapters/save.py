"""Write what was trained: one standard PEFT folder, float32, that loads without lengthen; or a full model."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedConfig

from lengthen.adapters.finite import check_weights
from lengthen.context import base_context, positions, state_lengths
from lengthen.files import atomic_folder, write_text
from lengthen.models.load import quiet_transformers
from lengthen.quantization import compute_dtype, is_quantized
from lengthen.run_folder import write_base_record

__all__ = ["save_adapter", "save_full"]

_README = """---
library_name: peft
base_model: {id}
tags: [lengthen, long-context]
---

# Adapter for {context} tokens

Made by lengthen over `{id}` (context {base_context} before). Trained tensors are stored in float32. It is an ordinary
PEFT adapter; with `RUN` the run folder and `BASE` the base model (`{model}`), these lines load it without
lengthen{over}:

```python
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM
{imports}
base = AutoModelForCausalLM.from_pretrained(BASE, config=AutoConfig.from_pretrained(RUN){more})
model = PeftModel.from_pretrained(base, RUN + "/adapter")
```

The config matters: it holds the position scaling ({scaling}).
"""


_NF4 = """import torch
from transformers import BitsAndBytesConfig

nf4 = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype={}
)
"""
_NF4_OF_GGUF = """.
It was trained over the base in 4 bits, which transformers can't make of a GGUF file: this is the 16-bit base, and
`lengthen export RUN OUT --merge-into dequantized` writes exactly what was trained"""


def save_adapter(model: PeftModel, folder: Path, config: PreTrainedConfig, base: dict[str, Any]) -> None:
    """Write adapter weights, extended config, the base's name and weight hash, and a README, whole or not at all.

    Args:
        model: the trained adapter.
        folder: becomes the PEFT folder.
        config: the extended config.
        base: id, model, hashes, context and quantize of the base.

    Raises:
        OutputError: the folder can't be written.
    """
    check_weights((name, tensor) for name, tensor in model.named_parameters() if tensor.requires_grad)
    gguf = Path(base["model"]).name if base["model"].endswith(".gguf") else None
    text = config.get_text_config()
    over, imports, more = "", "", ""
    nf4 = is_quantized(model)
    if gguf:
        over = _NF4_OF_GGUF if nf4 else ""
        imports = "from transformers import GgufConfig\n"
        more = f', gguf_file="{gguf}", quantization_config=GgufConfig(dequantize=True)'
    elif nf4:
        over = ",\nover the base in 4 bits, as it was trained"
        imports, more = _NF4.format(compute_dtype(model)), ", quantization_config=nf4"
    readme = _README.format(
        **{key: base[key] for key in ("id", "model")},
        base_context=base["context"],
        context=text.max_position_embeddings,
        over=over,
        imports=imports,
        more=more,
        scaling=", ".join(f"{key} {value}" for key, value in positions(config).items()) or "none",
    )
    with atomic_folder(folder) as temporary:
        for peft_config in model.peft_config.values():
            peft_config.base_model_name_or_path = base["model"]
            for name, value in vars(peft_config).items():
                if isinstance(value, set):  # whose order differs from process to process
                    setattr(peft_config, name, sorted(value))
        # Trained embeddings are among the modules to save; peft would look the base up to decide whether to add them.
        model.save_pretrained(str(temporary), save_embedding_layers=False)
        config.save_pretrained(temporary)
        write_base_record(temporary, base)
        write_text(temporary / "README.md", readme)


def save_full(model: Any, folder: Path, dtype: torch.dtype, tokenizer: Any) -> None:
    """Write a fully fine-tuned model as an ordinary model folder, whole or not at all.

    Args:
        model: its parameters are cast to `dtype` in place.
        folder: becomes the model folder.
        dtype: of the written weights.
        tokenizer: written beside them.

    Raises:
        OutputError: the folder can't be written.
    """
    check_weights(model.state_dict().items(), dtype)
    state_lengths(model, base_context(model.config))
    with atomic_folder(folder) as temporary, quiet_transformers():
        model.to(dtype).save_pretrained(str(temporary))
        tokenizer.save_pretrained(temporary)
