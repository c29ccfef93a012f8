"""Needles lie where they should, in real prose of exact length, and each of them is asked for."""

import json
import random
import re
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_kinds import KINDS, make

import command_line
from lengthen.errors import DataError, LengthenError
from lengthen.evaluation.answers import ScoredAnswer
from lengthen.evaluation.haystack import Haystack, documentation
from lengthen.evaluation.prompts import Question
from lengthen.evaluation.retrieval.grid import ANSWER_TOKENS, count_cell
from lengthen.evaluation.retrieval.needle import MOST_NEEDLES, needle_prompt

FACT = re.compile(r"\nThe magic number of (\w+) is ([0-9]{5})\.\n")


@pytest.fixture(scope="module")
def tokenizers():
    return {kind: make(kind) for kind in KINDS}


@pytest.fixture(scope="module")
def haystacks(tokenizers):
    _, text = documentation()
    return {kind: Haystack(tokenizer, text[:60_000]) for kind, tokenizer in tokenizers.items()}


def tokens_of(tokenizer, text):
    return len(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else 0


def text_of(tokenizer, prompt, place=0):
    return tokenizer.decode(prompt.context + prompt.questions[place].ids, skip_special_tokens=True)


@given(
    kind=st.sampled_from(KINDS),
    tokens=st.integers(1000, 2500),
    depths=st.lists(st.floats(0, 1), min_size=1, max_size=4, unique=True),
    seed=st.integers(0, 10**6),
)
def test_prompts_are_exact_in_length_and_depth(tokenizers, haystacks, kind, tokens, depths, seed):
    tokenizer = tokenizers[kind]
    prompt = needle_prompt(tokenizer, haystacks[kind], tokens, depths, random.Random(seed))
    lengths = [len(prompt.context) + len(question.ids) for question in prompt.questions]
    assert max(lengths) == prompt.tokens == tokens - ANSWER_TOKENS
    texts = [text_of(tokenizer, prompt, place) for place in range(len(depths))]
    facts = list(FACT.finditer(texts[0]))
    values = {fact[1]: fact[2] for fact in facts}
    assert len(values) == len(depths)
    asked = [re.search(r"magic number of (\w+) is$", text)[1] for text in texts]
    assert [values[city] for city in asked] == [question.expected for question in prompt.questions]
    in_text = sorted(range(len(depths)), key=lambda place: depths[place])
    assert [asked[place] for place in in_text] == [fact[1] for fact in facts], "in the order of their depths"
    prose = FACT.sub("\x00", texts[0]).split("\n", 1)[1].rsplit("\n", 1)[0]
    pieces = [tokens_of(tokenizer, piece) for piece in prose.split("\x00")]
    whole = sum(pieces)
    for i, depth in enumerate(sorted(depths)):
        # A fortieth of the haystack to the next sentence, and a few tokens of line ends.
        assert sum(pieces[: i + 1]) == pytest.approx(depth * whole, abs=whole / 40 + 6 * len(depths))


def test_most_needles_stand_between_sentences(tokenizers, haystacks):
    tokenizer, haystack = tokenizers["tiny"], haystacks["tiny"]
    clean = 0
    for seed in range(20):
        prompt = needle_prompt(tokenizer, haystack, 2048, [0.5], random.Random(seed))
        before = FACT.split(text_of(tokenizer, prompt))[0]
        clean += before.rstrip()[-1:] in (".", "!", "?") or before.endswith("\n")
    assert clean >= 16


def test_the_haystack_differs_between_trials_and_repeats_where_it_is_short(tokenizers, haystacks):
    tokenizer = tokenizers["tiny"]
    first, again, other = (
        needle_prompt(tokenizer, haystacks["tiny"], 600, [0.5], random.Random(seed)) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    short = Haystack(tokenizer, "Rain fell on the roof. Nobody came. ")
    text = text_of(tokenizer, needle_prompt(tokenizer, short, 600, [0.5], random.Random(0)))
    assert text.count("Nobody came.") > 20


def test_a_cell_counts_generated_answers_and_tokens():
    question = Question([1], [2, 3], "11111", [[0, 1]], [[2], [3]])
    made = [
        ScoredAnswer((0.1, 0.1), (True, True), (2,), " 11111."),
        ScoredAnswer((0.1, 2.1), (True, False), (2,), " 11112 or 11111"),
        ScoredAnswer((3.1, 0.5), (False, True), (2,), "it is 11111"),
    ]
    cell = count_cell(256, 0.5, [question] * 3, made)
    assert (cell.trials, cell.exact, cell.correct, cell.first_wrong) == (3, 1, 2, [1, 1])
    assert cell.nats == pytest.approx(1.0)
    assert cell.right_tokens == pytest.approx(2 / 3)
    alone = count_cell(256, 0.5, [question], [ScoredAnswer((0.1, 0.1), (True, True), (2,))])
    assert alone.correct is None


invoke = partial(command_line.invoke, "eval", "needle")
succeed = partial(command_line.succeed, "eval", "needle")


def test_the_command_writes_what_was_searched_and_how(tmp_path):
    prose = tmp_path / "prose.txt"
    prose.write_text("It was late. " * 20, encoding="utf-8")
    out = tmp_path / "needle.json"
    ran = succeed(
        *("tiny", "--lengths", "200", "--depths", "0,1", "--trials", 3, "--batch-size", 2, "--no-generate"),
        *("--haystack", prose, "--json", out, "--quiet"),
    )
    content = json.loads(out.read_text(encoding="utf-8"))
    assert content["haystack"]["source"] == str(prose)
    assert content["haystack"]["tokens"] > 50
    assert content["needles"] == 2, "one at each depth"
    assert content["answer_tokens"] == ANSWER_TOKENS
    assert {result["correct"] for result in content["results"]} == {None}
    assert [(r["tokens"], r["depth"], r["trials"]) for r in content["results"]] == [(200, 0, 3), (200, 1, 3)]
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "it repeats" in ran.stderr


def test_the_default_haystack_is_named(tmp_path):
    out = tmp_path / "needle.json"
    ran = succeed("tiny", "--lengths", "200", "--depths", "0.5", "--trials", 1, "--json", out, "--quiet")
    source = json.loads(out.read_text(encoding="utf-8"))["haystack"]["source"]
    assert "Python" in source
    assert source in ran.stderr
    assert "it repeats" not in ran.stderr


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (["--lengths", "60"], DataError, "at least"),
        (
            ["--lengths", "256", "--depths", ",".join(str(i / 20) for i in range(MOST_NEEDLES + 1))],
            LengthenError,
            str(MOST_NEEDLES),
        ),
        (["--lengths", "256", "--haystack", "no-such-file.txt"], DataError, "no-such-file.txt"),
    ],
)
def test_what_can_not_be_measured_is_the_user_s_error(arguments, kind, message):
    ran = invoke("tiny", "--depths", "0", "--trials", 1, *arguments)
    assert isinstance(ran.exception, kind)
    assert message in str(ran.exception)
