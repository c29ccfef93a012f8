"""What clients of OpenAI's API send, as far as it can be done here; what can't be done is refused by name."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from jinja2 import TemplateError
from pydantic import BaseModel, ConfigDict, Field

from lengthen.errors import DataError
from lengthen.inference.engine import GenerationRequest

__all__ = ["ChatRequest", "CompletionRequest", "LoadRequest", "TrainingRequest", "UnloadRequest", "explained"]

# OpenAI's default for completions; a chat answer may use what the prompt leaves of the context.
_COMPLETION_TOKENS = 16

Text = Annotated[str, Field(min_length=1)]
Zero = Annotated[float, Field(ge=0, le=0)]
Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _StreamOptions(_Strict):
    include_usage: bool = False


class _Sampled(_Strict):
    """What both kinds of requests have. The fields that take one value only are those that clients send anyway."""

    model: str
    stream: bool = False
    stream_options: _StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Text | Annotated[list[Text], Field(max_length=16)] | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    n: Literal[1] | None = None
    presence_penalty: Zero | None = None
    frequency_penalty: Zero | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None

    def generation(self, prompt: Sequence[int], adapter: str | None, max_new_tokens: int) -> GenerationRequest:
        """The request as the engine takes it; OpenAI's temperature is 1 by default."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return GenerationRequest(
            prompt=prompt,
            adapter=adapter,
            max_new_tokens=max_new_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=self.seed,
            stop=stop,
        )


class CompletionRequest(_Sampled):
    """Continue one text, several texts, or tokens."""

    prompt: str | Annotated[list[str], Field(min_length=1)] | list[int]
    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    logprobs: None = None
    suffix: None = None

    def prompts(self, tokenizer: Any) -> list[list[int]]:
        """Tokens of each prompt."""
        if isinstance(self.prompt, str):
            return [tokenizer(self.prompt, verbose=False)["input_ids"] if self.prompt else []]
        tokens = [each for each in self.prompt if isinstance(each, int)]
        if tokens or not self.prompt:
            return [tokens]
        return [tokenizer(each, verbose=False)["input_ids"] if each else [] for each in self.prompt]

    def new_tokens(self, _room: int) -> int:
        """How many tokens are asked for."""
        return self.max_tokens or _COMPLETION_TOKENS


class _Part(_Strict):
    type: Literal["text"]
    text: str


class _Message(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_Part]
    name: str | None = None

    def for_template(self) -> dict[str, str]:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(_Sampled):
    """Answer a conversation."""

    messages: Annotated[list[_Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: Literal[False] | None = None
    store: Literal[False] | None = None

    def prompts(self, tokenizer: Any) -> list[list[int]]:
        """Tokens of the conversation in the tokenizer's chat template, up to where the answer begins.

        Raises:
            DataError: there is no template, or it does not take such a conversation.
        """
        if not tokenizer.chat_template:
            raise DataError("this model has no chat template; use /v1/completions, or serve it with --template")
        messages = [message.for_template() for message in self.messages]
        try:
            ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        except TemplateError as error:
            raise DataError(
                f"the chat template refuses these messages: {' '.join(str(error).split())[:200]}"
            ) from error
        return [ids]

    def new_tokens(self, room: int) -> int:
        """How many tokens are asked for: by default all that fit."""
        return self.max_completion_tokens or self.max_tokens or max(1, room)


class LoadRequest(_Strict):
    """Load an adapter, in vLLM's words."""

    lora_name: Name
    lora_path: Text


class UnloadRequest(_Strict):
    """Unload an adapter, in vLLM's words."""

    lora_name: Name


class Hyperparameters(_Strict):
    """How an adapter is trained.

    Attributes:
        n_steps: optimiser steps, one sequence each.
        learning_rate_multiplier: of a learning rate of 2e-4.
        rank: of LoRA.
    """

    n_steps: Annotated[int, Field(ge=1, le=1000)] = 100
    learning_rate_multiplier: Annotated[float, Field(gt=0, le=100)] = 1.0
    rank: Annotated[int, Field(ge=1, le=64)] = 8


class TrainingRequest(_Strict):
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


def explained(errors: Sequence[Any]) -> str:
    """What pydantic found wrong with a request, each field once."""
    said: dict[str, str] = {}
    for each in errors:
        place = [str(part) for part in each["loc"] if part not in ("body", "query")]
        field = ".".join(place[:2] if place[:1] == ["hyperparameters"] else place[:1]) or "the body"
        if each["type"] == "extra_forbidden":
            message = "is not known here; leave it out"
        elif each["type"] == "json_invalid":
            field, message = "the body", "is no JSON"
        else:
            message = each["msg"]
        said.setdefault(field, f"{field}: {message}")
    return "; ".join(said.values())
