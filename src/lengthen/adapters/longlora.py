"""Import adapters in the formats that LongLoRA and LongQLoRA published: their folders become run folders.

Both write an ordinary PEFT folder. Embeddings and norms that were trained are in a second file beside it,
`trainable_params.bin`, that their scripts load into the base with `strict=False`, so that a name that fits nowhere is
dropped without a word. Here all of it becomes one PEFT adapter, and every tensor must have its place.

Source of the formats: `get_trainable_weights.py`, `save_callback.py` and `merge_lora_weights_and_save_hf_model.py` of
LongLoRA (arXiv 2309.12307), `script/merge_lora.py` of LongQLoRA (arXiv 2311.04879).
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import PreTrainedModel

from lengthen.adapters.build import TrainableCount, count_trainable, has_tied_embeddings, quiet_peft_model
from lengthen.adapters.export import check_is_new
from lengthen.adapters.longlora_files import read_settings, read_trained
from lengthen.adapters.save import save_adapter
from lengthen.adapters.targets import shortest_suffixes
from lengthen.adapters.tokenizer import has_tokenizer, tokenizer_beside
from lengthen.adapters.weights import PREFIX, end_names, plain_name
from lengthen.context import base_context, extend, scaled_layers
from lengthen.context.layers import written_scaling
from lengthen.errors import ModelError, one_line
from lengthen.files import atomic_folder, read_object, write_text
from lengthen.models.fingerprint import weight_hashes
from lengthen.models.load import load_base, load_config, quiet_transformers
from lengthen.models.resolve import ModelSource, resolve_base, resolve_model, resolved_name
from lengthen.recipe import Recipe, parse_recipe
from lengthen.run_folder import RunFolder
from lengthen.vocabulary import embedding_rows

__all__ = ["Imported", "import_published"]

_RECIPE_HEAD = """# Imported by lengthen from an adapter that was trained elsewhere.
# model, context and adapter are that adapter's. Its data and training are not known: those keys stand at defaults.
"""


@dataclass(frozen=True)
class Imported:
    """The run that a published folder became.

    Attributes:
        run: the run folder.
        base: id, model, hashes and context (tokens) of the base.
        trainable: what was trained, counted.
        dropped_rows: rows of added tokens, such as LongLoRA's [PAD], that were left out of the embeddings.
    """

    run: Path
    base: dict[str, Any]
    trainable: TrainableCount
    dropped_rows: int


def import_published(folder: Path, out: Path, context: int, base: str | None = None) -> Imported:
    """Turn a LongLoRA or LongQLoRA adapter folder into a run folder.

    Positions are scaled as both do: linear interpolation by ceil(context / context of the base).

    LongLoRA adds a [PAD] token to the base before it trains. Its row is left out, so that the adapter fits the base as
    it is published; logits of all other tokens stay what they are. Other tokens that were added, or that one where the
    folder has a tokenizer that knows it, keep their rows: the base is resized when the run is loaded or exported.

    Args:
        folder: adapter_config.json, adapter_model.bin (or .safetensors), and trainable_params.bin where there is one.
        out: becomes the run folder; new or empty.
        context: that the adapter was trained for, tokens. The folders don't say it.
        base: hub id, model folder, .gguf file or alias; default the name in adapter_config.json.

    Raises:
        ModelError: a file is missing, damaged or holds more than tensors; the base is not found; a tensor has no place
            in the base, another shape, or is missing.
        ContextError: the base can't be extended to `context` so.
        OutputError: `out` has content or can't be written.
    """
    check_is_new(out)
    settings = read_settings(folder)
    tensors = read_trained(folder)
    name = base or _named_base(settings, folder)
    settings.base_model_name_or_path = None  # peft warns where it is another than the base at hand
    source = resolve_base(name, f"give the base that {folder} is for")
    base_config = load_config(source)
    config = extend(base_config, context, "linear")
    _check_factor(folder, config)

    model = load_base(source, config, torch.bfloat16, device=torch.device("cpu"))
    about_base = {
        "id": source.id,
        "model": resolved_name(name),
        **weight_hashes(model),
        "quantize": None,
        "context": base_context(base_config),
    }
    tokenizer = tokenizer_beside(name, folder)
    # Without a tokenizer that knows it, the one added token is LongLoRA's [PAD].
    dropped = 0 if has_tokenizer(folder) else _drop_added_rows(tensors, model)
    _add_rows(tensors, model)
    peft_model = _fill(model, settings, tensors, folder, source)
    trainable = count_trainable(peft_model)
    recipe = _recipe(settings, trainable, resolved_name(name), context, out)
    tokenizer.model_max_length = context
    with atomic_folder(out) as temporary, quiet_transformers():
        run = RunFolder(temporary)
        write_text(run.recipe, _RECIPE_HEAD + recipe.to_yaml())
        config.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        save_adapter(peft_model, run.adapter, config, about_base)
        facts = {"imported_from": folder.resolve().name, "dropped_rows": dropped}
        run.write_metadata({"base": about_base, "trainable": asdict(trainable), **facts})
    return Imported(out, about_base, trainable, dropped)


def _named_base(settings: LoraConfig, folder: Path) -> str:
    """The base's name in adapter_config.json; published folders often hold a path of the machine they were made on."""
    name = settings.base_model_name_or_path
    if not name:
        raise ModelError(f"{folder} does not name its base; give it as `base`")
    try:
        resolve_model(name)
    except ModelError as error:
        raise ModelError(f"{folder} names its base as {name}, which is not here; give it as `base`") from error
    return name


def _check_factor(folder: Path, config: Any) -> None:
    """Where the folder has a config of its own that scales positions, its factor must be the one `context` gives."""
    path = folder / "config.json"
    if not path.is_file():
        return
    own = written_scaling(read_object(path, "restore it", ModelError)).get("factor")
    ours = (scaled_layers(config)[0][0].rope or {})["factor"]
    if own is not None and own != ours:
        raise ModelError(
            f"{path} scales positions by {own:g}, a context of {config.max_position_embeddings} tokens by {ours:g}; "
            "give the context that the adapter was trained for"
        )


def _drop_added_rows(tensors: dict[str, torch.Tensor], model: Any) -> int:
    """Cut the row of one added token off the embeddings and the head; returns how many rows were cut."""
    rows = model.get_input_embeddings().weight.shape[0]
    longer = [name for name in end_names(model) if name in tensors and tensors[name].shape[0] == rows + 1]
    for name in longer:
        tensors[name] = tensors[name][:rows]
    return 1 if longer else 0


def _add_rows(tensors: dict[str, torch.Tensor], model: Any) -> None:
    """Resize a base whose vocabulary was extended before the adapter was trained."""
    rows = max((tensors[name].shape[0] for name in end_names(model) if name in tensors), default=0)
    if rows > embedding_rows(model):
        with quiet_transformers():
            model.resize_token_embeddings(rows, mean_resizing=False)


def _fill(
    model: PreTrainedModel, settings: LoraConfig, tensors: dict[str, torch.Tensor], folder: Path, source: ModelSource
) -> PeftModel:
    """Put an adapter with places for exactly these tensors over the base, and the tensors into it, as float32."""
    settings.modules_to_save = _trained_whole(model, tensors, folder, source) or None
    settings.ensure_weight_tying = has_tied_embeddings(model) and settings.modules_to_save is not None
    try:
        peft_model = quiet_peft_model(model, settings)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"the adapter {folder} does not fit {source.id}: {one_line(error)}") from error
    for parameter in peft_model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    places = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
    _check_places({plain_name(key): value.shape for key, value in places.items()}, tensors, folder, source)
    set_peft_model_state_dict(peft_model, {PREFIX + name: tensor.float() for name, tensor in tensors.items()})
    return peft_model


def _trained_whole(
    model: PreTrainedModel, tensors: dict[str, torch.Tensor], folder: Path, source: ModelSource
) -> list[str]:
    """Names of the modules that were trained themselves; a tied head is one with the embeddings."""
    names = [name for name, _ in model.named_modules()]
    saved = sorted({name.rpartition(".")[0] for name in tensors if ".lora_" not in name})
    unknown = [name for name in saved if name not in names]
    if unknown:
        raise ModelError(f"{source.id} has no {unknown[0]}, which {folder} holds weights for; is it the right base?")
    if has_tied_embeddings(model):
        _tie_head(tensors, model, folder)
        saved = [name for name in saved if f"{name}.weight" != end_names(model)[1]]
    return shortest_suffixes(saved, names)


def _tie_head(tensors: dict[str, torch.Tensor], model: PreTrainedModel, folder: Path) -> None:
    """Where the base's head is its embeddings, what was trained must be one tensor too; peft writes it twice."""
    embeddings, head = end_names(model)
    if head in tensors and (embeddings not in tensors or not torch.equal(tensors[head], tensors[embeddings])):
        raise ModelError(f"{folder} has a head apart from the embeddings, and its base has one tensor for both")
    if embeddings in tensors:
        tensors[head] = tensors[embeddings]


def _check_places(
    places: dict[str, torch.Size], tensors: dict[str, torch.Tensor], folder: Path, source: ModelSource
) -> None:
    unknown, missing = sorted(set(tensors) - set(places)), sorted(set(places) - set(tensors))
    other = sorted(name for name in set(tensors) & set(places) if tensors[name].shape != places[name])
    if unknown:
        problem = f"{len(unknown)} tensors have no place in it, the first {unknown[0]}"
    elif missing:
        problem = f"{len(missing)} tensors are missing, the first {missing[0]}"
    elif other:
        first = other[0]
        problem = f"{first} is {tuple(tensors[first].shape)} and should be {tuple(places[first])}"
    else:
        return
    raise ModelError(
        f"the adapter {folder} does not fit {source.id}: {problem}; is it the right base, and the download complete?"
    )


def _recipe(settings: LoraConfig, trainable: TrainableCount, base: str, context: int, out: Path) -> Recipe:
    targets = settings.target_modules
    content = {
        "model": base,
        "out": str(out),
        "context": {"target": context, "method": "linear"},
        "adapter": {
            "variant": "dora" if settings.use_dora else "rslora" if settings.use_rslora else "lora",
            "rank": settings.r,
            "alpha": settings.lora_alpha,
            "dropout": settings.lora_dropout,
            "targets": targets if isinstance(targets, str) else sorted(targets or ()),
            "embeddings": trainable.embeddings > 0,
            "norms": trainable.norms > 0,
        },
        "training": {"steps": 1000},  # a recipe needs a length; this is the papers'
    }
    return parse_recipe(content, str(out))
