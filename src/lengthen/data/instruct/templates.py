"""Prompt templates: what stands around the messages of a conversation, and where each message is in the whole.

All are chat templates in Jinja, as transformers' tokenizers have them. A run saves the one it was trained with in its
tokenizer, so that `apply_chat_template` gives the same prompt at inference.
"""

import re
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from lengthen.data.documents import BrokenRecordError
from lengthen.data.instruct.formats import Example
from lengthen.errors import DataError

__all__ = ["INPUT_JOINTS", "TEMPLATES", "Layout", "Template", "use_template"]

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

# BOS stands for the begin token where the tokenizer puts one before a text by itself, else for nothing.
_LLAMA2 = (
    _TAKE_SYSTEM.replace("DEFAULT", "none") + "{% for message in messages %}{% if message['role'] == 'user' %}"
    "BOS{{ '[INST] ' }}{% if loop.first and system %}{{ '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' }}{% endif %}"
    "{{ message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
_VICUNA = (
    _TAKE_SYSTEM.replace("DEFAULT", f'"{_VICUNA_SYSTEM}"') + "BOS{{ system + ' ' }}"
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
_ALPACA = (
    _TAKE_SYSTEM.replace("DEFAULT", f'"{_ALPACA_SYSTEM}"') + "BOS{{ system + '\\n\\n' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}"
    "{% else %}{{ '### Response:\\n' + message['content'] + eos_token }}"
    "{% if not loop.last %}{{ '\\n\\n' }}{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
)
_CHATML = (
    "BOS{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

TEMPLATES = {"llama2": _LLAMA2, "vicuna": _VICUNA, "alpaca": _ALPACA, "chatml": _CHATML}
"""By name: Llama 2's chat models, Vicuna 1.1 and later (as FastChat writes it), Stanford Alpaca, ChatML."""

INPUT_JOINTS = {"alpaca": "\n\n### Input:\n"}
"""What a template puts between an alpaca record's instruction and input, where that is not an empty line."""

_CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")


@dataclass(frozen=True)
class Layout:
    """A conversation as text.

    Attributes:
        text: all of it, special tokens included.
        answers: start and stop, in characters, of what is trained, which is what a model writes itself: from the end
            of the prompt through the end token after the answer.
        document: start and stop of what may be cut; None where there is nothing.
    """

    text: str
    answers: tuple[tuple[int, int], ...]
    document: tuple[int, int] | None


def use_template(tokenizer: Any, name: str) -> None:
    """Give a tokenizer the chat template of this name; "tokenizer" leaves it its own.

    Raises:
        DataError: the name is unknown, or the tokenizer lacks what the template needs.
    """
    if name == "tokenizer":
        if not tokenizer.chat_template:
            raise DataError(
                f"this tokenizer has no chat template of its own; choose a template: {', '.join(TEMPLATES)}"
            )
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
    """What a template writes around messages of certain roles.

    Attributes:
        parts: before the first message, and after each.
        leads: for each answer, the characters between the prompt of inference and its first one, such as a space.
    """

    parts: list[str]
    leads: dict[int, int]


class Template:
    """Lays conversations out by the chat template of a tokenizer.

    Messages are found by rendering the template once for each sequence of roles with names in place of the messages.
    So the places are exact for any template, and one that changes messages is noticed.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        # The begin token may follow an answer too, where the next turn begins; it ends none.
        ends = {str(token) for token in tokenizer.added_tokens_decoder.values()} | {tokenizer.eos_token}
        ends -= {None} if tokenizer.bos_token == tokenizer.eos_token else {None, tokenizer.bos_token}
        longest_first = sorted(ends, key=len, reverse=True)
        self._end = re.compile(rf"\s*(?:{'|'.join(map(re.escape, longest_first))})") if ends else None
        self._frames: dict[tuple[str, ...], _Frame] = {}

    def lay_out(self, example: Example) -> Layout:
        """Put an example into the template.

        Raises:
            BrokenRecordError: the template does not take such conversations, or changes their messages.
            DataError: it writes nothing after an answer by which the model would learn to stop.
        """
        roles = tuple(turn.role for turn in example.turns)
        if roles not in self._frames:
            self._frames[roles] = self._frame(roles)
        frame = self._frames[roles]
        text = frame.parts[0]
        answers = []
        document = None
        for index, (turn, after) in enumerate(zip(example.turns, frame.parts[1:], strict=True)):
            start = len(text)
            text += turn.text + after
            if turn.role == "assistant":
                end = self._end.match(after) if self._end else None
                stop = start + len(turn.text) + (end.end() if end else 0)
                answers.append((start - frame.leads[index], stop))
            if example.document is not None and example.document[0] == index:
                document = (start + example.document[1], start + example.document[2])
        if text != self._render([turn.text for turn in example.turns], roles):
            raise BrokenRecordError("has messages that the chat template changes")
        return Layout(text, tuple(answers), document)

    def _frame(self, roles: tuple[str, ...]) -> "_Frame":
        names = [f"(message {index} of the frame)" for index in range(len(roles))]
        rendered = self._render(names, roles)
        parts = re.split("|".join(map(re.escape, names)), rendered)
        if re.findall(r"\(message \d+ of the frame\)", rendered) != names:
            raise BrokenRecordError("has messages that the chat template leaves out, repeats or moves")
        if self._end is None or not self._end.match(parts[-1]):
            raise DataError(
                "the tokenizer's chat template writes no end token after an answer, so the model would not learn to "
                f"stop; choose a template: {', '.join(TEMPLATES)}"
            )
        leads = {}
        for index in (index for index, role in enumerate(roles) if role == "assistant"):
            prompt = self._render(names[:index], roles[:index], add_generation_prompt=True)
            before = rendered[: rendered.index(names[index])]
            leads[index] = len(before) - len(prompt) if before.startswith(prompt) else 0
        return _Frame(parts, leads)

    def _render(self, texts: list[str], roles: tuple[str, ...], add_generation_prompt: bool = False) -> str:
        messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=add_generation_prompt
                )
            )
        except TemplateError as error:
            reason = " ".join(str(error).split())[:200]
            raise BrokenRecordError(f"has messages that the chat template refuses: {reason}") from error
