"""A run beside its base: one set of weights is really two models, numbers are those of the separate commands."""

import json
from functools import partial

import numpy as np
import pytest
import torch

import command_line
import lengthen
from lengthen.errors import ContextError, DataError, ModelError
from lengthen.evaluation import perplexity
from lengthen.evaluation.answers import ScoredAnswer
from lengthen.evaluation.compare import Probe, compare, find_pair, needle_probe, ruler_probe
from lengthen.evaluation.compare.paired import long_perplexity
from lengthen.evaluation.compare.verdict import verdict
from lengthen.evaluation.haystack import Haystack, documentation
from lengthen.evaluation.retrieval.needle import needle
from lengthen.evaluation.ruler import Essay, RulerTexts, ruler

LENGTHS, DEPTHS, TRIALS = (420, 512), (0.25, 0.75), 2


@pytest.fixture(scope="module")
def trained(make_run, base):
    """Of LoRA, embeddings and norms, over YaRN."""
    return make_run(base, "trained", {"rank": 4, "embeddings": True, "norms": True})


@pytest.fixture(scope="module")
def prose(tokenizer):
    return Haystack(tokenizer, documentation()[1][:20_000])


@pytest.fixture(scope="module")
def texts():
    generator = np.random.default_rng(0)
    return [generator.integers(1, 257, length) for length in (128, 128, 90)]


def logits(model):
    with torch.no_grad():
        return model(torch.arange(1, 41)[None]).logits


def test_the_base_inside_a_run_is_the_base(trained, base):
    pair = find_pair(str(trained), dtype="float32")
    assert pair.is_one
    assert (pair.base_context, pair.context) == (32, 128)
    alone, extended = logits(lengthen.load(base, "float32")[0]), logits(lengthen.load(trained, "float32")[0])
    with pair.models() as (as_base, _, as_run):
        for _ in range(2):
            with as_base() as model:
                assert torch.equal(logits(model), alone)
            with as_run() as model:
                assert torch.equal(logits(model), extended)
    assert (alone - extended).abs().max() > 1e-3


@pytest.mark.parametrize("method", ["linear", "ntk", "yarn", "llama3"])
def test_the_base_inside_untrained_scaling_is_the_base(base, method):
    pair = find_pair(str(base), dtype="float32", method=method, target=128)
    assert pair.is_one
    alone = logits(lengthen.load(base, "float32")[0])
    scaled = logits(lengthen.load(base, "float32", method=method, target=128)[0])
    with pair.models() as (as_base, _, as_run):
        with as_base() as model:
            assert torch.equal(logits(model), alone)
        with as_run() as model:
            assert torch.equal(logits(model), scaled)
    assert not torch.equal(alone, scaled)


@pytest.fixture(scope="module")
def found(trained, prose, texts):
    pair = find_pair(str(trained), dtype="float32")
    probes = [needle_probe(pair.tokenizer, prose, tokens, DEPTHS, TRIALS, seed=3) for tokens in LENGTHS]
    return compare(pair, probes, texts)


@pytest.mark.parametrize("side", ["base", "run"])
def test_needles_are_those_of_the_separate_command(found, trained, base, prose, side):
    model, tokenizer = lengthen.load(trained if side == "run" else base, "float32")
    cells = needle(model, tokenizer, prose, LENGTHS, DEPTHS, TRIALS, seed=3)
    rows = {(row["tokens"], row["depth"]): row for row in found["scores"]}
    for cell in cells:
        row = rows[cell.tokens, cell.depth]
        assert row["questions"] == cell.trials
        assert row[side]["score"] == cell.exact / cell.trials
        assert row[side]["nats"] == pytest.approx(cell.nats, abs=1e-5)
        assert row[side]["first_wrong"] == cell.first_wrong
    for tokens in LENGTHS:
        of_length = [cell for cell in cells if cell.tokens == tokens]
        assert rows[tokens, None][side]["nats"] == pytest.approx(np.mean([cell.nats for cell in of_length]), abs=1e-5)
        assert rows[tokens, None]["questions"] == TRIALS * len(DEPTHS)


@pytest.fixture(scope="module")
def asked(trained):
    """RULER's tasks of run and base: compared, and how each was asked for."""
    texts = RulerTexts(Essay(documentation()[1][:20_000]), {})
    tasks = {"fwe": 512, "niah_multivalue": 640}
    pair = find_pair(str(trained), dtype="float32")
    probes = [ruler_probe(pair.tokenizer, texts, task, tokens, TRIALS, 3) for task, tokens in tasks.items()]
    return {row["task"]: row for row in compare(pair, probes, [])["scores"]}, texts, tasks


@pytest.mark.parametrize("side", ["base", "run"])
def test_ruler_is_that_of_the_separate_command(asked, trained, base, side):
    rows, texts, tasks = asked
    model, tokenizer = lengthen.load(trained if side == "run" else base, "float32")
    for task, tokens in tasks.items():
        (separate,) = ruler(model, tokenizer, texts, [task], [tokens], TRIALS, seed=3).scores
        row = rows[task]
        assert (row["tokens"], row["prompts"], row["questions"]) == (tokens, TRIALS, TRIALS)
        assert row[side]["score"] == pytest.approx(separate.found / 100, abs=1e-4)
        assert row[side]["nats"] == pytest.approx(separate.nats, abs=1e-5)
        assert row[side]["right_tokens"] == pytest.approx(separate.right_tokens)
        assert row[side]["first_wrong"] == separate.first_wrong


def test_half_an_adapter_is_compared_with_the_base_itself(found, trained, prose):
    pair = find_pair(str(trained), dtype="float32", adapter_scale=0.5)
    assert pair.is_one
    probes = [needle_probe(pair.tokenizer, prose, tokens, DEPTHS, TRIALS, seed=3) for tokens in LENGTHS]
    half = compare(pair, probes, [], scaled=True)
    alone = lengthen.load(trained, "float32", adapter_scale=0.5)
    cells = {(cell.tokens, cell.depth): cell for cell in needle(*alone, prose, LENGTHS, DEPTHS, TRIALS, seed=3)}
    for row, whole in zip(half["scores"], found["scores"], strict=True):
        assert row["base"] == whole["base"]
        assert row["run"]["nats"] != whole["run"]["nats"]
        if row["depth"] is not None:
            assert row["run"]["nats"] == pytest.approx(cells[row["tokens"], row["depth"]].nats, abs=1e-5)


@pytest.mark.parametrize(("side", "context"), [("base", 32), ("run", 128)])
def test_perplexity_is_that_of_the_separate_command(found, trained, base, texts, side, context):
    model, _ = lengthen.load(trained if side == "run" else base, "float32")
    separate = perplexity(model, texts, context, bucket=16)
    whole, within, *buckets = found["perplexity"]
    assert whole[side] == pytest.approx(separate.perplexity, rel=1e-5)
    assert (within["from"], within["to"], within["beyond_base"]) == (0, 32, False)
    for row, bucket in zip(buckets, separate.by_position, strict=True):
        assert (row["from"], row["to"], row["tokens"]) == (bucket["from"], bucket["to"], bucket["tokens"])
        assert row[side] == pytest.approx(bucket["perplexity"], rel=1e-5)
        assert row["beyond_base"] == (row["to"] > 32)
        assert row["ratio"] == pytest.approx(row["run"] / row["base"])
        assert row["low"] <= row["ratio"] <= row["high"]


def test_an_exported_run_compares_as_the_run_itself(found, trained, base, prose, texts, tmp_path):
    lengthen.export(trained, tmp_path / "exported", "float32")
    pair = find_pair(str(tmp_path / "exported"), str(base), dtype="float32")
    assert not pair.is_one
    probes = [needle_probe(pair.tokenizer, prose, tokens, DEPTHS, TRIALS, seed=3) for tokens in LENGTHS]
    again = compare(pair, probes, texts)
    for one, two in zip(found["scores"], again["scores"], strict=True):
        assert one["base"] == two["base"]
        assert one["run"]["nats"] == pytest.approx(two["run"]["nats"], abs=1e-3)
    assert again["perplexity"][0]["ratio"] == pytest.approx(found["perplexity"][0]["ratio"], rel=1e-4)


def test_a_fully_tuned_run_knows_its_base(make_run, base):
    run = make_run(base, "full", {"kind": "full"})
    pair = find_pair(str(run), dtype="float32")
    assert not pair.is_one
    with pair.models() as (as_base, _, as_run):
        with as_base() as model:
            assert torch.equal(logits(model), logits(lengthen.load(base, "float32")[0]))
        with as_run() as model:
            assert torch.equal(logits(model), logits(lengthen.load(run, "float32")[0]))


def test_what_does_not_belong_together_is_refused(trained, base, make_base):
    with pytest.raises(ModelError, match="name it with base"):
        find_pair(str(base))
    with pytest.raises(ModelError, match="was made over"):
        find_pair(str(trained), str(make_base("another", seed=1)))
    with pytest.raises(ModelError, match="can't be the base"):
        find_pair(str(trained), str(make_base("wider", hidden_size=64)))
    with pytest.raises(ModelError, match="other tokens"):
        find_pair("tiny", str(make_base("shaped", **shape_of("tiny"))))
    with pytest.raises(ModelError, match="is a run folder with an adapter; give as base the model"):
        find_pair(str(base), str(trained))


def shape_of(model):
    config = lengthen.load(model)[0].config
    return {key: getattr(config, key) for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")}


def row(tokens, base, run, task="needle", low=-0.1, high=0.1):
    sides = {"base": {"score": base}, "run": {"score": run}}
    return {"task": task, "tokens": tokens, "depth": None, "difference": run - base, "low": low, "high": high, **sides}


def test_the_verdict_is_by_the_base_s_own_best():
    rows = [row(1024, 0.6, 0.5), row(2048, 0.8, 0.69), row(4096, 0.1, 0.68), row(8192, 0.0, 0.2)]
    found = verdict(rows, [], 2048)
    assert (found["usable"], found["base_usable"]) == (4096, 2048), "at least 0.68"
    assert (found["best"], found["best_tokens"]) == (0.8, 2048)
    assert found["below"] == [1024]
    assert not found["fell"]
    assert found["sentence"].startswith("usable up to 4,096 tokens (base: 2,048), but not at 1,024")
    assert "short ability kept" in found["sentence"]


def test_the_verdict_says_what_is_lost():
    rows = [row(1024, 0.9, 0.2, low=-0.9, high=-0.5), row(4096, 0.0, 0.2)]
    worse = {"from": 0, "to": 1024, "documents": 8, "beyond_base": False, "ratio": 1.2, "low": 1.1, "high": 1.3}
    found = verdict(rows, [worse], 2048)
    assert found["usable"] is None
    assert found["lost"] == ["needle at 1,024", "perplexity"]
    assert found["fell"]
    assert "no tested length is usable (base: 1,024)" in found["sentence"]
    slight = worse | {"ratio": 1.005, "low": 1.001, "high": 1.009}
    assert verdict(rows[1:], [slight], 2048)["kept"] == ["perplexity"]
    endless = worse | {"ratio": None, "low": None, "high": None}
    assert verdict(rows[1:], [endless], 2048)["lost"] == ["perplexity"], "too large for a float, on eight documents"
    weak = verdict([row(1024, 0.05, 0.9)], [], 2048)
    assert weak["usable"] is None
    assert "too little" in weak["sentence"]


def test_what_a_single_prompt_or_document_lost_is_undecided():
    alone = {"low": None, "high": None}
    rows = [row(1024, 1.0, 0.0, **alone), row(2048, 1.0, 1.0, **alone)]
    book = {"from": 0, "to": 1024, "documents": 1, "beyond_base": False, "ratio": 1.2, **alone}
    found = verdict(rows, [book], 2048)
    assert (found["lost"], found["kept"]) == ([], ["needle at 2,048"])
    assert found["undecided"] == ["needle at 1,024", "perplexity"]
    assert found["sentence"] == (
        "usable up to 2,048 tokens (base: 2,048), but not at 1,024; short ability undecided (needle at 1,024, "
        "perplexity: too few prompts or documents to tell)"
    )
    copied = row(64, 0.9, 0.1, task="copy", low=-0.9, high=-0.7)
    both = verdict([*rows, copied], [book | {"ratio": 0.9}], 2048)
    assert both["sentence"].endswith(
        "short ability lost (copy at 64), undecided (needle at 1,024: too few prompts or documents to tell)"
    )
    assert both["kept"] == ["needle at 2,048", "perplexity"]


invoke = partial(command_line.invoke, "eval", "compare", columns=80)
succeed = partial(command_line.succeed, "eval", "compare", columns=80)


def test_the_command_writes_into_the_run_folder(trained, documents):
    ran = invoke(
        *(trained, "--lengths", "300,120", "--depths", "0.5", "--trials", 2, "--data", documents, "--documents", 3),
        *("--dtype", "float32", "--beyond"),
    )
    assert isinstance(ran.exception, DataError), "a fact and a question have more than 120 bytes"
    ran = succeed(
        *(trained, "--lengths", "300", "--depths", "0.5", "--trials", 2, "--data", documents, "--documents", 3),
        *("--dtype", "float32", "--beyond", "--quiet"),
    )
    (written,) = (trained / "evals").glob("compare-*.json")
    content = json.loads(written.read_text(encoding="utf-8"))
    assert content["kind"] == "compare"
    assert content["model"] == "trained"
    assert content["base"] == "base"
    assert len(content["documents"]) == 3
    assert content["verdict"]["sentence"] == ran.stdout.splitlines()[0]
    assert written.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "beyond the base's 32 tokens" in ran.stdout
    assert "\u2026" not in ran.stdout, "tables fit 80 columns"


def test_every_task_is_asked_of_both(trained, documents, tmp_path):
    out = tmp_path / "compare.json"
    tasks = "copy,cloze,needle,babilong_qa1,babilong_qa3,niah_multivalue,fwe"
    succeed(
        *(trained, "--lengths", "2600", "--depths", "0.5", "--trials", 1, "--data", documents, "--documents", 2),
        *("--tasks", tasks, "--beyond", "--quiet", "--short-context", 16, "--evaluator", "run", "--json", out),
    )
    content = json.loads(out.read_text(encoding="utf-8"))
    rows = {row["task"]: row for row in content["scores"]}
    assert list(rows) == ["copy digits", *tasks.split(",")[1:]]
    assert rows["copy digits"]["questions"] == 12
    assert rows["cloze"]["questions"] == 4
    assert rows["babilong_qa1"]["questions"] == 1
    assert all(0 <= row[side]["score"] <= 1 for row in rows.values() for side in ("base", "run"))
    assert content["long_perplexity"] is None, "no context helps two random layers"


def test_a_choice_is_right_if_the_right_candidate_is_the_likeliest():
    probe = Probe("any", 8, [], choices=2)
    right, wrong = (
        ScoredAnswer((0.1, 0.2), (True, True), (2,)),
        ScoredAnswer((0.1, 0.5, 0.1), (False, True, True), (3,)),
    )
    assert probe.scores([right, wrong, wrong, right]) == [1.0, 0.0]
    several = ScoredAnswer((0.1,) * 4, (True, True, False, True), (2, 1, 1))
    assert Probe("any", 8, []).scores([several]) == [pytest.approx(2 / 3)]


def test_longppl_is_over_the_tokens_that_the_evaluator_s_long_context_helps():
    nan = float("nan")
    short = [np.array([nan, 5.0, 5.0, 5.0, 2.1]), np.array([nan, 4.5, 1.0])]
    long = [np.array([nan, 1.0, 2.9, 2.5, 0.2]), np.array([nan, 2.4, 0.5])]
    base = [np.array([nan, 3.0, 1.0, 1.0, 1.0]), np.array([nan, 2.0, 9.0])]
    run = [each - 1 for each in base]
    found = long_perplexity(base, run, long, short, "someone", 64)
    assert found["tokens"] == 1, "only the first gains more than 2 nats and has less than 2 left"
    assert found["base"] == pytest.approx(np.exp(3.0))
    assert found["ratio"] == pytest.approx(np.exp(-1.0))
    assert found["share"] == pytest.approx(1 / 6)
    assert long_perplexity(base, run, short, short, "someone", 64) is None


def test_lengths_beyond_the_run_need_beyond(trained):
    ran = invoke(trained, "--lengths", "300", "--trials", 1)
    assert isinstance(ran.exception, ContextError)
    assert "--beyond" in str(ran.exception)
    ran = invoke(trained, "--tasks", "needle,nedle")
    assert isinstance(ran.exception, DataError)
    assert str(ran.exception).startswith("nedle: lengthen's own are needle, lookup, copy")
    ran = invoke(trained, "--samples", 3)
    assert ran.exit_code == 2
    assert "--samples" in ran.stderr
    ran = invoke("tiny", "--method", "yarn")
    assert ran.exit_code == 2
    assert "--target" in ran.stderr


def test_prompts_of_the_same_seed_are_the_same(tokenizer, prose):
    one, two = (needle_probe(tokenizer, prose, 512, DEPTHS, 2, seed) for seed in (3, 3))
    assert one == two
    assert one.prompts[0] != one.prompts[1]
    assert one != needle_probe(tokenizer, prose, 512, DEPTHS, 2, 4)
