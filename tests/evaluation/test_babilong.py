"""BABILong's stories are answered by their own text, in order, in prose of exact length."""

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_kinds import KINDS, make

from lengthen.evaluation.haystack import Haystack, documentation
from lengthen.evaluation.retrieval.babilong import TASKS, babilong_prompt

MOVE = re.compile(r"(\w+) (?:went to|moved to|travelled to|journeyed to) the (\w+)\.")
TAKE = re.compile(r"(\w+) (?:picked up|took|grabbed) the (\w+)\.")
DROP = re.compile(r"(\w+) (?:put down|dropped|left) the (\w+)\.")
PEOPLE, THINGS = {"Mary", "John", "Daniel", "Sandra"}, {"apple", "football", "milk"}


@pytest.fixture(scope="module")
def tokenizers():
    return {kind: make(kind) for kind in KINDS}


@pytest.fixture(scope="module")
def haystacks(tokenizers):
    return {kind: Haystack(tokenizer, documentation()[1][:60_000]) for kind, tokenizer in tokenizers.items()}


def solve(facts, question):
    """Read the facts one by one, as a person would."""
    place, held, trail = {}, {}, {}
    for fact in facts:
        if (match := MOVE.fullmatch(fact)) is not None:
            place[match[1]] = match[2]
            for thing in (thing for thing, person in held.items() if person == match[1]):
                trail[thing].append(match[2])
        elif (match := TAKE.fullmatch(fact)) is not None:
            held[match[2]] = match[1]
            trail.setdefault(match[2], []).append(place[match[1]])
        else:
            match = DROP.fullmatch(fact)
            assert held.pop(match[2]) == match[1], "nobody drops what another one has"
    if (match := re.match(r"Where was the (\w+) before the (\w+)\?", question)) is not None:
        visited = [spot for i, spot in enumerate(trail[match[1]]) if i == 0 or spot != trail[match[1]][i - 1]]
        assert visited.count(match[2]) == 1, "else there would be two answers"
        return visited[visited.index(match[2]) - 1]
    asked = re.match(r"Where is (?:the )?(\w+)\?", question)[1]
    return trail[asked][-1] if asked in THINGS else place[asked]


@pytest.mark.parametrize("task", TASKS)
def test_the_answer_follows_from_the_facts(task):
    answers = []
    for seed in range(200):
        story = TASKS[task].story(random.Random(seed))
        assert solve(story.facts, story.question) == story.answer
        answers.append(story.answer)
    assert {answers.count(answer) > 10 for answer in set(answers)} == {True}, "every place is an answer"
    assert len(set(answers)) == TASKS[task].choices


@settings(max_examples=30)
@given(
    kind=st.sampled_from(KINDS), task=st.sampled_from(list(TASKS)), tokens=st.integers(1600, 2400),
    seed=st.integers(0, 10**6),
)  # fmt: skip
def test_prompts_are_exact_and_hold_the_facts_in_order(tokenizers, haystacks, kind, task, tokens, seed):
    tokenizer = tokenizers[kind]
    prompt = babilong_prompt(tokenizer, haystacks[kind], task, tokens, random.Random(seed))
    assert prompt.tokens == tokens - 8
    story = TASKS[task].story(random.Random(seed))
    text = tokenizer.decode(prompt.context + prompt.questions[0].ids, skip_special_tokens=True)
    lines = text.split("\n")
    facts = [line for line in lines if line.split(" ")[0] in PEOPLE and line in story.facts]
    assert facts == story.facts
    assert text.rstrip().endswith(story.question)
    assert prompt.questions[0].expected == story.answer
    assert len({question.expected for question in prompt.questions}) == len(prompt.questions) == TASKS[task].choices
