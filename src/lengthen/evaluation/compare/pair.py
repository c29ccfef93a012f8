"""A run and its base: what each is, and both from one set of weights where they share it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from peft import PeftModel
from transformers import PreTrainedConfig

from lengthen.adapters.base import base_shape
from lengthen.adapters.folder import adapter_config
from lengthen.adapters.load import load
from lengthen.context import base_context, extend
from lengthen.errors import ModelError
from lengthen.models.devices import default_device, pick_dtype
from lengthen.models.load import load_base, load_config, load_tokenizer
from lengthen.models.resolve import ModelSource, resolve_base, resolve_model
from lengthen.models.rotary import BasePositions, only_rotation_differs
from lengthen.run_folder import RunFolder, read_base_record

__all__ = ["Pair", "Sides", "find_pair"]

_SAMPLE_TEXT = "Numbers 12345 and words, in English: a test.\n\tdef f(x): return x\n"


class Sides(NamedTuple):
    """Functions that give a context manager for a model each; one model is in memory at a time.

    Attributes:
        base: as it is.
        scaled: the base with the run's positions, which is what a run is before its first step.
        run: what was trained.
    """

    base: Callable[[], AbstractContextManager[Any]]
    scaled: Callable[[], AbstractContextManager[Any]]
    run: Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Pair:
    """Two models to be compared.

    Attributes:
        name: MODEL, the run.
        id: what results call the run.
        base: what the base is loaded by.
        base_id: what results call it.
        tokenizer: of both.
        config: the run's.
        base_config: the base's.
        options: of `lengthen.load` for the run.
        is_one: both have the same weights but for an adapter that can be turned off.
    """

    name: str
    id: str
    base: str
    base_id: str
    tokenizer: Any
    config: PreTrainedConfig
    base_config: PreTrainedConfig
    options: dict[str, Any]
    is_one: bool

    @property
    def context(self) -> int:
        """Tokens that the run takes."""
        return base_context(self.config)

    @property
    def base_context(self) -> int:
        """Tokens that the base takes."""
        return base_context(self.base_config)

    @contextmanager
    def models(self) -> Iterator[Sides]:
        """Yield what opens the base, the base with scaled positions, and the run.

        Where all have the same weights they are loaded once, and the base is the run with its adapter off and the
        base's rotation of positions. Then the dtype is one for all as well.
        """
        options = {key: self.options.get(key) for key in ("dtype", "quantize", "base_context")}
        if not self.is_one:
            yield Sides(lambda: _loaded(self.base, options), self._scaled, lambda: _loaded(self.name, self.options))
            return
        model, _ = load(self.name, **self.options)
        yield Sides(
            lambda: _as_base(model, self.base_config), lambda: _without_adapter(model), lambda: nullcontext(model)
        )

    @contextmanager
    def _scaled(self) -> Iterator[Any]:
        device, is_nf4 = default_device(), self.options.get("quantize") == "nf4"
        dtype = pick_dtype(self.options.get("dtype"), device, is_nf4)
        yield load_base(resolve_model(self.base), self.config, dtype, device=device, nf4=is_nf4).eval()


def find_pair(name: str, base: str | None = None, **options: Any) -> Pair:
    """Find a run's base and check that the two belong together, without loading weights.

    Args:
        name: a run folder; an exported or other model folder with `base`; or any model, with a method and a target
            that scale its positions untrained, or with an adapter.
        base: default what the run was made over.
        options: of `lengthen.load`.

    Raises:
        ModelError: there is no base to be found, or it is not this run's: other weights than those it was trained
            over, another shape, or another tokenizer.
    """
    source, run = resolve_model(name), RunFolder(Path(name))
    adapter = options.get("adapter") or (run.adapter if source.run is not None else None)
    record = read_base_record(Path(adapter)) if adapter is not None else run.base_record()
    own = _made_over(name, run, record, adapter, options)
    config = _config_of(source, adapter, options)
    base = base or own
    if base is None:
        raise ModelError(
            f"{name} is a model by itself, so nothing says what its base was; name it with base, or give a run folder"
        )
    found = resolve_base(base, "give as base the model that it was made over")
    base_config = load_config(found, options.get("base_context"))
    tokenizer = load_tokenizer(name)
    _check_together(name, config, tokenizer, base, base_config)
    is_own = own is not None and resolve_model(own) == found
    if record is not None and own is not None and not is_own and found.id != record["id"]:
        raise ModelError(f"{name} was made over {record['id']}, not over {base}; leave base out")
    return Pair(
        name=name,
        id=source.id,
        base=base,
        base_id=found.id,
        tokenizer=tokenizer,
        config=config,
        base_config=base_config,
        options=options,
        is_one=is_own and not run.is_full_finetune and only_rotation_differs(config, base_config),
    )


def _made_over(
    name: str, run: RunFolder, record: dict[str, Any] | None, adapter: str | Path | None, options: dict[str, Any]
) -> str | None:
    """The base that a model's files name; a base with an adapter, or with scaled positions, is its own."""
    if record is not None and run.is_finished:
        return record["model"]
    return name if adapter is not None or options.get("method") else None


def _config_of(source: ModelSource, adapter: str | Path | None, options: dict[str, Any]) -> PreTrainedConfig:
    """The config of the model as it is compared: an adapter's own, with positions scaled as asked."""
    brought = adapter_config(Path(adapter)) if adapter is not None else None
    config = brought or load_config(source, options.get("base_context"))
    return extend(config, options["target"], options["method"]) if options.get("method") else config


def _check_together(
    name: str, config: PreTrainedConfig, tokenizer: Any, base: str, base_config: PreTrainedConfig
) -> None:
    theirs, own = base_shape(base_config), base_shape(config)
    if own != theirs:
        raise ModelError(
            f"{base} can't be the base of {name}: it is a {' of '.join(map(str, theirs))} and the run a "
            f"{' of '.join(map(str, own))} (kind, hidden size, layers)"
        )
    if tokenizer(_SAMPLE_TEXT)["input_ids"] != load_tokenizer(base)(_SAMPLE_TEXT)["input_ids"]:
        raise ModelError(f"{base} can't be the base of {name}: their tokenizers make other tokens of the same text")


@contextmanager
def _loaded(name: str, options: dict[str, Any]) -> Iterator[Any]:
    model, _ = load(name, **options)
    yield model


@contextmanager
def _as_base(model: Any, base_config: PreTrainedConfig) -> Iterator[Any]:
    """The model as it was before: its adapter off, and positions rotated by the base's config."""
    with BasePositions(model, base_config).used(), _without_adapter(model):
        yield model


@contextmanager
def _without_adapter(model: Any) -> Iterator[Any]:
    with model.disable_adapter() if isinstance(model, PeftModel) else nullcontext():
        yield model
