"""Runs on mixtures: learned from, resumed on their trajectory, reported, and not resumed with another mixture."""

import json

import pytest
from resuming import check_resumed_from_its_middle, losses

from lengthen.errors import DataError, RecipeError
from lengthen.recipe import parse_recipe
from lengthen.training.batches import Batches
from lengthen.training.run import train


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LENGTHEN_CACHE", str(tmp_path / "cache"))


def recipe_of(base, documents, out, attention="full", data=(), **training):
    """32 -> 512 tokens in 4 steps: documents, short windows and retrieval."""
    train_ = [
        {"path": str(documents), "weight": 0.25},
        {"path": str(documents), "kind": "short", "length": 64, "weight": 0.25},
        {"kind": "retrieval", "weight": 0.5, "bare": 0.5},
    ]
    return parse_recipe(
        {
            "model": str(base),
            "out": str(out),
            "context": {"target": 512, "method": "yarn"},
            "attention": {"kind": attention, **({"group_size": 64} if attention == "s2" else {})},
            "data": {"train": train_, "sequence_length": 256, **dict(data)},
            "training": {
                "steps": 4, "learning_rate": 3e-3, "warmup_steps": 1, "dtype": "float32", "accumulation": 2,
                "save_every": 2, **training,
            },
        },
        "test",
    )  # fmt: skip


@pytest.mark.parametrize("data", [{}, {"skip_wise": True}])
def test_resumed_inside_a_mixture_on_its_trajectory(base, documents, tmp_path, data):
    recipe = recipe_of(base, documents, tmp_path / "run", data=data)
    check_resumed_from_its_middle(recipe)


def test_steps_of_several_processes_are_those_of_one():
    """And each step has the sequences that the mixture has there, so that shares are exact at every step."""

    class Numbers(list):
        in_order = True

    training = parse_recipe(
        {"model": "tiny", "context": {"target": 512}, "training": {"steps": 5, "batch_size": 2, "accumulation": 3}}, "x"
    ).training
    one = training.model_copy(update={"accumulation": 6})
    alone = Batches(Numbers(range(60)), one, seed=0)
    pair = [Batches(Numbers(range(60)), training, seed=0, process=process, processes=2) for process in range(2)]
    for step in range(1, 6):
        expected = [number for batch in alone.of_step(step) for number in batch]
        assert expected == list(range(12 * (step - 1), 12 * step))
        assert sorted(n for each in pair for batch in each.of_step(step) for n in batch) == expected


def test_s2_runs_on_a_mixture(base, documents, tmp_path):
    recipe = recipe_of(base, documents, tmp_path / "run", attention="s2", steps=12, learning_rate=1e-2)
    ours = losses(recipe)
    assert sum(ours[-4:]) < sum(ours[:4])
    data = json.loads((tmp_path / "run" / "run.json").read_text())["data"]
    assert [each["kind"] for each in data["sources"]] == ["long", "short", "retrieval"]
    assert data["sequences"] == 24
    assert data["tokens"] == sum(each["tokens"] for each in data["sources"])
    for each in data["sources"]:
        assert abs(each["tokens"] - each["weight"] * data["tokens"]) <= 256


def test_the_mixture_is_said_before_the_first_step(base, documents, tmp_path, caplog):
    with caplog.at_level("INFO", logger="lengthen"):
        train(recipe_of(base, documents, tmp_path / "run", steps=1))
    said = caplog.text
    assert "retrieval 50% (in " in said
    assert said.index("retrieval 50%") < said.index("step 1/1")


def test_another_mixture_is_another_run(base, documents, tmp_path):
    train(recipe_of(base, documents, tmp_path / "run"))
    other = recipe_of(base, documents, tmp_path / "run")
    content = other.model_dump()
    content["data"]["train"][2]["weight"] = 0.6
    with pytest.raises(RecipeError, match=r"started with another recipe \(different: data\.train\)"):
        train(parse_recipe(content, "other"), resume=True)


def test_a_mixture_can_not_be_made_longer(base, documents, tmp_path):
    train(recipe_of(base, documents, tmp_path / "run"))
    with pytest.raises(RecipeError, match=r"can't be made longer: its sources are mixed over all steps"):
        train(recipe_of(base, documents, tmp_path / "run", steps=6), resume=True)


def test_an_unusable_source_leaves_no_run(base, documents, tmp_path):
    recipe = recipe_of(base, documents, tmp_path / "run", data={"min_tokens": 10_000})
    with pytest.raises(DataError, match=r"data.train\[0\] \(long .*no document that can be used"):
        train(recipe)
    assert not (tmp_path / "run").exists()
