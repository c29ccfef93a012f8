"""A conversation about documents, without a terminal or a page around it.

Documents stand before the next question, in its message, so what was read before stays where it is and is not read
again: a turn costs the tokens that it adds.
"""

import time
from collections.abc import Callable, Generator
from dataclasses import asdict
from itertools import islice
from typing import Any, Literal

from lengthen.chat.turns import ChatPrompt, ChatTurn, Loaded, Reply
from lengthen.data.control_tokens import ControlTokenError, ControlTokens
from lengthen.data.instruct.templates import TEMPLATES, use_template
from lengthen.data.truncate import cut_middle
from lengthen.decoding.detokenize import IncrementalDetokenizer
from lengthen.decoding.generate import Reader
from lengthen.decoding.sampling import SamplingParams
from lengthen.decoding.stop import check_length, eos_token_ids
from lengthen.decoding.streaming import Streaming
from lengthen.errors import DataError
from lengthen.upstream import chat_prompt

__all__ = ["ChatSession", "DoesNotFitError"]

_ANSWER = "(an answer)"


class DoesNotFitError(DataError):
    """A document leaves no room in the context; the caller knows the ways to handle it, and names them."""


class ChatSession:
    """One conversation with a model; several sessions may share the model, one call at a time.

    Args:
        model: from `lengthen.load`.
        tokenizer: its tokenizer; gets the chat template.
        context: tokens of prompt and answer, at most.
        template: name of a prompt template of `lengthen.data.instruct`; default the tokenizer's own.
        streaming: attend to the first and the latest tokens only, without a limit on prompt and answer.

    Attributes:
        answers: of all turns so far.
        documents: what was loaded.

    Raises:
        DataError: there is no chat template, or the tokenizer lacks what it needs.
        ContextError, ModelError: `streaming` is not possible with this model (see `StreamingCache`).
    """

    def __init__(
        self, model: Any, tokenizer: Any, context: int, template: str | None = None, streaming: Streaming | None = None
    ):
        if template is None and not tokenizer.chat_template:
            raise DataError(
                "this model has no chat template, as base models that were not tuned on instructions; choose one by "
                f"`template`: {', '.join(TEMPLATES)}"
            )
        use_template(tokenizer, template or "tokenizer")
        self._tokenizer, self._context, self._streaming = tokenizer, context, streaming
        self._reader = Reader(model, streaming)
        self._end_text, end_token = _end_of_answers(tokenizer)
        self._ends = eos_token_ids(model, tokenizer) | ({end_token} if end_token is not None else set())
        # All texts below have its marks where they spell control tokens.
        self._control = ControlTokens(tokenizer)
        self._turns: list[ChatTurn] = []
        self._texts: dict[str, str] = {}
        self._waiting: list[str] = []  # names of documents that no message holds yet
        self.documents: list[Loaded] = []

    @property
    def answers(self) -> list[Reply]:
        """The answers of all turns so far."""
        return [turn.answer for turn in self._turns]

    @property
    def cached(self) -> int:
        """Tokens whose keys and values are held in memory."""
        return self._reader.cached

    def load(self, name: str, text: str, room: int | None = None) -> Loaded:
        """Put a document before the next question.

        Args:
            name: stands before the text.
            text: the document.
            room: cut as much out of the middle as has to go so that this many tokens stay free for questions and
                answers; None refuses a document that does not fit.

        Raises:
            DataError: it is empty, does not fit (`DoesNotFitError`), or has the name of another one.
        """
        if not text.strip():
            raise DataError(f"{name} is empty; give a document with text")
        if name in self._texts:
            raise DataError(f"a document {name} is loaded already; give this one another name, or reset all")
        text, defused = self._shielded(text, name), self._control.count(text)
        self._waiting.append(name)
        try:
            self._texts[name], cut = self._fitted(name, text, room)
        except DataError:
            self._waiting.remove(name)
            del self._texts[name]
            raise
        self.documents.append(Loaded(name, self._count(self._texts[name]), cut, defused))
        return self.documents[-1]

    def prompt(self, question: str) -> ChatPrompt:
        """The prompt if this were asked now.

        Args:
            question: may be empty, for the documents and the conversation alone.

        Raises:
            DataError: the question holds a control token that can't be made plain text.
        """
        documents = (f"[document {name}]\n{self._texts[name]}\n[end of document]\n\n" for name in self._waiting)
        message = "".join(documents) + self._shielded(question, "the question")
        messages = []
        for turn in self._turns:
            messages += [{"role": "user", "content": turn.prompt.message}]
            messages += [{"role": "assistant", "content": self._control.shield(turn.answer.text)}]
        prompt = _render(self._tokenizer, [*messages, {"role": "user", "content": message}])
        if self._streaming is not None and self._turns:
            continued = self._continued(prompt)
            if continued is not None:
                return ChatPrompt(message, prompt, continued)
        return ChatPrompt(message, prompt, self._encode(prompt))

    def tokens(self, question: str = "") -> tuple[int, int | None]:
        """How many tokens `prompt` has, and the limit of prompt and answer (None if streaming).

        Args:
            question: as in `prompt`.

        Raises:
            DataError: as `prompt`.
        """
        return len(self.prompt(question).ids), None if self._streaming else self._context

    def stream(
        self,
        question: str,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        seed: int = 0,
        on_read: Callable[[int, int], None] = lambda _done, _total: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Generator[str, None, Reply]:
        """Ask, and yield the answer piece by piece.

        Closing the generator stops the answer too. A stopped answer stays in the conversation as far as it came; one
        without a token leaves nothing, but what was read stays read.

        Args:
            question: not empty.
            max_new_tokens: at most this many, and no more than the context leaves.
            temperature: 0 takes the likeliest token each time; above 0 draws from the whole distribution.
            seed: of the draws.
            on_read: called with the tokens of the prompt that are read and all of them, first with those that were
                read in earlier turns.
            should_stop: asked after each chunk that is read and each token.

        Returns:
            The `Reply`, as the generator's value.

        Raises:
            DataError: the question is empty, or leaves no room for an answer.
            LengthenError: a negative temperature or no tokens asked for.
        """
        sampling = SamplingParams(temperature=temperature, seed=seed)
        check_length(max_new_tokens)
        sampling.check()
        if not question.strip():
            raise DataError("the question is empty; ask something")
        prompt = self.prompt(question)
        ids = prompt.ids
        room = max_new_tokens if self._streaming else min(max_new_tokens, self._context - len(ids))
        if room < 1:
            raise DataError(
                f"the question, with all before it, has {len(ids):,} tokens, and the context is {self._context:,}; "
                "reset the conversation, or load less"
            )
        started, read = time.perf_counter(), len(ids) - self._reader.shared(ids)
        text, new = IncrementalDetokenizer(self._tokenizer, ids), []
        end: Literal["finished", "max_new_tokens", "context", "stopped"] = "stopped"
        try:
            if self._reader.prefill(ids, on_read, should_stop):
                for token in islice(self._reader.decode(ids[-1], sampling), room):
                    new.append(token)
                    if token in self._ends:
                        end = "finished"
                        break
                    yield from filter(None, [text.push(token)])
                    if should_stop():
                        break
                else:
                    end = "max_new_tokens" if room == max_new_tokens else "context"
                yield from filter(None, [text.end()])
        finally:
            seconds = round(time.perf_counter() - started, 3)
            answer = Reply(question, text.text.strip(), len(ids), read, len(new), seconds, end)
            if new:
                self._turns.append(ChatTurn(prompt, ids + new, answer))
                self._waiting = []
        return answer

    def ask(
        self,
        question: str,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        seed: int = 0,
        on_text: Callable[[str], None] = lambda _text: None,
        on_read: Callable[[int, int], None] = lambda _done, _total: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Reply:
        """As `stream`, with each piece given to `on_text`; returns the answer when it is whole or stopped.

        Args:
            question, max_new_tokens, temperature, seed, on_read, should_stop: as in `stream`.
            on_text: called with each piece of the answer.

        Raises:
            DataError: the question is empty, or leaves no room for an answer.
            LengthenError: a negative temperature or no tokens asked for.
        """
        pieces = self.stream(question, max_new_tokens, temperature, seed, on_read, should_stop)
        while True:
            try:
                on_text(next(pieces))
            except StopIteration as stopped:
                answer: Reply = stopped.value
                return answer

    def reset(self, documents: bool = False) -> None:
        """Forget the conversation; the documents stand before the next question again, unless they are dropped too."""
        self._turns = []
        if documents:
            self._texts, self.documents = {}, []
        self._waiting = list(self._texts)

    def to_json(self) -> dict[str, Any]:
        """The settings, documents and turns as a JSON object."""
        return {
            "context": self._context,
            "streaming": None if self._streaming is None else asdict(self._streaming),
            "documents": [asdict(document) for document in self.documents],
            "results": [asdict(answer) for answer in self.answers],
        }

    def _continued(self, prompt: str) -> list[int] | None:
        """The tokens of the conversation as they were read and written, and those of `prompt` after them.

        A streaming cache can't go back, not even by one token that another tokenization of the answer would change.
        None where the template has changed what was before, or the tokenizer does not tell where tokens begin.
        """
        turn = self._turns[-1]
        said = self._control.shield(turn.answer.text)
        start = prompt.find(said, len(turn.prompt.text))
        if not prompt.startswith(turn.prompt.text) or start < 0 or prompt[len(turn.prompt.text) : start].strip():
            return None
        stop = start + len(said)
        end = prompt.find(self._end_text, stop)
        if turn.answer.end == "finished" and end >= 0 and not prompt[stop:end].strip():
            stop = end + len(self._end_text)
        if not self._tokenizer.is_fast:
            return None
        pairs = zip(*self._control.encode(prompt), strict=True)
        return turn.ids + [token for token, (begin, _) in pairs if begin >= stop]

    def _fitted(self, name: str, text: str, room: int | None) -> tuple[str, int]:
        """The text with as much cut out as `room` asks for, and how many tokens that is."""
        self._texts[name] = text
        used, limit = self.tokens()
        excess = 0 if limit is None else used + (1 if room is None else room) - limit
        if excess <= 0:
            return text, 0
        if room is None:
            raise DoesNotFitError(
                f"{name} does not fit: with it, the prompt has {used:,} tokens, and the context is {limit:,}"
            )
        if not self._tokenizer.is_fast:
            raise DataError(
                f"{type(self._tokenizer).__name__} can't tell where tokens are in a text, as cutting it needs; load a "
                "shorter document"
            )

        def excess_without(left: int, right: int, tokens: int) -> int:
            mark = f"\n\n[{tokens:,} tokens of the document are left out here]\n\n"
            self._texts[name] = text[:left] + mark + text[right:]
            return self.tokens()[0] + room - self._context

        cut = cut_middle(self._control.encode(text)[1].tolist(), excess, excess_without)
        if cut is not None:
            return self._texts[name], cut[2]
        raise DataError(
            f"{name} can't be cut to fit: {self._context:,} tokens of context are too few beside what is loaded and "
            f"{room:,} tokens of room for questions and answers; ask for shorter answers, or reset"
        )

    def _count(self, text: str) -> int:
        return len(self._encode(text))

    def _encode(self, text: str) -> list[int]:
        return self._control.ids(text)

    def _shielded(self, text: str, name: str) -> str:
        try:
            return str(self._control.shield(text))
        except ControlTokenError as error:
            raise DataError(f"{name} {error}; take it out") from error


def _render(tokenizer: Any, messages: list[dict[str, str]], prompt: bool = True) -> str:
    return str(chat_prompt(tokenizer, messages, tokenize=False, add_generation_prompt=prompt))


def _end_of_answers(tokenizer: Any) -> tuple[str, int | None]:
    """The token that the template writes after an answer, as text and id; else the tokenizer's end token."""
    messages = [{"role": "user", "content": "(a question)"}, {"role": "assistant", "content": _ANSWER}]
    after = _render(tokenizer, messages, prompt=False).rpartition(_ANSWER)[2].lstrip()
    special = {str(token): number for number, token in tokenizer.added_tokens_decoder.items()}
    found = max((token for token in special if after.startswith(token)), key=len, default=None)
    if found is None:
        return tokenizer.eos_token or "", tokenizer.eos_token_id
    return found, special[found]
