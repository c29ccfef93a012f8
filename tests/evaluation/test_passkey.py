"""Passkey prompts are exact in length and depth with any tokenizer, and the measurement can pass and fail."""

import json
import random
import re
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_kinds import KINDS, make

import command_line
import lengthen
from lengthen.errors import ContextError, DataError, LengthenError
from lengthen.evaluation.prompts import encode
from lengthen.evaluation.retrieval.grid import ANSWER_TOKENS
from lengthen.evaluation.retrieval.passkey import passkey, passkey_filler, passkey_prompt

KEY_LINE = re.compile(r"\nThe pass key is ([0-9]{5})\. Remember it\. ([0-9]{5}) is the pass key\.\n")
TRAINING_STEPS, LENGTH, DEPTHS, TRIALS = 60, 128, (0, 0.5, 1), 10
FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "


@pytest.fixture(scope="module")
def tokenizers():
    return {kind: make(kind) for kind in KINDS}


@pytest.fixture(scope="module")
def fillers(tokenizers):
    return {kind: passkey_filler(tokenizer) for kind, tokenizer in tokenizers.items()}


def ids_of(prompt):
    return prompt.context + prompt.questions[0].ids


@given(kind=st.sampled_from(KINDS), tokens=st.integers(420, 1200), depth=st.floats(0, 1), seed=st.integers(0, 10**6))
def test_prompts_are_the_published_text_of_exact_length_and_depth(tokenizers, fillers, kind, tokens, depth, seed):
    tokenizer = tokenizers[kind]
    trial = passkey_prompt(tokenizer, fillers[kind], tokens, depth, random.Random(seed))
    assert len(ids_of(trial)) == trial.tokens == tokens - ANSWER_TOKENS
    text = tokenizer.decode(ids_of(trial), skip_special_tokens=True)
    (line,) = KEY_LINE.finditer(text)
    assert [line[1], line[2]] == [trial.questions[0].expected] * 2
    task, before = text[: line.start()].split("\n", 1)
    after, question = text[line.end() :].split("\n", 1)
    assert task.startswith("There is an important info hidden inside a lot of irrelevant text.")
    assert question == "What is the pass key? The pass key is"
    assert (FILLER * 100).startswith(before)
    assert (FILLER * 100).startswith(after)
    sizes = [len(tokenizer(piece, add_special_tokens=False)["input_ids"]) if piece else 0 for piece in (before, after)]
    assert sizes[0] == pytest.approx(depth * sum(sizes), abs=4), "depth in tokens"


def test_keys_differ_between_trials_and_stay_with_a_seed(tokenizers, fillers):
    tokenizer, filler = tokenizers["tiny"], fillers["tiny"]
    trials = [passkey_prompt(tokenizer, filler, 256, 0.5, random.Random(seed)) for seed in (*range(20), 3)]
    assert len({trial.questions[0].expected for trial in trials}) >= 19
    assert trials[3] == trials[-1]


def test_too_short_says_the_least_length(tokenizers, fillers):
    tokenizer, filler = tokenizers["tiny"], fillers["tiny"]
    with pytest.raises(DataError, match="too short") as caught:
        passkey_prompt(tokenizer, filler, 40, 0.5, random.Random(0))
    least = int(re.search(r"at least (\d+)", str(caught.value))[1])
    assert len(passkey_prompt(tokenizer, filler, least, 0.5, random.Random(0)).context) + 1 == least - ANSWER_TOKENS


@pytest.fixture(scope="module")
def trained():
    """The shipped base, trained on prompts of one length at any depth, half of them with the 30 keys of seed 0."""
    torch.manual_seed(0)
    model, tokenizer = lengthen.load("tiny", "float32")
    filler, generator = passkey_filler(tokenizer), random.Random("training")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, TRAINING_STEPS)
    model.train()
    for _ in range(TRAINING_STEPS):
        measured = [f"0 {LENGTH} {generator.choice(DEPTHS)} {generator.randrange(TRIALS)}" for _ in range(4)]
        keys = [*map(random.Random, measured), *[generator] * 4]
        trials = [passkey_prompt(tokenizer, filler, LENGTH, generator.random(), key) for key in keys]
        optimizer.zero_grad()
        loss_of_answers(model, tokenizer, trials).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval(), tokenizer


def loss_of_answers(model, tokenizer, trials):
    """The mean loss of the answers' tokens; what pads them to one length is no label."""
    rows, labels = [], []
    for trial in trials:
        answer = encode(tokenizer, f"is {trial.questions[0].expected}.")[len(encode(tokenizer, "is")) :]
        padding = ANSWER_TOKENS - len(answer)
        rows.append(ids_of(trial) + answer + [0] * padding)
        labels.append(answer + [-100] * padding)
    logits = model(input_ids=torch.tensor(rows), logits_to_keep=ANSWER_TOKENS + 1).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(labels).flatten())


def test_a_model_that_learned_it_finds_every_key_in_range_and_few_far_beyond(trained):
    cells = passkey(*trained, [LENGTH], DEPTHS, TRIALS, batch_size=TRIALS)
    assert [(cell.tokens, cell.depth) for cell in cells] == [(LENGTH, depth) for depth in DEPTHS]
    assert [cell.correct for cell in cells] == [TRIALS] * 3
    assert [cell.exact for cell in cells] == [TRIALS] * 3
    assert [cell.right_tokens for cell in cells] == [1] * 3
    assert all(sum(cell.first_wrong) == 0 and cell.nats < 0.3 for cell in cells)
    (beyond,) = passkey(*trained, [1024], [0.5], TRIALS, batch_size=TRIALS)
    assert beyond.correct <= TRIALS // 3, "four times the context of the base"


def test_it_finds_most_keys_that_it_never_saw(trained):
    cells = passkey(*trained, [LENGTH], DEPTHS, TRIALS, batch_size=TRIALS, seed=1)
    assert sum(cell.correct for cell in cells) >= 0.8 * 3 * TRIALS


def test_the_base_finds_almost_none_beyond_its_context():
    model, tokenizer = lengthen.load("tiny", "float32")
    (cell,) = passkey(model.eval(), tokenizer, [1024], [0.5], trials=10, batch_size=10)
    assert cell.trials == 10
    assert cell.correct <= 1
    assert cell.exact <= cell.correct
    assert sum(cell.first_wrong) == 10 - cell.exact


def test_a_cell_depends_on_nothing_beside_it(trained):
    model, tokenizer = trained
    (alone,) = passkey(model, tokenizer, [320], [0.5], trials=4, seed=7)
    *_, beside = passkey(model, tokenizer, [300, 320], [0.1, 0.5], trials=4, batch_size=3, seed=7)
    assert beside.nats == pytest.approx(alone.nats, rel=1e-4)  # a batch adds in another order
    assert replace(beside, nats=alone.nats) == alone


@pytest.mark.parametrize(
    "settings",
    [{"lengths": []}, {"depths": []}, {"trials": 0}, {"batch_size": 0}, {"depths": [0.5, 1.1]}, {"depths": [-0.1]}],
)
def test_nothing_to_measure_is_refused(trained, settings):
    with pytest.raises(LengthenError):
        passkey(*trained, **({"lengths": [256]} | settings))


invoke = partial(command_line.invoke, "eval", "passkey")
succeed = partial(command_line.succeed, "eval", "passkey")


def test_the_command_writes_table_json_and_picture(tmp_path):
    out = tmp_path / "results" / "passkey.json"
    ran = succeed("tiny", "--lengths", "200,160", "--depths", "0.5,0", "--trials", 2, "--json", out, "--quiet")
    content = json.loads(out.read_text(encoding="utf-8"))
    assert content["kind"] == "passkey"
    assert content["model"] == "tiny"
    assert content["answer_tokens"] == ANSWER_TOKENS
    assert [(r["tokens"], r["depth"]) for r in content["results"]] == [(200, 0.5), (200, 0), (160, 0.5), (160, 0)]
    for result in content["results"]:
        assert result["trials"] == 2
        assert 0 <= result["correct"] <= 2
        assert f"{result['correct']}/2" in ran.stdout
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["--lengths", "2k"], "--lengths"),
        (["--lengths", "256", "--depths", "50"], "--depths"),
        (["--lengths", "256", "--depths", "0,,1"], "--depths"),
        (["--lengths", "256", "--depths", "nan"], "--depths"),
        (["--lengths", "256", "--trials", "0"], "--trials"),
    ],
)
def test_bad_options_are_refused_before_anything_is_loaded(arguments, option):
    ran = invoke("no-such-model", *arguments)
    assert ran.exit_code == 2
    assert option in ran.stderr


def test_lengths_beyond_the_context_need_beyond():
    ran = invoke("tiny", "--lengths", "300", "--trials", 1)
    assert isinstance(ran.exception, ContextError)
    assert "--beyond" in str(ran.exception)
    ran = succeed("tiny", "--lengths", "300", "--depths", "0", "--trials", 1, "--beyond", "--quiet")
    assert ran.stderr.count("warning") == 1
