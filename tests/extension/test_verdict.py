"""What an extension came to, in five lines."""

from pathlib import Path

import pytest
from transformers import LlamaConfig

import report_files
from lengthen.extension import ExtendRequest
from lengthen.extension.draft import draft
from lengthen.extension.verdict import make_verdict


@pytest.fixture
def judged():
    """A function that makes the verdict on a comparison of needles at 128 and 2,048 tokens."""

    def judge(**numbers):
        request = ExtendRequest("base", 2048, ("books",))
        found = report_files.compare("run", "base", **numbers)
        return make_verdict(found, draft(request, LlamaConfig()), request, Path("out"), {"train": 60.0}, None)

    return judge


def test_what_keeps_and_reaches_everything_is_good_and_needs_no_advice(judged):
    said = judged(run=0.9)
    assert said.lines[0] == "usable up to 2,048 tokens (base: 128)"
    assert said.lines[2] == "short ability: kept (needle at 128, perplexity)"
    assert said.is_good
    assert said.advice == ()


def test_what_is_lost_says_how_to_lose_less(judged):
    said = judged(run=0.1, high=-0.1)
    assert said.lines[2] == "short ability: lost needle at 128"
    assert not said.is_good
    assert any("--adapter-scale 0.5" in advice for advice in said.advice)


def test_a_single_prompt_decides_nothing(judged):
    said = judged(run=0.0, low=None, high=None)
    assert said.lines[2] == "short ability: undecided needle at 128 (too few prompts or documents to tell)"
    assert not said.is_good
    assert said.advice[0].startswith("measure more, to decide what is undecided: lengthen eval compare out --trials 20")
