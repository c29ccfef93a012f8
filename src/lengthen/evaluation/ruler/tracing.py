"""RULER's variable tracking: one chain of assignments, hidden in noise."""

import string
from collections.abc import Callable
from itertools import pairwise
from random import Random

from lengthen.evaluation.haystack import NOISE
from lengthen.evaluation.ruler.prompt_builder import PromptBuilder
from lengthen.evaluation.ruler.retrieval import spread

__all__ = ["variable_tracking"]

_HOPS = 4
_TEMPLATE = """Track the chain of variable assignments hidden in the text below.

{context}
Question: Which variables are assigned the value {value} in the text above? Answer: By the chain of assignments in the \
text above, {count} variables are assigned the value {value}; they are:"""

# The solved example before the question: lines of noise, at lengths from 4096 tokens on and at shorter ones.
_EXAMPLE_NOISE, _SHORT_EXAMPLE_NOISE = 10, 2
_PUBLISHED_FROM = 4096


def variable_tracking(rng: Random, tokens: int) -> PromptBuilder:
    """A sample of variable tracking for a length of `tokens`; an item is a line of noise.

    Args:
        rng: draws names, values and depths.
        tokens: of prompt and answer.
    """
    noise = _EXAMPLE_NOISE if tokens >= _PUBLISHED_FROM else _SHORT_EXAMPLE_NOISE
    example_variables, example = _chain(rng, name_length=3)
    solved = example(noise, 0, 0) + " " + " ".join(example_variables) + "\n\n"
    variables, question = _chain(rng, name_length=5)
    return PromptBuilder(
        tuple(variables),
        lambda n_items, n_chars, n_dots: solved + question(n_items, n_chars, n_dots),
        least_items=0,
        most_items=2**31,
        max_chars=len(_FILLER),
    )


_FILLER = "\n".join([*[NOISE] * 9, ""])


def _chain(rng: Random, name_length: int) -> tuple[list[str], Callable[[int, int, int], str]]:
    """The variables of a new chain, and the question about it (see `PromptBuilder.render`)."""
    variables: list[str] = []
    while len(variables) <= _HOPS:
        name = "".join(rng.choices(string.ascii_uppercase, k=name_length))
        if name not in variables:
            variables.append(name)
    value = str(rng.randint(10_000, 99_999))
    statements = [f"VAR {variables[0]} = {value}"]
    statements += [f"VAR {name} = VAR {earlier}" for earlier, name in pairwise(variables)]
    depths = sorted(rng.random() for _ in statements)

    def question(n_items: int, n_chars: int, n_dots: int) -> str:
        cut = ". " * n_dots + _FILLER[len(_FILLER) - n_chars :]
        context = cut + "\n".join(spread([NOISE] * n_items, statements, depths))
        return _TEMPLATE.format(context=context, value=value, count=len(variables))

    return variables, question
