"""Requests to load, unload and train adapters."""

from typing import Annotated, Literal

from pydantic import Field

from lengthen.serving.api.fields import Name, Strict, Text

__all__ = ["Hyperparameters", "LoadRequest", "TrainingRequest", "UnloadRequest"]


class LoadRequest(Strict):
    """Load an adapter, in vLLM's words."""

    lora_name: Name
    lora_path: Text


class UnloadRequest(Strict):
    """Unload an adapter, in vLLM's words."""

    lora_name: Name


class Hyperparameters(Strict):
    """How an adapter is trained.

    Attributes:
        n_steps: optimizer steps, one sequence each.
        learning_rate_multiplier: of a learning rate of 2e-4.
        rank: of LoRA.
    """

    n_steps: Annotated[int, Field(ge=1, le=1000)] = 100
    learning_rate_multiplier: Annotated[float, Field(gt=0, le=100)] = 1.0
    rank: Annotated[int, Field(ge=1, le=64)] = 8


class TrainingRequest(Strict):
    """Train an adapter, in the words of OpenAI's fine-tuning jobs; the documents come with the request.

    Attributes:
        model: the base.
        suffix: the name under which the adapter will be served.
        documents: texts to train on.
        training_file: OpenAI's client has to send one, and there are no uploaded files here.
    """

    model: str
    suffix: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    documents: Annotated[list[Annotated[str, Field(pattern=r"\S")]], Field(min_length=1)]
    training_file: Literal["inline"] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    hyperparameters: Hyperparameters = Hyperparameters()
