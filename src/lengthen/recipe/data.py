"""The data section of a recipe: documents, or a mixture of sources, and how they become sequences."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from lengthen.recipe.rules import KINDS_OF_KEY, beside_problems, source_problems
from lengthen.recipe.section import Names, Paths, Section, as_list, checked

__all__ = ["MAPPING", "SOURCE_LISTS", "DataRecipe", "SourceRecipe"]

MAPPING = "source"
"""The name in pydantic's errors of an entry of data.train that is no plain path."""

SOURCE_LISTS = (["data", "train"], ["data", "beside"])
"""Where in a recipe sources are listed."""

Weight = Annotated[float, Field(ge=0)]


class SourceRecipe(Section):
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
        return checked(self, source_problems(self))


Sources = Annotated[
    list[
        Annotated[
            Annotated[str, Tag("path")] | Annotated[SourceRecipe, Tag(MAPPING)],
            Discriminator(lambda value: "path" if isinstance(value, str) else MAPPING),
        ]
    ],
    BeforeValidator(as_list),
]


class DataRecipe(Section):
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
    beside: Annotated[list[SourceRecipe], BeforeValidator(as_list)] = Field(
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
        return checked(self, beside_problems(self))

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
        """The sources of `train`, which have the rest of the weights, and those beside them."""
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
