"""Every condition between keys of a recipe, each a sentence that says what to change.

`Recipe` and its sections ask for their problems when they are built, and report all of them at once.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lengthen.attention_pattern import heads_of
from lengthen.errors import RecipeError

if TYPE_CHECKING:
    from lengthen.recipe.data import DataRecipe, SourceRecipe
    from lengthen.recipe.schema import MemoryRecipe, Recipe

__all__ = [
    "KINDS_OF_KEY",
    "PROMPT_KINDS",
    "beside_problems",
    "check_documents",
    "check_heads",
    "memory_problems",
    "problems",
    "source_problems",
]

PROMPT_KINDS = ("cartridge", "cpt", "multitask_prompt_tuning", "p_tuning", "prefix_tuning", "prompt_tuning")
"""PEFT methods that put virtual tokens before the text."""

_DOCUMENTS = ("long", "short", "code")
KINDS_OF_KEY = {
    "path": (*_DOCUMENTS, "instruct"),
    "length": ("short", "retrieval"),
    "min_tokens": (*_DOCUMENTS, "instruct"),
    "max_tokens": (*_DOCUMENTS, "instruct"),
    "length_weights": _DOCUMENTS,
    "skip_wise": ("long", "code", "retrieval"),
    **dict.fromkeys(
        ("haystack", "tasks", "facts", "answer_weight", "text_weight", "bare", "early", "middle"), ("retrieval",)
    ),
}
"""Keys of a source of a mixture that are for some kinds only."""


def check_documents(recipe: "Recipe") -> None:
    """Refuse a recipe without documents; shipped ones leave them to the user.

    Args:
        recipe: of the run.

    Raises:
        RecipeError: `data.train` is empty.
    """
    if not recipe.data.train:
        raise RecipeError("data.train is empty; name files or folders of long documents, as in data.train=books/")


def check_heads(recipe: "Recipe", num_heads: int, num_kv_heads: int) -> None:
    """Refuse full attention over shards of sequences where heads can't be shared out, before weights are loaded.

    Args:
        recipe: of the run.
        num_heads: of the base's queries.
        num_kv_heads: of its keys and values.

    Raises:
        ModelError: with the numbers of heads.
    """
    if recipe.shares_heads or recipe.attention.full_last:
        heads_of(0, recipe.parallel.sequence, num_heads, num_kv_heads)


def problems(recipe: "Recipe") -> Iterator[str]:
    """The conflicts between keys of a recipe."""
    yield from _length_problems(recipe)
    yield from _attention_problems(recipe)
    yield from _adapter_problems(recipe)
    yield from _data_problems(recipe)
    if recipe.data.is_mixture:
        yield from _mixture_problems(recipe)
    if recipe.is_skip_wise:
        yield from _skip_wise_problems(recipe)
    if recipe.memory.sequence_chunk:
        yield from _chunk_problems(recipe)
    if recipe.training.restoration.share:
        yield from _restoration_problems(recipe)
    if recipe.parallel.data != "ddp":
        yield from _sharding_problems(recipe)
    if recipe.parallel.sequence > 1:
        yield from _sequence_problems(recipe)


def source_problems(source: "SourceRecipe") -> Iterator[str]:
    """The conflicts between keys of a mixture's source."""
    for key, field in type(source).model_fields.items():
        kinds = KINDS_OF_KEY.get(key)
        if kinds is not None and source.kind not in kinds and getattr(source, key) != field.default:
            yield f"{key} is for kind {' or '.join(kinds)}; this source's kind is {source.kind}"
    if source.kind != "retrieval" and not source.path:
        yield f"a source of kind {source.kind} needs a path"
    if isinstance(source.length, tuple):
        if source.kind == "short":
            yield f"length {list(source.length)} is for kind retrieval; short windows have one length"
        if source.length[0] > source.length[1]:
            yield f"length {list(source.length)} has the longest first; write [shortest, longest]"


def beside_problems(data: "DataRecipe") -> Iterator[str]:
    """Sources in `beside` that leave nothing for `train`."""
    given = [source.weight for source in data.beside if source.weight is not None]
    if len(given) < len(data.beside) or sum(given) >= 1:
        yield (
            f"of {len(data.beside)} sources in beside {len(given)} have a weight, {sum(given):g} in all; give each "
            "its share of the whole, less than 1 in all, so that train has the rest"
        )


def memory_problems(memory: "MemoryRecipe") -> Iterator[str]:
    """Memory savers that exclude each other."""
    if memory.sequence_chunk and memory.activation_checkpointing:
        yield (
            f"memory.sequence_chunk={memory.sequence_chunk} recomputes layers by itself; set "
            "memory.activation_checkpointing=false"
        )
    if memory.checkpoint_every > 1 and not memory.sequence_chunk:
        yield f"memory.checkpoint_every={memory.checkpoint_every} is for layers by chunks; set memory.sequence_chunk"


def _length_problems(recipe: "Recipe") -> Iterator[str]:
    length, target = recipe.data.sequence_length, recipe.context.target
    if (recipe.training.steps is None) == (recipe.training.epochs is None):
        yield "give one of training.steps and training.epochs"
    if length is not None and length > target:
        yield f"data.sequence_length {length} is above context.target {target}"


def _attention_problems(recipe: "Recipe") -> Iterator[str]:
    attention = recipe.attention
    if attention.full_last and "full" in (attention.kind, attention.pattern):
        yield "attention.full_last ends a run of S2 at full attention, and all of this one is; leave it out"
    if recipe.adapter.kind in PROMPT_KINDS and attention.backend != "auto":
        yield f"adapter.kind={recipe.adapter.kind} has the model's own attention; set attention.backend=auto"


def _adapter_problems(recipe: "Recipe") -> Iterator[str]:
    adapter = recipe.adapter
    if adapter.kind != "lora":
        for key, field in type(adapter).model_fields.items():
            if key not in ("kind", "options") and getattr(adapter, key) != field.default:
                yield f"adapter.{key} is for adapter.kind=lora; the kind is {adapter.kind}"
    if adapter.kind in ("lora", "full") and adapter.options:
        yield f"adapter.options is for other PEFT methods; the kind is {adapter.kind}"
    is_stream = recipe.attention.kind == "full" and recipe.data.packing != "documents"
    if adapter.kind in PROMPT_KINDS and not is_stream:
        yield (
            f"adapter.kind={adapter.kind} puts virtual tokens before the text, for which S2 and packed documents are "
            "not defined; set attention.kind=full, data.packing=concatenate (for data.kind=instruct: none)"
        )
    if recipe.quantize and not _keeps_base(recipe):
        yield f"adapter.{_what(recipe)} needs weights that are not quantized; set quantize=null"


def _keeps_base(recipe: "Recipe") -> bool:
    """Whether the base's weights stay as they are beside the adapter."""
    return recipe.adapter.kind == "lora" and recipe.adapter.variant != "pissa"


def _what(recipe: "Recipe") -> str:
    """The key of the adapter that decides, with its value."""
    return f"variant={recipe.adapter.variant}" if recipe.adapter.kind == "lora" else f"kind={recipe.adapter.kind}"


def _data_problems(recipe: "Recipe") -> Iterator[str]:
    data = recipe.data
    if data.kind == "text":
        instructs = any(source.kind == "instruct" for source in data.sources)
        for key in ("template", "weights"):
            if getattr(data, key) != type(data).model_fields[key].default and not instructs:
                yield f"data.{key} is for data.kind=instruct; the kind is text"
        if data.packing == "none":
            yield "data.packing=none is for data.kind=instruct; take documents or concatenate"
        return
    if data.packing == "concatenate":
        yield (
            "data.packing=concatenate would train examples that see each other; with data.kind=instruct take documents "
            "or none"
        )
    if data.skip_wise:
        yield "data.skip_wise cuts examples into pieces; with data.kind=instruct leave it out"
    if data.weights is not None and len(data.weights) != len(data.train):
        yield f"data.weights has {len(data.weights)} for {len(data.train)} sources of data.train; give one each"


def _mixture_problems(recipe: "Recipe") -> Iterator[str]:
    data = recipe.data
    if recipe.training.steps is None:
        yield (
            "a mixture has no pass over its data, as its sources end at different times: give training.steps, not "
            "training.epochs"
        )
    if data.kind != "text" or data.weights is not None:
        yield (
            "in a mixture sources have their own kind and weight; leave out data.kind and data.weights, or what makes "
            "it one: data.beside=[] and plain paths in data.train"
        )
    if recipe.adapter.kind in PROMPT_KINDS:
        yield (
            f"adapter.kind={recipe.adapter.kind} does not train on mixtures; name plain paths in data.train, and set "
            "data.beside=[]"
        )
    yield from _weight_problems(data)
    jumping = [data.is_skip_wise(source) for source in data.sources]
    if recipe.training.batch_size > 1 and any(jumping) and not all(jumping):
        yield (
            "skip-wise and other sequences can't be in one batch; set training.batch_size=1 and raise "
            "training.accumulation"
        )
    for source, jumps in zip(data.sources, jumping, strict=True):
        yield from _source_length_problems(source, jumps, recipe.sequence_length)


def _weight_problems(data: "DataRecipe") -> Iterator[str]:
    trained = data.sources_of_train
    given = [source.weight for source in trained if source.weight is not None]
    if given and (len(given) < len(trained) or sum(given) == 0):
        yield (
            f"of {len(trained)} sources in data.train {len(given)} have a weight, {sum(given):g} in all; give each a "
            "weight, and one at least more than 0, or none for equal shares"
        )


def _source_length_problems(source: "SourceRecipe", jumps: bool, sequence_length: int) -> Iterator[str]:
    longest = max(source.length) if isinstance(source.length, tuple) else source.length
    if longest is None:
        return
    if longest > sequence_length:
        yield f"a {source.kind} source has length {longest}, beyond the run's {sequence_length} tokens"
    if jumps:
        yield "a skip-wise retrieval source has one jump over the whole sequence; leave out its length"


def _skip_wise_problems(recipe: "Recipe") -> Iterator[str]:
    if recipe.sequence_length >= recipe.context.target:
        yield (
            f"data.skip_wise needs sequences below context.target {recipe.context.target}; set data.sequence_length, "
            "as to the base's context"
        )
    if recipe.attention.kind != "full":
        yield "data.skip_wise makes sequences short, which S2 has nothing to save in; set attention.kind=full"
    if recipe.adapter.kind in PROMPT_KINDS:
        yield f"adapter.kind={recipe.adapter.kind} sets positions itself; set data.skip_wise=false"


def _chunk_problems(recipe: "Recipe") -> Iterator[str]:
    chunk, attention = recipe.memory.sequence_chunk, recipe.attention
    if attention.full_last or "full" in (attention.kind, attention.pattern):
        key = "full_last" if attention.full_last else "kind" if attention.kind == "full" else "pattern"
        yield (
            f"memory.sequence_chunk cuts layers where S2 sees no further, and with attention.{key}="
            f"{getattr(attention, key)} every token sees all before it; set memory.sequence_chunk=0"
        )
    if chunk % recipe.group_size:
        yield f"memory.sequence_chunk is {chunk}, which is no multiple of the group size of {recipe.group_size} tokens"
    if recipe.parallel.data.startswith("zero"):
        yield f"memory.sequence_chunk is for parallel ddp and fsdp2, not {recipe.parallel.data}"
    if recipe.memory.checkpoint_every > 1 and recipe.parallel.data == "fsdp2":
        yield (
            "memory.checkpoint_every computes a layer again when fsdp2 has put its weights away; set it to 1, or "
            "parallel=ddp"
        )


def _restoration_problems(recipe: "Recipe") -> Iterator[str]:
    restoration = recipe.training.restoration
    if recipe.adapter.kind == "full":
        yield (
            "training.restoration needs the base beside the run, and full fine-tuning has no adapter to turn off: it "
            "would take a second copy of all weights; set adapter.kind=lora or training.restoration.share=0"
        )
    elif not _keeps_base(recipe):
        yield (
            f"training.restoration needs the base beside the run, which adapter.{_what(recipe)} does not leave as it "
            "is; take another, or set training.restoration.share=0"
        )
    if recipe.parallel.data.startswith("zero"):
        yield f"training.restoration is for parallel ddp and fsdp2, not {recipe.parallel.data}"
    if restoration.length > recipe.context.target:
        yield f"training.restoration.length {restoration.length} is above context.target {recipe.context.target}"
    if not recipe.restoration_paths:
        yield "training.restoration has no documents here; name some in training.restoration.data"


def _sequence_problems(recipe: "Recipe") -> Iterator[str]:
    count, length, step = recipe.parallel.sequence, recipe.sequence_length, recipe.shard_step
    if recipe.parallel.data.startswith("zero"):
        yield f"parallel.sequence is for parallel.data ddp and fsdp2, not {recipe.parallel.data}"
    if recipe.memory.sequence_chunk:
        yield (
            "memory.sequence_chunk exchanges no keys and values with other shards; set it to 0, or parallel.sequence=1"
        )
    if recipe.adapter.kind in PROMPT_KINDS:
        yield (
            f"adapter.kind={recipe.adapter.kind} puts virtual tokens before the text, which no shard but the first "
            "would see; set parallel.sequence=1"
        )
    if length < count * step:
        what = f"groups of {step}" if step > 1 else "tokens"
        yield (
            f"parallel.sequence is {count}, and a sequence of {length} tokens has {length // step} whole {what}; each "
            "process needs one: lower parallel.sequence or attention.group_size"
        )


def _sharding_problems(recipe: "Recipe") -> Iterator[str]:
    kind = recipe.parallel.data
    if recipe.quantize and kind not in ("zero2", "zero2_offload"):
        yield (
            f"parallel={kind} shards the base's weights, and packed 4-bit weights can't be sharded; set parallel=zero2 "
            "or ddp, or quantize=null"
        )
    if recipe.training.optimizer != "adamw":
        yield (
            f"training.optimizer={recipe.training.optimizer} keeps states that parallel={kind} can't shard; set "
            "training.optimizer=adamw or parallel=ddp"
        )
    if recipe.adapter.kind not in ("lora", "full"):
        yield f"parallel={kind} is for adapter.kind lora and full, not {recipe.adapter.kind}; set parallel=ddp"
