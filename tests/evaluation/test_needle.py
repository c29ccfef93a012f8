"""Needles lie where they should, in real prose of exact length, and all of them have to be answered."""

import json
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_kinds import KINDS, make
from typer.testing import CliRunner

from lengthen.cli.eval import app
from lengthen.errors import DataError, LengthenError
from lengthen.evaluation.haystack import Haystack, documentation
from lengthen.evaluation.needle import MOST_NEEDLES, needle_trial
from lengthen.evaluation.retrieval import ANSWER_TOKENS, Trial, _count

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


@settings(deadline=None, max_examples=50)
@given(
    kind=st.sampled_from(KINDS),
    tokens=st.integers(1000, 2500),
    depth=st.floats(0, 1),
    needles=st.integers(1, 4),
    seed=st.integers(0, 10**6),
)
def test_prompts_are_exact_in_length_and_depth(tokenizers, haystacks, kind, tokens, depth, needles, seed):
    tokenizer = tokenizers[kind]
    trial = needle_trial(tokenizer, haystacks[kind], tokens, depth, needles, random.Random(seed))
    assert len(trial.ids) == tokens - needles * ANSWER_TOKENS
    text = tokenizer.decode(trial.ids, skip_special_tokens=True)
    facts = list(FACT.finditer(text))
    assert [fact[2] for fact in facts] == trial.expected
    cities = [fact[1] for fact in facts]
    assert len(set(cities)) == needles
    question = text.rsplit("\n", 1)[1]
    assert re.findall(r"[A-Z]\w+", question.split("?")[0])[1:] == cities, "asked in the order of the text"
    assert question.endswith((" is", " are"))
    prose = FACT.sub("\x00", text).split("\n", 1)[1].rsplit("\n", 1)[0]
    pieces = [tokens_of(tokenizer, piece) for piece in prose.split("\x00")]
    whole = sum(pieces)
    for i in range(needles):
        expected = depth + (1 - depth) * i / needles
        # A fortieth of the haystack to the next sentence, and a few tokens of line ends.
        assert sum(pieces[: i + 1]) == pytest.approx(expected * whole, abs=whole / 40 + 6 * needles)


def test_most_needles_stand_between_sentences(tokenizers, haystacks):
    tokenizer, haystack = tokenizers["tiny"], haystacks["tiny"]
    clean = 0
    for seed in range(20):
        trial = needle_trial(tokenizer, haystack, 2048, 0.5, 1, random.Random(seed))
        before = FACT.split(tokenizer.decode(trial.ids, skip_special_tokens=True))[0]
        clean += before.rstrip()[-1:] in (".", "!", "?") or before.endswith("\n")
    assert clean >= 16


def test_the_haystack_differs_between_trials_and_repeats_where_it_is_short(tokenizers, haystacks):
    tokenizer = tokenizers["tiny"]
    first, again, other = (
        needle_trial(tokenizer, haystacks["tiny"], 600, 0.5, 1, random.Random(seed)) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    short = Haystack(tokenizer, "Rain fell on the roof. Nobody came. ")
    text = tokenizer.decode(needle_trial(tokenizer, short, 600, 0.5, 1, random.Random(0)).ids)
    assert text.count("Nobody came.") > 20


def test_a_trial_is_correct_if_all_numbers_are_right_in_their_order():
    trials = [Trial([], ["11111", "22222"])] * 5
    texts = ["11111 and 22222.", "22222 and 11111", "11111", "111112 22222", ""]
    cell = _count(256, 0.5, trials, texts)
    assert (cell.correct, cell.trials) == (1, 5)
    assert cell.found == pytest.approx((2 + 0 + 1 + 1 + 0) / 10)


def invoke(*arguments):
    return CliRunner().invoke(app, ["needle", *map(str, arguments)], env={"COLUMNS": "120"})


def test_the_command_writes_what_was_searched_and_how(tmp_path):
    prose = tmp_path / "prose.txt"
    prose.write_text("It was late. " * 20, encoding="utf-8")
    out = tmp_path / "needle.json"
    ran = invoke(
        *("tiny", "--lengths", "200", "--depths", "0,1", "--trials", 3, "--batch-size", 2, "--needles", 2),
        *("--haystack", prose, "--json", out, "--quiet"),
    )
    assert ran.exit_code == 0, ran.output
    content = json.loads(out.read_text(encoding="utf-8"))
    assert content["haystack"]["source"] == str(prose)
    assert content["haystack"]["tokens"] > 50
    assert content["needles"] == 2
    assert content["answer_tokens"] == 2 * ANSWER_TOKENS
    assert [(r["tokens"], r["depth"], r["trials"]) for r in content["results"]] == [(200, 0, 3), (200, 1, 3)]
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "it repeats" in ran.stderr


def test_the_default_haystack_is_named(tmp_path):
    out = tmp_path / "needle.json"
    ran = invoke("tiny", "--lengths", "200", "--depths", "0.5", "--trials", 1, "--json", out, "--quiet")
    assert ran.exit_code == 0, ran.output
    source = json.loads(out.read_text(encoding="utf-8"))["haystack"]["source"]
    assert "Python" in source
    assert source in ran.stderr
    assert "it repeats" not in ran.stderr


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (["--lengths", "60"], DataError, "at least"),
        (["--lengths", "256", "--needles", MOST_NEEDLES + 1], LengthenError, str(MOST_NEEDLES)),
        (["--lengths", "256", "--haystack", "no-such-file.txt"], DataError, "no-such-file.txt"),
    ],
)
def test_what_can_not_be_measured_is_the_user_s_error(arguments, kind, message):
    ran = invoke("tiny", "--depths", "0", "--trials", 1, *arguments)
    assert isinstance(ran.exception, kind)
    assert message in str(ran.exception)
