"""Requests for texts, as clients of OpenAI's API send them; what can't be done here is refused by name."""

import inspect
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator
from transformers import PreTrainedTokenizerBase

from lengthen.data.control_tokens import ControlTokenError, ControlTokens
from lengthen.errors import DataError
from lengthen.serving.api.fields import Logprobs, Penalty, StopTexts, Strict, Whole
from lengthen.serving.api.messages import Message
from lengthen.serving.engine import GenerationRequest
from lengthen.upstream import chat_prompt

__all__ = [
    "ChatRequest",
    "CompletionRequest",
    "format_validation_errors",
]

# OpenAI's default for completions; a chat answer may use what the prompt leaves of the context.
_COMPLETION_TOKENS = 16
_TEMPLATE_ARGUMENTS = set(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters)


class _StreamOptions(Strict):
    include_usage: bool = False
    continuous_usage_stats: bool | None = None


class _ResponseFormat(Strict):
    type: Literal["text"]


class _Sampled(Strict):
    """Fields of both kinds of requests: OpenAI's, and those of vLLM for sampling.

    The fields that take one value only are those that clients send anyway.
    """

    model: str
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: Annotated[Whole, Field(ge=0)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[Whole, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    seed: Annotated[Whole, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: StopTexts = None
    stop_token_ids: Annotated[list[Annotated[Whole, Field(ge=0)]], Field(max_length=64)] | None = None
    min_tokens: Annotated[Whole, Field(ge=0)] | None = None
    ignore_eos: bool | None = None
    n: Annotated[Whole, Field(ge=1, le=128)] | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    service_tier: Literal["auto", "default"] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    response_format: _ResponseFormat | None = None

    def generation(self, prompt: Sequence[int], adapter: str | None, max_new_tokens: int) -> list[GenerationRequest]:
        """The answers to one prompt as the engine takes them; OpenAI's temperature is 1 by default."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        logprobs, prompt_logprobs = self.wanted_logprobs()
        return [
            GenerationRequest(
                prompt=prompt,
                adapter=adapter,
                max_new_tokens=max_new_tokens,
                temperature=1.0 if self.temperature is None else self.temperature,
                top_p=1.0 if self.top_p is None else self.top_p,
                top_k=max(0, self.top_k or 0),
                min_p=self.min_p or 0.0,
                presence_penalty=self.presence_penalty or 0.0,
                frequency_penalty=self.frequency_penalty or 0.0,
                repetition_penalty=self.repetition_penalty or 1.0,
                # The answers to one prompt are different draws, each the same again by the seed.
                seed=None if self.seed is None else self.seed + number,
                stop=stop,
                stop_tokens=tuple(self.stop_token_ids or ()),
                min_new_tokens=self.min_tokens or 0,
                ignore_end=bool(self.ignore_eos),
                logprobs=logprobs,
                prompt_logprobs=prompt_logprobs,
            )
            for number in range(self.answers)
        ]

    @property
    def answers(self) -> int:
        """Number of answers to each prompt."""
        return self.n or 1

    def wanted_logprobs(self) -> tuple[int | None, int | None]:
        """How many of the likeliest tokens are named beside each new one, and beside each of the prompt."""
        raise NotImplementedError


def _check_prompt(prompt: Any) -> Any:
    """A text, tokens, or a list of texts or of lists of tokens."""
    if isinstance(prompt, str) or _is_tokens(prompt):
        return prompt
    if isinstance(prompt, list) and (all(isinstance(each, str) for each in prompt) or all(map(_is_tokens, prompt))):
        return prompt
    raise ValueError("should be a text, a list of tokens, a list of texts or of lists of tokens")


def _is_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(each) is int for each in value)


class CompletionRequest(_Sampled):
    """Continue one text, several texts, or tokens."""

    prompt: Annotated[Any, AfterValidator(_check_prompt)]
    best_of: Whole | None = None
    echo: bool | None = None
    logprobs: Logprobs | None = None
    suffix: Annotated[str, Field(max_length=0)] | None = None
    add_special_tokens: Literal[True] | None = None

    @field_validator("best_of")
    @classmethod
    def _only_all(cls, best_of: int | None, info: Any) -> int | None:
        if best_of is not None and best_of != (info.data.get("n") or 1):
            raise ValueError("should be n or left out, as all answers are returned")
        return best_of

    def prompts(self, tokenizer: Any, _control: ControlTokens) -> list[list[int]]:
        """Tokens of each prompt."""
        return [
            each if isinstance(each, list) else tokenizer(each, verbose=False)["input_ids"] if each else []
            for each in self._each()
        ]

    def echoed(self, tokenizer: Any) -> list[str]:
        """The text of each prompt."""
        return [
            each
            if isinstance(each, str)
            else tokenizer.decode(each, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            for each in self._each()
        ]

    def _each(self) -> list[str | list[int]]:
        return [self.prompt] if isinstance(self.prompt, str) or _is_tokens(self.prompt) else self.prompt or [""]

    def new_tokens(self, _room: int) -> int:
        """How many tokens are asked for."""
        return _COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens

    def wanted_logprobs(self) -> tuple[int | None, int | None]:
        """See the base class; a prompt's are read where it is echoed with them, or no token is to follow it."""
        reads_prompt = self.echo and (self.logprobs is not None or self.max_tokens == 0)
        return self.logprobs, (self.logprobs or 0) if reads_prompt else None


class ChatRequest(_Sampled):
    """Answer a conversation."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[Whole, Field(ge=1)] | None = None
    max_tokens: Annotated[Whole, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Logprobs | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    store: Literal[False] | None = None
    # Calls of tools are not read from answers, so none are offered to the model.
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None

    @field_validator("messages")
    @classmethod
    def _have_content(cls, messages: list[Message]) -> list[Message]:
        for number, message in enumerate(messages):
            if message.is_empty:
                raise ValueError(f"{number}.content is missing")
        return messages

    @field_validator("top_logprobs")
    @classmethod
    def _with_logprobs(cls, top: int | None, info: Any) -> int | None:
        if top is not None and not info.data.get("logprobs"):
            raise ValueError("needs logprobs to be true")
        return top

    @field_validator("continue_final_message")
    @classmethod
    def _one_of_both(cls, continues: bool | None, info: Any) -> bool | None:
        if continues and info.data.get("add_generation_prompt"):
            raise ValueError("can't be true with add_generation_prompt")
        return continues

    @field_validator("chat_template_kwargs")
    @classmethod
    def _only_variables(cls, variables: dict[str, Any] | None) -> dict[str, Any] | None:
        taken = sorted(_TEMPLATE_ARGUMENTS & set(variables or ()))
        if taken:
            raise ValueError(f"{taken[0]} is no variable of a template")
        return variables

    def prompts(self, tokenizer: Any, control: ControlTokens) -> list[list[int]]:
        """Tokens of the conversation in the tokenizer's chat template, up to where the answer begins.

        Control tokens that messages spell are plain text.

        Args:
            tokenizer: of the model.
            control: its control tokens.

        Returns:
            One prompt, as a list of prompts.

        Raises:
            DataError: there is no template, or it does not take such a conversation.
        """
        if not tokenizer.chat_template:
            raise DataError("this model has no chat template; use /v1/completions, or have it served with a `template`")
        prompt = True if self.add_generation_prompt is None else self.add_generation_prompt
        try:
            messages = control.shield([message.for_template() for message in self.messages])
        except ControlTokenError as error:
            raise DataError(f"a message {error}; take it out") from error
        rendered = chat_prompt(
            tokenizer,
            messages,
            tokenize=False,
            add_generation_prompt=prompt and not self.continue_final_message,
            continue_final_message=bool(self.continue_final_message),
            **(self.chat_template_kwargs or {}),
        )
        for number, message in enumerate(messages):
            called = [call["function"]["name"] for call in message.get("tool_calls", ())]
            told = [message["content"].strip()] if message["role"] == "tool" else []
            if not all(text in rendered for text in (*called, *told)):
                raise DataError(f"messages.{number}: the chat template has no place for tools; leave it out")
        return [control.ids(rendered)]

    def new_tokens(self, room: int) -> int:
        """How many tokens are asked for: by default all that fit."""
        return self.max_completion_tokens or self.max_tokens or max(1, room)

    def wanted_logprobs(self) -> tuple[int | None, int | None]:
        """See the base class."""
        return (self.top_logprobs or 0) if self.logprobs else None, None


def format_validation_errors(errors: Sequence[Any]) -> str:
    """Pydantic's errors about a request as one line, each field once and in full: `messages.2.refusal`."""
    said: dict[str, str] = {}
    for each in errors:
        # Where a value may be of several types, pydantic names the type that it tried, which is no field.
        place = [part for part in each["loc"] if isinstance(part, int) or (part.isidentifier() and part not in _TYPES)]
        field = ".".join(str(part) for part in place if part not in ("body", "query")) or "the body"
        if each["type"] == "extra_forbidden":
            message = "is not known here; leave it out"
        elif each["type"] in ("too_long", "string_too_long") and each["ctx"]["max_length"] == 0:
            message = "has no place here; leave it out"
        elif each["type"] == "json_invalid":
            field, message = "the body", "is no JSON"
        else:
            message = each["msg"].removeprefix("Value error, ")
        said.setdefault(field, f"{field}: {message}")
    return "; ".join(said.values())


_TYPES = {"str", "int", "float", "bool", "dict", "list", "none", "nullable"}
