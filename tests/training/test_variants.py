"""Runs that end at full attention, and runs with skip-wise positions."""

import pytest
from resuming import check_resumed_from_its_middle, losses

from lengthen.errors import DataError, RecipeError
from lengthen.planning.plan import plan
from lengthen.recipe import parse_recipe
from lengthen.training.run import train


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LENGTHEN_CACHE", str(tmp_path / "cache"))


def recipe_of(base, documents, out, **sections):
    """32 -> 128 tokens in 6 steps, float32, S2 with groups of 16."""
    content = {
        "model": str(base),
        "out": str(out),
        "context": {"target": 128, "method": "yarn"},
        "attention": {"group_size": 16},
        "data": {"train": [str(documents)]},
        "training": {
            "steps": 6, "learning_rate": 3e-3, "warmup_steps": 1, "dtype": "float32", "accumulation": 2,
        },
    }  # fmt: skip
    for name, values in sections.items():
        content[name] = {**content.get(name, {}), **values}
    return parse_recipe(content, "test")


def test_full_last_is_s2_and_then_full_attention(base, documents, tmp_path):
    s2 = losses(recipe_of(base, documents, tmp_path / "s2"))
    ours = losses(recipe_of(base, documents, tmp_path / "last", attention={"full_last": 0.5}))
    assert ours[:3] == s2[:3]
    assert all(abs(a - b) > 1e-5 for a, b in zip(ours[3:], s2[3:], strict=True))
    # Nearly all steps rounds to all of them.
    whole = losses(recipe_of(base, documents, tmp_path / "whole", attention={"full_last": 0.99}))
    full = losses(recipe_of(base, documents, tmp_path / "full", attention={"kind": "full"}))
    assert whole == pytest.approx(full, rel=1e-5)


def test_full_last_is_one_step_at_least(base, documents, tmp_path):
    s2 = losses(recipe_of(base, documents, tmp_path / "s2"))
    ours = losses(recipe_of(base, documents, tmp_path / "last", attention={"full_last": 0.01}))
    assert ours[:5] == s2[:5]
    assert abs(ours[5] - s2[5]) > 1e-5


@pytest.mark.parametrize("share", [0.25, 0.75])
def test_full_last_is_resumed_on_its_trajectory(base, documents, tmp_path, share):
    """From step 2 of 4, before and after the change."""
    recipe = recipe_of(
        base, documents, tmp_path / "run", attention={"full_last": share}, training={"steps": 4, "save_every": 2}
    )
    check_resumed_from_its_middle(recipe)


def test_full_last_counts_in_the_plan():
    content = {"model": "tiny", "context": {"target": 2048}, "training": {"steps": 10}}
    step = [
        plan(parse_recipe(content | {"attention": attention}, "test"), "h100-80gb").flops.attention
        for attention in ({}, {"full_last": 0.5}, {"kind": "full"})
    ]
    assert step[1] == pytest.approx((step[0] + step[2]) / 2)


@pytest.mark.parametrize("packing", ["documents", "concatenate"])
def test_skip_wise_runs_learn(base, documents, tmp_path, packing):
    data = {"skip_wise": True, "sequence_length": 32, "packing": packing}
    ours = losses(recipe_of(base, documents, tmp_path / "run", attention={"kind": "full"}, data=data))
    assert ours[-1] < ours[0]


@pytest.mark.parametrize(
    ("sections", "part"),
    [
        ({"attention": {"full_last": 1.0}}, "attention.full_last"),
        ({"attention": {"kind": "full", "full_last": 0.1}}, "all of this one is"),
        ({"attention": {"pattern": "full", "full_last": 0.1}}, "all of this one is"),
        ({"attention": {"kind": "full"}, "data": {"skip_wise": True}}, "set data.sequence_length"),
        ({"data": {"skip_wise": True, "sequence_length": 32}}, "set attention.kind=full"),
        (
            {
                "attention": {"kind": "full"},
                "data": {"skip_wise": True, "sequence_length": 32, "packing": "concatenate"},
                "adapter": {"kind": "prompt_tuning"},
            },
            "sets positions itself",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(base, documents, tmp_path, sections, part):
    with pytest.raises(RecipeError, match=part):
        recipe_of(base, documents, tmp_path / "run", **sections)


def test_documents_below_the_skip_wise_length_are_refused(base, documents, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("too short for 100 tokens", encoding="utf-8")
    data = {"skip_wise": True, "sequence_length": 100}
    recipe = recipe_of(base, short, tmp_path / "run", attention={"kind": "full"}, data=data)
    with pytest.raises(DataError, match=r"longest document has 25 tokens, below data\.sequence_length 100"):
        train(recipe)
    assert not (tmp_path / "run").exists()
