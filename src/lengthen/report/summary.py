"""The key numbers of a run, and what they say in plain words."""

from typing import NamedTuple

from lengthen.evaluation.plot import right_answers
from lengthen.report.html import Html, element, joined
from lengthen.report.numbers import as_duration, as_perplexity, as_share
from lengthen.report.parts import METHODS, from_to, own_results, trained_parameters, training_seconds
from lengthen.report.perplexity import Group, perplexity_groups
from lengthen.report.results import EXTENDED, Run
from lengthen.report.scores import effective_sentence
from lengthen.report.usable import usable_sentence

__all__ = ["summary"]


class _Fact(NamedTuple):
    name: str
    value: str
    unit: str
    sentence: str


def summary(run: Run) -> Html:
    """The key numbers, and what they say in plain words."""
    facts = [*_usable(run), _extension(run)]
    facts += [found for kind in ("passkey", "needle") for found in _retrieval(run, kind)]
    facts += _effective_context(run)
    facts += [_perplexity(group, run.base["context"]) for group in perplexity_groups(run)[:1]]
    said = [fact.sentence for fact in facts] + ([] if run.is_finished else ["The run is not finished."])
    return joined(
        element("dl", *(_tile(fact) for fact in facts), class_="facts"),
        element("ul", *(element("li", sentence) for sentence in said), class_="lead"),
    )


def _tile(fact: _Fact) -> Html:
    value = element("dd", element("b", fact.value), " ", element("span", fact.unit))
    return element("div", element("dt", fact.name), value)


def _usable(run: Run) -> list[_Fact]:
    """Of the newest comparison with the base."""
    facts = []
    for evaluation in own_results(run, "compare")[-1:]:
        tokens = evaluation.content["verdict"]["usable"]
        value, unit = (f"{tokens:,}", "tokens") if tokens else ("none", "of the tested lengths")
        facts.append(_Fact("usable context", value, unit, usable_sentence(evaluation.content)))
    return facts


def _extension(run: Run) -> _Fact:
    target, context = run.recipe.context.target, run.base["context"]
    how_far = f" from {context:,} to {target:,} tokens ({target / context:.3g} times)" if context else f" to {target:,}"
    sentence = f"This run extends {run.base['id']}{how_far} with {METHODS[run.recipe.context.method]}."
    parameters = run.about.get("trainable")
    if parameters:
        trained = trained_parameters(parameters)
        sentence += f" It trains {trained:,} parameters, {as_share(trained, parameters['total'])} of the model."
    if run.metrics:
        sentence += f" Training took {as_duration(training_seconds(run.metrics))}."
    return _Fact("context", from_to(run), "tokens", sentence)


def _perplexity(group: Group, context: int | None) -> _Fact:
    own, base = group.points[EXTENDED], group.points.get("base", {})
    longest = max(own)
    now = as_perplexity(own[longest]["perplexity"])
    value, sentence = now, f"Given {longest:,} tokens its perplexity is {now}"
    if longest in base:
        before = as_perplexity(base[longest]["perplexity"])
        value, sentence = f"{before} \u2192 {now}", f"{sentence}, where the base has {before}"
    if context in base and context in own and context != longest:
        short, short_before = (as_perplexity(points[context]["perplexity"]) for points in (own, base))
        sentence += f"; given {context:,} tokens it is {short}, and the base's {short_before}"
    return _Fact("perplexity", value, f"at {longest:,} tokens", sentence + ".")


def _retrieval(run: Run, kind: str) -> list[_Fact]:
    """Of the newest file."""
    facts = []
    for evaluation in own_results(run, kind)[-1:]:
        cells = evaluation.content["results"]
        correct, trials = sum(map(right_answers, cells)), sum(cell["trials"] for cell in cells)
        longest = max(cell["tokens"] for cell in cells)
        sentence = f"It answers {correct:,} of {trials:,} {kind} questions right in texts of up to {longest:,} tokens."
        facts.append(_Fact(kind, as_share(correct, trials), f"right, up to {longest:,} tokens", sentence))
    return facts


def _effective_context(run: Run) -> list[_Fact]:
    """Of the newest file."""
    facts = []
    for evaluation in own_results(run, "ruler")[-1:]:
        if evaluation.content.get("threshold") is not None:
            effective = evaluation.content.get("effective_context")
            value = f"{effective:,}" if effective else "none"
            facts.append(_Fact("effective context", value, "tokens, by RULER", effective_sentence(evaluation)))
    return facts
