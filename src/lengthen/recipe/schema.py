"""A recipe and its sections but for the data: every key with its type, its default and its unit."""

from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, model_validator

from lengthen.attention_pattern import BackendName
from lengthen.recipe.data import DataRecipe
from lengthen.recipe.rules import memory_problems, problems
from lengthen.recipe.section import Names, Paths, Section, checked

__all__ = [
    "AdapterRecipe",
    "AttentionRecipe",
    "ContextRecipe",
    "MemoryRecipe",
    "ParallelRecipe",
    "Recipe",
    "RestorationRecipe",
    "TrainingRecipe",
]


def _dtype_name(value: Any) -> Any:
    # torch's own objects are taken too, without importing torch for that.
    return str(value).removeprefix("torch.") if type(value).__module__ == "torch" else value


class ContextRecipe(Section):
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
        """The arguments of `lengthen.context.extend` beside the base's config."""
        return {"context": self.target, **self.model_dump(exclude={"target", "base"})}


class AttentionRecipe(Section):
    """Attention while training; evaluation is always full."""

    kind: Literal["s2", "full"] = Field("s2", description="shifted sparse attention, or the model's own")
    pattern: str = Field("s2", description="s2; for ablation plain, alternate, full; or a registered one")
    group_size: int | None = Field(None, ge=2, description="S2 group, tokens; default target / 4")
    sinks: int = Field(1, ge=0, description="first tokens of each document that all its groups see; the papers have 0")
    full_last: float = Field(
        0.0, ge=0, lt=1, description="share of the optimizer steps, the last ones, that are taken at full attention"
    )
    backend: BackendName = Field(
        "auto", description="what computes groups or full attention; auto: by device and what is there"
    )


class AdapterRecipe(Section):
    """The parameters that are trained."""

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


class RestorationRecipe(Section):
    """Short windows on which a run is held to its own base, by KL(base || run)."""

    share: float = Field(0.0, ge=0, lt=1, description="of all forward passes, those on windows; 0: no restoration")
    length: int = Field(1024, ge=2, description="tokens of a window, within the base's context")
    weight: float = Field(1.0, gt=0, description="of the divergence, nats per token, beside the loss")
    data: Paths = Field(
        [], description="as data.train; default its sources of kind short, else the run's own documents"
    )


class TrainingRecipe(Section):
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


class MemoryRecipe(Section):
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
        return checked(self, memory_problems(self))


class ParallelRecipe(Section):
    """How the processes of torchrun or accelerate share the work. A name alone is that of `data`."""

    data: Literal["ddp", "fsdp2", "zero2", "zero3", "zero2_offload", "zero3_offload"] = Field(
        "ddp", description="how they share weights, gradients and optimizer; offload: optimizer on the CPU"
    )
    sequence: int = Field(1, ge=1, description="processes that share each sequence, a shard each")

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, given: Any) -> Any:
        return {"data": given} if isinstance(given, str) else given


class Recipe(Section):
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
        """Full fine-tuning wants a lower rate than an adapter: LongLoRA has 2e-5."""
        if not isinstance(given, dict):
            return given
        adapter, training = given.get("adapter"), given.get("training")
        if isinstance(adapter, dict) and adapter.get("kind") == "full" and isinstance(training, dict):
            return {**given, "training": {"learning_rate": 2e-5, **training}}
        return given

    @model_validator(mode="after")
    def _follows_the_rules(self) -> "Recipe":
        return checked(self, problems(self))

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
