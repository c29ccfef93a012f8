"""An adapter's folder as what the engine adds to its base, and the reasons why it can't be added.

Everything in the folder is either used or the adapter is refused: a batch of different adapters has no place for what
changes more than LoRA matrices, norms, embeddings and head.
"""

import dataclasses
import math
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from peft.utils.other import get_pattern_key
from torch import nn

from lengthen.adapters.base import check_base
from lengthen.adapters.folder import adapter_config
from lengthen.adapters.scale import between
from lengthen.adapters.weights import PREFIX, read_tensors, weights_file
from lengthen.context import positions
from lengthen.errors import ModelError, one_line
from lengthen.run_folder import RunFolder, read_base_record
from lengthen.serving.engine.base_model import LoadedBase
from lengthen.serving.engine.lora_batch import LoraMatrices

__all__ = ["AdapterWeights", "NormWeights", "WeightTable", "adapter_folder", "read_adapter"]

_KEY = re.compile(r"(.+?)\.(lora_A\.weight|lora_B\.weight|weight|bias)")

# Fields of LoraConfig that are used here, are visible in the tensors, or matter in training only. Any other that is
# not at its default changes what the adapter computes in a way that the engine lacks.
_UNDERSTOOD = {
    "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision", "task_type",
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "ensure_weight_tying",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save",
    "lora_dropout", "init_lora_weights", "eva_config", "qalora_group_size", "megatron_core", "runtime_config",
}  # fmt: skip
# Other initializations take something out of the base's weights, which would then be another base.
_KEEPS_BASE = (True, False, "gaussian", "orthogonal", "eva")

# Beyond this share of changed rows, a whole table costs less than looking rows up.
_FEW = 0.25


@dataclass(frozen=True)
class NormWeights:
    """A norm's own weight (H,) and bias (H,), the latter None where it has none."""

    weight: torch.Tensor
    bias: torch.Tensor | None


@dataclass(frozen=True)
class WeightTable:
    """An adapter's own rows of the embeddings or of the head.

    Attributes:
        values: (R, H).
        tokens: (R,) which tokens' rows these are, ascending; None: all tokens', in order.
    """

    values: torch.Tensor
    tokens: torch.Tensor | None

    @property
    def nbytes(self) -> int:
        """Memory of it."""
        return self.values.nbytes + (0 if self.tokens is None else self.tokens.nbytes)


@dataclass(frozen=True)
class AdapterWeights:
    """The weights of an adapter, in float32 or as stored, on the CPU but for the tables.

    Attributes:
        linear: LoRA matrices by the name of the linear layer.
        norms: by the name of the norm.
        embeddings: its own embeddings; None for the base's.
        head: its own head; None for the base's. In a tied base, adapters with embeddings share the one table.
    """

    linear: dict[str, LoraMatrices] = field(default_factory=dict)
    norms: dict[str, NormWeights] = field(default_factory=dict)
    embeddings: WeightTable | None = None
    head: WeightTable | None = None

    @property
    def rank(self) -> int:
        """The largest rank, at least 1."""
        return max((pair.a.shape[0] for pair in self.linear.values()), default=1)

    @property
    def table_bytes(self) -> int:
        """Memory of its embeddings and head."""
        tables = {id(table): table for table in (self.embeddings, self.head) if table is not None}
        return sum(table.nbytes for table in tables.values())


def adapter_folder(path: Path) -> Path:
    """The PEFT folder that a path names: itself, or a run folder's.

    Raises:
        ModelError: there is none.
    """
    for folder in (path, RunFolder(path).adapter):
        if (folder / "adapter_config.json").is_file():
            return folder
    raise ModelError(f"{path} has no adapter_config.json, so it holds no adapter; give a PEFT or run folder")


def read_adapter(folder: Path, base: LoadedBase, scale: float = 1.0) -> AdapterWeights:
    """Read a PEFT folder.

    Args:
        folder: with `adapter_config.json` and weights.
        base: what it is to be served over.
        scale: the share of it that is applied, 0 to 1.

    Raises:
        ModelError: it is damaged, was made for another base or other positions, or changes what a batch of different
            adapters can't have of its own.
    """
    config = _config(folder)
    _check_positions(folder, base)
    record = read_base_record(folder)
    if record is not None:
        check_base(base.hashes, folder, record, base.source)
    modules: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in read_tensors(weights_file(folder)).items():
        match = _KEY.fullmatch(key.removeprefix(PREFIX))
        if match is None:
            raise _refused(folder, f"the tensor {key} is no LoRA matrix, norm, embedding or head")
        if not torch.isfinite(tensor).all():
            raise _refused(folder, f"{key} holds values that are infinite or NaN")
        modules.setdefault(match[1], {})[match[2]] = tensor
    return _sorted(folder, config, modules, base, scale)


def _refused(folder: Path, reason: str) -> ModelError:
    return ModelError(f"the adapter {folder} can't be served beside others: {reason}; merge it by `lengthen export`")


def _config(folder: Path) -> LoraConfig:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # unknown keys of newer versions, which are refused below
            config = PeftConfig.from_pretrained(str(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"the adapter_config.json of {folder} can't be read: {one_line(error)}") from error
    if not isinstance(config, LoraConfig):
        raise _refused(folder, f"it is of the kind {config.peft_type}, and only LoRA can be batched")
    if config.init_lora_weights not in _KEEPS_BASE:
        raise _refused(folder, f"its initialization ({config.init_lora_weights}) changed the base's weights")
    for each in dataclasses.fields(config):
        is_default = getattr(config, each.name) in (each.default, None, {}, [])
        if each.name not in _UNDERSTOOD and not is_default:
            raise _refused(folder, f"it uses {each.name}")
    return config


def _check_positions(folder: Path, base: LoadedBase) -> None:
    """Adapters of another context extension would be wrong here: its positions mean other angles to them."""
    config = adapter_config(folder)
    if config is not None:
        theirs, ours = positions(config), positions(base.model.config)
        if theirs != ours:
            raise ModelError(
                f"the adapter {folder} was trained with other positions than this base is served with "
                f"({_shown(theirs)} against {_shown(ours)}); serve a run folder with its positions"
            )
    elif base.is_scaled:
        raise ModelError(
            f"the adapter {folder} has no config.json, so it was trained with its base's own positions, but this base "
            f"is served with {_shown(positions(base.model.config))}; serve the base itself for it"
        )


def _shown(rope: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in sorted(rope.items()))


def _sorted(
    folder: Path, config: LoraConfig, modules: dict[str, dict[str, torch.Tensor]], base: LoadedBase, scale: float
) -> AdapterWeights:
    embedding, head = base.model.get_input_embeddings(), base.model.get_output_embeddings()
    # The engine puts norms of its own around the base's, so that names are looked up in what it was.
    places = {name: module for name, module in base.model.named_modules() if module in (embedding, head)}
    linear, norms, tables = {}, {}, {}
    for name, parts in modules.items():
        place = places.get(name)
        if set(parts) == {"lora_A.weight", "lora_B.weight"}:
            linear[name] = _matrices(folder, config, name, parts, base, scale)
        elif name in base.norms and "weight" in parts:
            norms[name] = _norm(folder, name, parts, base.norms[name], scale)
        elif place is not None and set(parts) == {"weight"}:
            tables[name] = _table(folder, name, parts["weight"], place, base, scale)
        else:
            raise _refused(folder, f"it changes {name} ({', '.join(sorted(parts))}), of which this base has only one")
    own = {places[name]: table for name, table in tables.items()}
    head_table = own.get(embedding) if base.ties and config.ensure_weight_tying and embedding in own else own.get(head)
    return AdapterWeights(linear, norms, own.get(embedding), head_table)


def _matrices(
    folder: Path, config: LoraConfig, name: str, parts: dict[str, torch.Tensor], base: LoadedBase, scale: float
) -> LoraMatrices:
    module = base.linear.get(name)
    if module is None:
        raise _refused(folder, f"it has LoRA on {name}, no linear layer that every token goes through")
    a, b = parts["lora_A.weight"], parts["lora_B.weight"]
    patterns = config.rank_pattern or {}, config.alpha_pattern or {}
    rank = patterns[0].get(get_pattern_key(list(patterns[0]), name), config.r)
    alpha = patterns[1].get(get_pattern_key(list(patterns[1]), name), config.lora_alpha)
    if tuple(a.shape) != (rank, module.in_features) or tuple(b.shape) != (module.out_features, rank):
        raise ModelError(
            f"the adapter {folder} does not fit {base.source.id}: its matrices of {name} are {tuple(a.shape)} and "
            f"{tuple(b.shape)}, and the layer takes {module.in_features} and gives {module.out_features} at rank {rank}"
        )
    return LoraMatrices(a, b, scale * alpha / (math.sqrt(rank) if config.use_rslora else rank))


def _norm(folder: Path, name: str, parts: dict[str, torch.Tensor], norm: nn.Module, scale: float) -> NormWeights:
    own = dict(norm.named_parameters(recurse=False))
    if {key: tensor.shape for key, tensor in parts.items()} != {key: each.shape for key, each in own.items()}:
        raise ModelError(f"the adapter {folder} does not fit this base: {name} has other weights there")
    if scale != 1:
        parts = {key: between(own[key].cpu(), tensor, scale) for key, tensor in parts.items()}
    return NormWeights(parts["weight"], parts.get("bias"))


def _table(
    folder: Path, name: str, weight: torch.Tensor, place: nn.Module, base: LoadedBase, scale: float
) -> WeightTable | None:
    whole: torch.Tensor = place.weight.detach()  # type: ignore[operator]
    if weight.shape != whole.shape:
        raise ModelError(
            f"the adapter {folder} does not fit {base.source.id}: its {name} has {tuple(weight.shape)} weights, the "
            f"base {tuple(whole.shape)} (a vocabulary that was resized can't be shared; merge it by `lengthen export`)"
        )
    if isinstance(place, nn.Embedding) and base.embedding_scale is None:
        raise _refused(folder, f"it has its own {name}, and this base does more than look embeddings up")
    if scale != 1:
        weight = between(whole, weight, scale)
    weight = weight.to(whole.device, whole.dtype)
    tokens = (weight != whole).any(dim=1).nonzero().flatten()
    if len(tokens) == 0:
        return None
    return WeightTable(weight, None) if len(tokens) > _FEW * len(whole) else WeightTable(weight[tokens], tokens)
