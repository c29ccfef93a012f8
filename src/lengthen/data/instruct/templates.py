"""Prompt templates: what stands around the messages of a conversation, and where each message is in the whole.

All are chat templates in Jinja, as transformers' tokenizers have them. A run saves the one it was trained with in its
tokenizer, so that `apply_chat_template` gives the same prompt at inference.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lengthen.data.control_tokens import ControlTokenError, ControlTokens
from lengthen.data.instruct.formats import Example
from lengthen.data.instruct.messages import Turn
from lengthen.data.records import BrokenRecordError
from lengthen.errors import DataError, one_line
from lengthen.upstream import chat_prompt, check_chat_template

__all__ = ["INPUT_JOINTS", "TEMPLATES", "RenderedChat", "Template", "use_template"]

_TAKE_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set messages = messages[1:] %}"
    "{% else %}{% set system = DEFAULT %}{% endif %}"
)
_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)
_ALPACA_SYSTEM = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)

# A message of a tool has no place in these; ChatML names every role.
_REFUSE_OTHERS = "{% else %}{{ raise_exception('it has no place for messages of role ' + message['role']) }}{% endif %}"

# BOS stands for the begin token where the tokenizer puts one before a text by itself, else for nothing.
_LLAMA2 = (
    _TAKE_SYSTEM.replace("DEFAULT", "none") + "{% for message in messages %}{% if message['role'] == 'user' %}"
    "BOS{{ '[INST] ' }}{% if loop.first and system %}{{ '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' }}{% endif %}"
    "{{ message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + ' ' + eos_token }}"
    + _REFUSE_OTHERS
    + "{% endfor %}"
)
_VICUNA = (
    _TAKE_SYSTEM.replace("DEFAULT", f'"{_VICUNA_SYSTEM}"') + "BOS{{ system + ' ' }}"
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'ASSISTANT: ' + message['content'] + eos_token }}"
    + _REFUSE_OTHERS
    + "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
_ALPACA = (
    _TAKE_SYSTEM.replace("DEFAULT", f'"{_ALPACA_SYSTEM}"') + "BOS{{ system + '\\n\\n' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ '### Response:\\n' + message['content'] + eos_token }}"
    "{% if not loop.last %}{{ '\\n\\n' }}{% endif %}"
    + _REFUSE_OTHERS
    + "{% endfor %}{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
)
_CHATML = (
    "BOS{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

TEMPLATES = {"llama2": _LLAMA2, "vicuna": _VICUNA, "alpaca": _ALPACA, "chatml": _CHATML}
"""By name: Llama 2's chat models, Vicuna 1.1 and later (as FastChat writes it), Stanford Alpaca, ChatML."""

INPUT_JOINTS = {"alpaca": "\n\n### Input:\n"}
"""The separator of an alpaca record's instruction and input, by template, where that is not an empty line."""

_CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")


@dataclass(frozen=True)
class RenderedChat:
    """A conversation as text.

    Attributes:
        text: all of it, the template's control tokens included; those that messages spell are marks of `ControlTokens`.
        answers: start and stop, in characters, of what is trained, which is what a model writes itself: from the end
            of the prompt through the end token after the answer.
        document: start and stop of what may be cut; None where there is nothing.
        unused: names of what the messages have and the template leaves out, where the rest makes sense without it.
    """

    text: str
    answers: tuple[tuple[int, int], ...]
    document: tuple[int, int] | None
    unused: tuple[str, ...] = ()


def use_template(tokenizer: Any, name: str) -> None:
    """Give a tokenizer the chat template of this name; "tokenizer" leaves it its own.

    Args:
        tokenizer: of the model; changed in place.
        name: "tokenizer", or one of `TEMPLATES`.

    Raises:
        DataError: the name is unknown, or the tokenizer lacks what the template needs.
    """
    if name == "tokenizer":
        if not tokenizer.chat_template:
            raise DataError(
                f"this tokenizer has no chat template of its own; choose a template: {', '.join(TEMPLATES)}"
            )
        check_chat_template(tokenizer)
        return
    if name not in TEMPLATES:
        raise DataError(f"template {name!r} is not one of tokenizer, {', '.join(TEMPLATES)}")
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in _CHATML_TOKENS if name == "chatml" and token not in vocabulary]
    if name != "chatml" and tokenizer.eos_token is None:
        missing = ["an end token (eos)"]
    if missing:
        raise DataError(f"template {name} needs {', '.join(missing)}, which this tokenizer lacks; choose another one")
    adds_begin = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    tokenizer.chat_template = TEMPLATES[name].replace("BOS", "{{ bos_token }}" if adds_begin else "")


@dataclass(frozen=True)
class _Frame:
    """A template's output for certain messages with names in place of their texts.

    Attributes:
        text: all of it.
        names: where the name of each message is in it, start and stop; None for messages without a text.
        answers: start and stop of what is trained of each answer, by the number of its turn.
    """

    text: str
    names: list[tuple[int, int] | None]
    answers: dict[int, tuple[int, int]]


class Template:
    """Lays conversations out by the chat template of a tokenizer.

    Messages are found by rendering the template with names in place of the messages, once for each sequence of roles
    (and anew where messages have more than a text). So the places are exact for any template, and one that changes
    messages is noticed.

    Args:
        tokenizer: with a chat template.

    Attributes:
        control: the tokenizer's control tokens; a layout's text has its marks.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self.control = ControlTokens(tokenizer)
        # The begin token may follow an answer too, where the next turn begins; it ends none.
        ends = {str(token) for token in tokenizer.added_tokens_decoder.values()} | {tokenizer.eos_token}
        ends -= {None} if tokenizer.bos_token == tokenizer.eos_token else {None, tokenizer.bos_token}
        longest_first = sorted(ends, key=len, reverse=True)
        self._end = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._frames: dict[tuple[str, ...], _Frame] = {}

    def lay_out(self, example: Example) -> RenderedChat:
        """Put an example into the template.

        Raises:
            BrokenRecordError: the template does not take such conversations, or leaves out or changes what is in them;
                or a message spells a control token that the tokenizer can't encode as text.
            DataError: it writes nothing after an answer by which the model would learn to stop.
        """
        try:
            turns = [
                replace(turn, text=self.control.shield(turn.text), fields=self.control.shield(dict(turn.fields)))
                for turn in example.turns
            ]
            tools = self.control.shield(list(example.tools))
        except ControlTokenError as error:
            raise BrokenRecordError(str(error)) from error
        frame = self._frame_of(turns, tools)
        text, done, moved = "", 0, []
        for turn, name in zip(turns, frame.names, strict=True):
            if name is not None:
                text += frame.text[done : name[0]] + turn.text
                done = name[1]
                moved.append((name[1], len(text) - name[1]))
        text += frame.text[done:]
        if text != self._render(turns, tools):
            raise BrokenRecordError("has messages that the chat template changes")

        def place(at: int) -> int:
            """Where a place of the frame outside of its names is in the text."""
            return at + next((by for stop, by in reversed(moved) if stop <= at), 0)

        trained = (index for index, turn in enumerate(turns) if turn.role == "assistant" and turn.trained)
        answers = tuple((place(frame.answers[i][0]), place(frame.answers[i][1])) for i in trained)
        reasons = (turn.fields.get("reasoning_content", "") for turn in turns)
        unused = [] if all(each.strip() in text for each in reasons) else ["reasoning_content, by the chat template"]
        return RenderedChat(text, answers, self._document(example, turns, frame, place), tuple(unused))

    def _document(
        self, example: Example, turns: list[Turn], frame: _Frame, place: Callable[[int], int]
    ) -> tuple[int, int] | None:
        if example.document is None:
            return None
        index, *ends = example.document
        name, whole = frame.names[index], example.turns[index].text
        assert name is not None
        begin = place(name[1]) - len(turns[index].text)
        # Marks are longer or shorter than what they stand for. An edge inside a control token takes all of it.
        start, stop = (len(self.control.shield(whole[:end])) for end in ends)
        return begin + start, begin + stop

    def _frame_of(self, turns: list[Turn], tools: list[Any]) -> _Frame:
        if tools or any(turn.fields for turn in turns):
            return self._frame(turns, tools)
        roles = tuple(turn.role for turn in turns)
        if roles not in self._frames:
            self._frames[roles] = self._frame(turns, tools)
        return self._frames[roles]

    def _frame(self, turns: list[Turn], tools: list[Any]) -> _Frame:
        named = [replace(turn, text=_name(i) if turn.text else "") for i, turn in enumerate(turns)]
        text = self._render(named, tools)
        found = [match.span() for match in re.finditer(r"\(message \d+ of the frame\)", text)]
        if [text[start:stop] for start, stop in found] != [turn.text for turn in named if turn.text]:
            raise BrokenRecordError("has messages that the chat template leaves out, repeats or moves")
        spans = iter(found)
        names = [next(spans) if turn.text else None for turn in named]
        self._check_kept(text, turns, tools)
        answers = {
            i: self._answer(text, named, tools, i, names[i]) for i, t in enumerate(turns) if t.role == "assistant"
        }
        return _Frame(text, names, answers)

    def _answer(
        self, text: str, turns: list[Turn], tools: list[Any], index: int, name: tuple[int, int] | None
    ) -> tuple[int, int]:
        """The span of an answer that a model writes itself: from the end of the prompt through the end token."""
        # Nothing is asked before an answer that comes first, and not every template has a prompt for that.
        prompt = self._render(turns[:index], tools, add_generation_prompt=True) if index else ""
        if name is not None and not turns[index].fields.get("tool_calls"):
            start = len(prompt) if prompt and text[: name[0]].startswith(prompt) else name[0]
            end = re.compile(rf"\s*(?:{self._end.pattern})").match(text, name[1])
            if end is None and index == len(turns) - 1:
                raise DataError(
                    "the tokenizer's chat template writes no end token after an answer, so the model would not learn "
                    f"to stop; choose a template: {', '.join(TEMPLATES)}"
                )
            return start, end.end() if end else name[1]
        until = self._render(turns[: index + 1], tools).rstrip()
        ends = list(self._end.finditer(until, len(prompt)))
        if not prompt or not text.startswith(prompt) or not text.startswith(until) or not ends:
            raise BrokenRecordError("has tool calls that the chat template writes so that they can't be told apart")
        return len(prompt), ends[-1].end()

    def _check_kept(self, text: str, turns: list[Turn], tools: list[Any]) -> None:
        """Refuse what a template without a place for it leaves out in silence."""
        called = [call["function"]["name"] for turn in turns for call in turn.fields.get("tool_calls", ())]
        offered = [tool.get("function", tool).get("name", "") for tool in tools]
        for what, names in (("tool calls", called), ("tools", offered)):
            if not all(name in text for name in names):
                raise BrokenRecordError(f"has {what} that the chat template leaves out")

    def _render(self, turns: Sequence[Turn], tools: list[Any], add_generation_prompt: bool = False) -> str:
        messages = [{"role": turn.role, "content": turn.text, **turn.fields} for turn in turns]
        options = {"tools": tools or None, "tokenize": False, "add_generation_prompt": add_generation_prompt}
        try:
            return str(chat_prompt(self._tokenizer, messages, **options))
        except DataError as error:
            reason = one_line(error.__cause__ or error)
            raise BrokenRecordError(f"has messages that the chat template refuses: {reason}") from error


def _name(index: int) -> str:
    return f"(message {index} of the frame)"
