"""The sections of a recipe: every key with its type, its default and its unit."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)

from lengthen.recipe.rules import KINDS_OF_KEY, beside_problems, memory_problems, problems, source_problems

__all__ = [
    "AdapterRecipe",
    "AttentionRecipe",
    "BackendName",
    "ContextRecipe",
    "DataRecipe",
    "MemoryRecipe",
    "ParallelRecipe",
    "Recipe",
    "RestorationRecipe",
    "SourceRecipe",
    "TrainingRecipe",
]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str | dict) else value


def _dtype_name(value: Any) -> Any:
    # torch's own objects are taken too, without importing torch for that.
    return str(value).removeprefix("torch.") if type(value).__module__ == "torch" else value


BackendName = Literal["auto", "sdpa", "torch_varlen", "flash_attention_2", "flash_attention_3", "flex_attention"]
Paths = Annotated[list[str], BeforeValidator(_as_list)]
Names = Annotated[list[str], BeforeValidator(_as_list)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


_Any = TypeVar("_Any", bound=_Section)


def _checked(section: _Any, found: Iterable[str]) -> _Any:
    """The section, unless there are problems: then all of them are one error."""
    if message := "; ".join(dict.fromkeys(found)):
        raise ValueError(message)
    return section


class ContextRecipe(_Section):
    """How far, and by which position scaling."""

    target: int = Field(gt=1, description="context after the run, tokens; the base's own only with method none")
    base: int | None = Field(None, gt=1, description="the base's own context, tokens, where its files leave that open")
    method: Literal["linear", "ntk", "yarn", "llama3", "theta", "longrope", "none"] = Field(
        "yarn", description="position scaling; the papers have linear, which destroys retrieval"
    )
    factor: float | None = Field(None, ge=1, description="stretch over the base; default target / base context")
    theta: float | None = Field(None, description="new RoPE base, for method theta")
    short_factor: list[float] | None = Field(None, description="per frequency, for method longrope")
    long_factor: list[float] | None = Field(None, description="per frequency, for method longrope")

    @property
    def scaling(self) -> dict[str, Any]:
        """What `lengthen.context.extend` takes beside the base's config."""
        return {"context": self.target, **self.model_dump(exclude={"target", "base"})}


class AttentionRecipe(_Section):
    """Attention while training; evaluation is always full."""

    kind: Literal["s2", "full"] = Field("s2", description="shifted sparse attention, or the model's own")
    pattern: str = Field("s2", description="s2; for ablation plain, alternate, full; or a registered one")
    group_size: int | None = Field(None, ge=2, description="S2 group, tokens; default target / 4")
    sinks: int = Field(1, ge=0, description="first tokens of each document that all its groups see; the papers have 0")
    full_last: float = Field(
        0.0, ge=0, lt=1, description="share of the optimizer steps, the last ones, that are taken at full attention"
    )
    backend: BackendName = Field("auto", description="what computes the groups; auto: by device and what is installed")


class AdapterRecipe(_Section):
    """What is trained."""

    kind: str = Field("lora", description="lora, full, or a PEFT method by its name")
    variant: Literal["lora", "rslora", "dora", "pissa"] = Field("lora", description="kind of LoRA")
    rank: int = Field(16, ge=1, description="LoRA r")
    alpha: float = Field(32, gt=0, description="LoRA alpha; the update is scaled by alpha / r")
    dropout: float = Field(0.0, ge=0, lt=1, description="on the input of LoRA")
    targets: Literal["attention", "all"] | Names = Field(
        "attention", description="linear layers: attention, all (but the head), or module names"
    )
    embeddings: bool = Field(
        False,
        description="train the input embeddings (and the head where tied), as the papers do; frozen they keep what "
        "tells digits and rare words apart",
    )
    norms: bool | Literal["with_qk"] = Field(True, description="train block and final norms; with_qk: q/k norms too")
    options: dict[str, Any] = Field({}, description="the PEFT method's own options, for its config")

    @property
    def may_drop(self) -> bool:
        """Whether what is added may have dropout; other PEFT methods have options of their own for it."""
        return self.dropout > 0 or self.kind not in ("lora", "full")


Weight = Annotated[float, Field(ge=0)]


class SourceRecipe(_Section):
    """One source of a mixture. What is not given is the data section's."""

    kind: Literal["long", "short", "instruct", "retrieval", "code"] = Field(
        "long",
        description="long: documents; short: packed windows of documents, against forgetting; instruct: questions with "
        "answers; retrieval: documents with facts scattered in them and questions; code: repositories, each a document",
    )
    path: Paths = Field([], description="as data.train; for code, roots of repositories (FOLDER/*: each one in it)")
    weight: float | None = Field(None, ge=0, description="share of the run's tokens, of the sum of all; default equal")
    length: Annotated[int, Field(ge=2)] | tuple[int, int] | None = Field(
        None,
        description="short: tokens of a window, default 1024; retrieval: tokens of a sequence, or [shortest, longest], "
        "drawn evenly in the logarithm; default the run's",
    )
    min_tokens: int | None = Field(None, ge=1, description="shorter documents are left out")
    max_tokens: int | None = Field(None, ge=2, description="longer documents are left out")
    max_documents: int | None = Field(None, ge=1, description="documents taken of each path (code: of all), the first")
    length_weights: dict[Annotated[int, Field(ge=1)], Weight] = Field(
        {}, description="times a pass sees documents from so many tokens on, as in {1: 0.5, 8192: 3}; default once"
    )
    skip_wise: bool | None = Field(None, description="positions that jump, for long, code and retrieval")
    haystack: Paths = Field(
        [], description="for retrieval: documents around the facts; default those of the sources long and code"
    )
    tasks: dict[str, Weight] = Field({}, description="for retrieval: how often each task comes; default all")
    facts: int = Field(40, ge=1, description="for retrieval: facts of a task, at most")
    answer_weight: float = Field(3.0, gt=0, description="for retrieval: loss weight of the answers' tokens")
    text_weight: float = Field(0.3, ge=0, description="for retrieval: loss weight of the text around")
    bare: float = Field(0.15, ge=0, le=1, description="for retrieval: share of sequences without any text around")
    early: float = Field(0.2, ge=0, le=1, description="for retrieval: share of tasks with all facts in the first tenth")
    middle: float = Field(0.25, ge=0, le=1, description="for retrieval: share of sequences that ask before the end too")

    @property
    def window(self) -> int:
        """Tokens of a short window, at most."""
        assert not isinstance(self.length, tuple)
        return self.length or 1024

    @model_validator(mode="after")
    def _follows_the_rules(self) -> "SourceRecipe":
        return _checked(self, source_problems(self))


MAPPING = "source"  # what pydantic's errors call an entry of data.train that is no plain path
Sources = Annotated[
    list[
        Annotated[
            Annotated[str, Tag("path")] | Annotated[SourceRecipe, Tag(MAPPING)],
            Discriminator(lambda value: "path" if isinstance(value, str) else MAPPING),
        ]
    ],
    BeforeValidator(_as_list),
]


SOURCE_LISTS = (["data", "train"], ["data", "beside"])


class DataRecipe(_Section):
    """Documents and how they become sequences."""

    kind: Literal["text", "instruct"] = Field("text", description="plain long documents, or questions with answers")
    template: Literal["tokenizer", "llama2", "vicuna", "alpaca", "chatml"] = Field(
        "tokenizer", description="prompt around questions and answers; tokenizer: its own chat template"
    )
    train: Sources = Field(
        [],
        description="files, folders, token files, python-stdlib:train, datasets as hf:OWNER/NAME:SPLIT; or a mixture "
        "of sources, as in {path: books/, weight: 0.6} and {kind: retrieval, weight: 0.4}",
    )
    beside: Annotated[list[SourceRecipe], BeforeValidator(_as_list)] = Field(
        [],
        description="sources beside those of train, as in {kind: retrieval, weight: 0.8}; their weights are shares of "
        "the whole, and train has the rest",
    )
    weights: list[Annotated[float, Field(gt=0)]] | None = Field(
        None, description="for kind instruct: how often a pass sees each source of train; default once"
    )
    validation: Paths = Field([], description="the same, measured after the run at the target context")
    held_out: Names = Field(
        [], description="documents of train by name, kept from training; `lengthen eval compare` measures on them"
    )
    max_documents: int | None = Field(
        None, ge=1, description="documents taken from each file, folder or dataset, the first ones; default all"
    )
    sequence_length: int | None = Field(None, ge=2, description="tokens per sequence; default the target context")
    min_tokens: int = Field(1, ge=1, description="shorter documents are left out")
    max_tokens: int | None = Field(None, ge=2, description="longer documents are left out")
    packing: Literal["documents", "concatenate", "none"] = Field(
        "documents",
        description="keep documents (or examples) apart, or one stream as in the papers; none, for kind instruct: one "
        "example per sequence",
    )
    skip_wise: bool = Field(
        False,
        description="PoSE: short sequences whose positions jump once, so that they cover the target context; needs "
        "sequence_length and attention.kind=full; in a mixture for the sources long, code and retrieval",
    )

    @model_validator(mode="after")
    def _follows_the_rules(self) -> "DataRecipe":
        return _checked(self, beside_problems(self))

    @property
    def is_mixture(self) -> bool:
        """Whether sources are mixed by weight."""
        return bool(self.beside) or self._names_sources

    @property
    def _names_sources(self) -> bool:
        return any(not isinstance(source, str) for source in self.train)

    @property
    def sources_of_train(self) -> list[SourceRecipe]:
        """Each of `train` as a source: a plain path is one of kind long; plain paths alone are one, beside others."""
        if self.beside and self.train and not self._names_sources:
            return [SourceRecipe(path=list(self.train))]  # type: ignore[call-arg, arg-type]
        return [SourceRecipe(path=[each]) if isinstance(each, str) else each for each in self.train]  # type: ignore[call-arg]

    @property
    def sources(self) -> list[SourceRecipe]:
        """Those of `train`, which have the rest of the weights, and those beside them."""
        own = self.sources_of_train
        if not self.beside:
            return own
        weights = [1.0 if source.weight is None else source.weight for source in own]
        rest = 1 - sum(source.weight or 0 for source in self.beside)
        shares = [rest * weight / (sum(weights) or 1) for weight in weights]
        return [each.model_copy(update={"weight": w}) for each, w in zip(own, shares, strict=True)] + self.beside

    def place_of(self, number: int) -> str:
        """Where in the recipe one of `sources` stands, for messages."""
        own = len(self.sources_of_train)
        if number >= own:
            return f"data.beside[{number - own}]"
        return f"data.train[{number}]" if self._names_sources or not self.beside else "data.train"

    @property
    def paths(self) -> list[str]:
        """The paths of all sources of documents, or of all where `kind` is instruct."""
        if self.is_mixture:
            return [path for source in self.sources if source.kind in ("long", "short") for path in source.path]
        return [source for source in self.train if isinstance(source, str)]

    def is_skip_wise(self, source: SourceRecipe) -> bool:
        """Whether a source's positions jump."""
        if source.kind not in KINDS_OF_KEY["skip_wise"]:
            return False
        return self.skip_wise if source.skip_wise is None else source.skip_wise


class RestorationRecipe(_Section):
    """Short windows on which a run is held to its own base, by KL(base || run)."""

    share: float = Field(0.0, ge=0, lt=1, description="of all forward passes, those on windows; 0: no restoration")
    length: int = Field(1024, ge=2, description="tokens of a window, within the base's context")
    weight: float = Field(1.0, gt=0, description="of the divergence, nats per token, beside the loss")
    data: Paths = Field(
        [], description="as data.train; default its sources of kind short, else the run's own documents"
    )


class TrainingRecipe(_Section):
    """The optimization."""

    steps: int | None = Field(None, ge=1, description="optimizer steps")
    epochs: float | None = Field(None, gt=0, description="passes over the data, where steps is not given")
    batch_size: int = Field(1, ge=1, description="sequences per device and forward pass")
    accumulation: int = Field(1, ge=1, description="forward passes per optimizer step")
    learning_rate: float = Field(
        1e-3,
        gt=0,
        description="peak; the default is for LoRA and tens of steps on a small base, which hardly learn at the "
        "papers' 2e-5: bases of billions of parameters and long runs take less, as 1e-4; for adapter.kind=full it is "
        "2e-5",
    )
    embedding_learning_rate: float | None = Field(
        None,
        gt=0,
        description="peak for embeddings (and a tied head), which want less, as 1e-4 beside 4e-3; default as above",
    )
    schedule: Literal["constant", "linear", "cosine"] = Field("linear", description="after the warm-up")
    warmup_steps: int = Field(20, ge=0, description="optimizer steps of linear warm-up")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient clipping")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's")
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], BeforeValidator(_dtype_name)] = Field(
        "auto", description="of the frozen base and the arithmetic; trained tensors are always float32"
    )
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit"] = Field(
        "adamw", description="torch's AdamW; or bitsandbytes': 8-bit states, pages that move to CPU memory (CUDA only)"
    )
    token_weights: Literal["none", "exact"] = Field(
        "none",
        description="exact: up to 5 times the weight for tokens behind a prefix that few documents reach",
    )
    restoration: RestorationRecipe = Field(
        RestorationRecipe(),  # type: ignore[call-arg]
        description="short windows on which the run is held to its own base",
    )
    report_to: Names = Field([], description="beside metrics.jsonl: tensorboard, wandb, trackio")
    save_every: int = Field(100, ge=1, description="optimizer steps between checkpoints")
    log_every: int = Field(1, ge=1, description="optimizer steps between lines of metrics.jsonl")


_SAVERS = ("activation_checkpointing", "mlp_tile", "offload_activations", "trim_malloc")
_PRESETS: dict[str, dict[str, Any]] = {
    "fast": dict(zip(_SAVERS, (False, 0, False, False), strict=True)),
    "balanced": dict(zip(_SAVERS, ("keep_attention", 0, False, False), strict=True)),
    "low_memory": dict(zip(_SAVERS, (True, 2048, True, True), strict=True)),
}


class MemoryRecipe(_Section):
    """Memory against time. What is not given is the preset's."""

    preset: Literal["fast", "balanced", "low_memory"] = Field("balanced", description="what the other keys default to")
    activation_checkpointing: bool | Literal["keep_attention"] = Field(
        "keep_attention",
        description="recompute each layer in the backward pass; keep_attention: all but attention's output",
    )
    sequence_chunk: int = Field(
        0,
        ge=0,
        description="S2: tokens that a whole layer computes at a time, a multiple of the group size, in place of "
        "activation checkpointing; 0: all at once",
    )
    mlp_tile: int = Field(0, ge=0, description="tokens that an MLP computes at a time; 0: all at once")
    checkpoint_every: int = Field(
        1,
        ge=1,
        description="with sequence_chunk: of so many layers one keeps its input; others' are computed again",
    )
    offload_activations: bool | Literal["disk"] = Field(
        False, description="keep what checkpointing saves in CPU memory (accelerators), or in a file of the run folder"
    )
    fused_kernels: bool = Field(
        False, description="norms and gated activations by liger-kernel's kernels (CUDA, extra liger), in every preset"
    )
    trim_malloc: bool = Field(
        False, description="give freed tensors back to the system at once, which glibc keeps below 32 MiB (CPU)"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        preset = given.get("preset", "balanced") if isinstance(given, dict) else None
        if preset not in _PRESETS:
            return given
        chunks = {"activation_checkpointing": False} if given.get("sequence_chunk") else {}
        return {**_PRESETS[preset], **chunks, **given}

    @model_validator(mode="after")
    def _follows_the_rules(self) -> "MemoryRecipe":
        return _checked(self, memory_problems(self))


class ParallelRecipe(_Section):
    """How the processes of torchrun or accelerate share the work. A name alone is that of `data`."""

    data: Literal["ddp", "fsdp2", "zero2", "zero3", "zero2_offload", "zero3_offload"] = Field(
        "ddp", description="how they share weights, gradients and optimizer; offload: optimizer on the CPU"
    )
    sequence: int = Field(1, ge=1, description="processes that share each sequence, a shard each")

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, given: Any) -> Any:
        return {"data": given} if isinstance(given, str) else given


class Recipe(_Section):
    """One run, whole. Field descriptions carry the units."""

    model: str = Field(min_length=1, description="hub id, model folder, .gguf file or alias of the base")
    out: str | None = Field(None, description="run folder; default runs/<recipe name>")
    seed: int = Field(0, ge=0, description="of data order, LoRA initialization and dropout")
    context: ContextRecipe
    attention: AttentionRecipe = AttentionRecipe()  # type: ignore[call-arg]
    adapter: AdapterRecipe = AdapterRecipe()  # type: ignore[call-arg]
    quantize: Literal["nf4"] | None = Field(None, description="4-bit base through bitsandbytes: nf4")
    base_config: dict[str, Any] | None = Field(
        None, description="the base's config.json, as far as `lengthen plan` needs it where the base is not at hand"
    )
    data: DataRecipe = DataRecipe()  # type: ignore[call-arg]
    training: TrainingRecipe = TrainingRecipe()  # type: ignore[call-arg]
    memory: MemoryRecipe = MemoryRecipe()  # type: ignore[call-arg]
    parallel: ParallelRecipe = ParallelRecipe()  # type: ignore[call-arg]

    @model_validator(mode="before")
    @classmethod
    def _fill_learning_rate(cls, given: Any) -> Any:
        """All weights stand less than an adapter beside them: 2e-5 is what LongLoRA tunes them at."""
        if not isinstance(given, dict):
            return given
        adapter, training = given.get("adapter"), given.get("training")
        if isinstance(adapter, dict) and adapter.get("kind") == "full" and isinstance(training, dict):
            return {**given, "training": {"learning_rate": 2e-5, **training}}
        return given

    @model_validator(mode="after")
    def _follows_the_rules(self) -> "Recipe":
        return _checked(self, problems(self))

    @property
    def restoration_paths(self) -> list[str]:
        """Documents of the windows that restoration reads; empty where there are none that can be."""
        wanted, data = self.training.restoration.data, self.data
        short = [path for source in data.sources if source.kind == "short" for path in source.path]
        return wanted or short or (data.paths if data.kind == "text" else [])

    @property
    def is_skip_wise(self) -> bool:
        """Whether positions jump in some sequences, whose length then does not follow the target."""
        return self.data.skip_wise or any(map(self.data.is_skip_wise, self.data.sources))

    @property
    def sequence_length(self) -> int:
        """Tokens per training sequence."""
        return self.data.sequence_length or self.context.target

    @property
    def group_size(self) -> int:
        """Tokens per S2 group."""
        return self.attention.group_size or max(2, self.context.target // 4)

    @property
    def shares_heads(self) -> bool:
        """Whether all steps are at full attention, for which processes that share sequences share out heads."""
        return self.attention.kind == "full" or self.attention.pattern == "full"

    @property
    def shard_step(self) -> int:
        """Tokens of which shards of a sequence are multiples: those of a group, or one at full attention."""
        return 1 if self.shares_heads else self.group_size

    @property
    def keeps_attention(self) -> bool:
        """Whether layers are recomputed, but not their attention; flex_attention's compiled kernels always are."""
        keeps = self.memory.activation_checkpointing == "keep_attention"
        return keeps and self.attention.backend != "flex_attention"

    def uses_autocast(self, itemsize: int) -> bool:
        """Whether the model runs under torch's autocast: with 16-bit arithmetic, but DeepSpeed has its own.

        Args:
            itemsize: bytes of a number in the run's dtype.
        """
        return itemsize < 4 and not self.parallel.data.startswith("zero")

    def to_yaml(self) -> str:
        """The recipe as a file that `load_recipe` reads back to an equal recipe."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True)
