"""Parts of tensors that processes exchange while something else is computed, and their gradients on the way back."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from lengthen.attention.layout import Messages, Shard

__all__ = ["ALL", "Exchange", "Part"]


class Part(NamedTuple):
    """A part of one of an exchange's tensors (B, heads, tokens, D)."""

    tensor: int
    rows: slice
    heads: slice
    tokens: slice

    def of(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """The part, a view.

        Args:
            tensors: of the exchange.
        """
        return tensors[self.tensor][self.rows, self.heads, self.tokens]


ALL = slice(None)
"""Of a dimension of a part."""


class Exchange:
    """Parts of tensors that go to other processes, and come from them; their gradients go the other way.

    Each transfer is started, something else is computed, and then it is finished.

    Args:
        shard: of this process.
        tensors: that are given.
        shapes: of those that are made; what nothing is put into is zero.
        keep: parts of the given tensors, and of the made ones where they go.
        send: parts of the given tensors by who gets them.
        receive: parts of the made tensors by who sends them.
    """

    def __init__(
        self,
        shard: Shard,
        tensors: Sequence[torch.Tensor],
        shapes: Sequence[tuple[int, ...]],
        keep: Sequence[tuple[Part, Part]],
        send: dict[int, list[Part]],
        receive: dict[int, list[Part]],
    ):
        self._transport, self._tensors = shard.transport, tensors
        self._given = [torch.empty_like(x, device="meta") for x in tensors]
        self._made = [x.new_empty(shape) for x, shape in zip(self._given, shapes, strict=True)]
        self._keep, self._send, self._receive = keep, send, receive
        self._messages: Messages = {}
        self._wait: Callable[[], None] | None = None

    def begin(self) -> tuple[torch.Tensor, ...]:
        """Begin the way forward.

        Returns:
            What `end` takes.
        """
        tensors, self._tensors = self._tensors, ()
        return _Begin.apply(self, *tensors)

    def end(self, begun: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """End the way forward.

        Args:
            begun: what `begin` gave.

        Returns:
            The tensors that are made.
        """
        return _End.apply(self, *begun)

    def _send_given(self, given: Sequence[torch.Tensor]) -> None:
        """Begin the way forward."""
        self._start(given, self._send, self._made, self._receive)

    def _make(self, given: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """End the way forward."""
        made = tuple(torch.zeros_like(x, device=given[0].device) for x in self._made)
        for source, target in self._keep:
            target.of(made).copy_(source.of(given))
        for part, values in self._received(self._receive, made):
            part.of(made).copy_(values)
        return made

    def _send_gradients(self, grads: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Begin the way back; the gradients of what stayed here."""
        self._start(grads, self._receive, self._given, self._send)
        own = tuple(torch.zeros_like(x, device=grads[0].device) for x in self._given)
        for source, target in self._keep:
            source.of(own).copy_(target.of(grads))
        return own

    def _add_gradients(self, own: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """End the way back: add the gradients of what went to others."""
        for part, values in self._received(self._send, own):
            part.of(own).add_(values)
        return own

    def _start(
        self,
        tensors: Sequence[torch.Tensor],
        send: dict[int, list[Part]],
        wanted: Sequence[torch.Tensor],
        receive: dict[int, list[Part]],
    ) -> None:
        messages = {other: torch.cat([part.of(tensors).reshape(-1) for part in parts]) for other, parts in send.items()}
        self._messages = {
            other: tensors[0].new_empty(sum(part.of(wanted).numel() for part in parts))
            for other, parts in receive.items()
        }
        self._wait = self._transport(messages, self._messages)

    def _received(
        self, parts: dict[int, list[Part]], tensors: Sequence[torch.Tensor]
    ) -> Iterator[tuple[Part, torch.Tensor]]:
        assert self._wait is not None
        self._wait()
        messages, self._messages, self._wait = self._messages, {}, None
        for other, message in messages.items():
            shapes = [part.of(tensors).shape for part in parts[other]]
            values = message.split([shape.numel() for shape in shapes])
            yield from ((part, x.view(shape)) for part, x, shape in zip(parts[other], values, shapes, strict=True))


class _Begin(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, exchange: Exchange, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.exchange = exchange
        exchange._send_given(given)
        return tuple(x.view_as(x) for x in given)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        return None, *ctx.exchange._add_gradients(grads)


class _End(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, exchange: Exchange, *begun: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.exchange = exchange
        return exchange._make(begun)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        return None, *ctx.exchange._send_gradients(grads)
