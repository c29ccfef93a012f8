"""Mixtures: exact shares at any time, an order from seed and index alone, sources of every kind, what is refused."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthen.data.blocks import Block
from lengthen.data.collate import collate
from lengthen.data.mixture import FiniteSource, Mixture, interleave
from lengthen.data.sources import open_mixture
from lengthen.errors import DataError, RecipeError
from lengthen.recipe import parse_recipe

VOCABULARY = 257


@given(
    weights=st.lists(st.integers(0, 20), min_size=1, max_size=6).filter(sum),
    sizes=st.lists(st.integers(1, 40), min_size=6, max_size=6),
    count=st.integers(0, 300),
)
@settings(max_examples=200)
def test_no_source_is_ever_a_block_ahead_or_behind(weights, sizes, count):
    order = interleave(weights, lambda source, _number: sizes[source], count)
    given, largest = np.zeros(len(weights)), max(sizes[: len(weights)])
    shares = np.array(weights) / sum(weights)
    for source in order:
        given[source] += sizes[source]
        assert (abs(given - shares * given.sum()) <= largest + 1e-6).all()
    if len(set(sizes[: len(weights)])) == 1:  # blocks of one length: then less than a block
        assert (abs(given - shares * given.sum()) < largest + 1e-6).all()


def blocks_of(value, count, length=8):
    return [Block(np.full(length, 100 * value + index), (length,)) for index in range(count)]


def test_each_pass_has_an_order_of_its_own_and_sees_every_block_once():
    source = FiniteSource("long", "x", "", blocks_of(1, 7), (0, 1))
    firsts = [[int(source.block(7 * turn + at).input_ids[0]) for at in range(7)] for turn in range(3)]
    assert all(sorted(turn) == list(range(100, 107)) for turn in firsts)
    assert len({tuple(turn) for turn in firsts}) == 3
    assert int(source.block(3).input_ids[0]) == firsts[0][3]  # going back changes nothing
    assert source.passes(14) == 2


def test_a_mixture_is_a_sequence_that_any_index_can_be_asked_of():
    def make():
        return Mixture([FiniteSource("long", f"{v}", "", blocks_of(v, 5), (v,)) for v in (1, 2)], [3, 1], 40)

    first, second = make(), make()
    backwards = [second[index].input_ids[0] for index in reversed(range(40))][::-1]
    assert [block.input_ids[0] for block in first] == backwards
    assert [first.source_of(index) for index in range(8)].count(0) == 6
    assert first.describe()[1]["sequences"] == 10
    assert first.describe()[1]["share"] == pytest.approx(0.25)


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """Long texts, short texts, chats and a repository."""
    monkeypatch.setenv("LENGTHEN_CACHE", str(tmp_path / "cache"))
    long, short = tmp_path / "long", tmp_path / "short"
    long.mkdir()
    short.mkdir()
    for index in range(3):
        (long / f"{index}.txt").write_text(f"the long text {index} goes on and on. " * 200)
    for index in range(40):
        (short / f"{index}.txt").write_text(f"a short text, number {index}. " * (1 + index % 5))
    chats = [{"instruction": f"What is {n}?", "output": f"It is {n}."} for n in range(30)]
    (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, chats)))
    code = tmp_path / "code"
    code.mkdir()
    for name in "abc":
        (code / f"{name}.py").write_text(f"def {name}():\n    return 1\n\n" * 20)
    return {"long": str(long), "short": str(short), "instruct": str(tmp_path / "chat.jsonl"), "code": str(code)}


def recipe_of(train, length=512, target=2048, **more):
    content = {
        "model": "tiny",
        "context": {"target": target, "method": "yarn"},
        "attention": {"kind": "full"},
        "data": {"train": train, "sequence_length": length, "template": "alpaca", **more.pop("data", {})},
        "training": {"steps": 4, **more},
    }
    if not any(each.get("kind") == "instruct" for each in train if isinstance(each, dict)):
        content["data"].pop("template")
    return parse_recipe(content, "r")


def test_every_kind_of_source_in_exact_shares(sources, tokenizer):
    from lengthen.data.instruct.templates import use_template

    use_template(tokenizer, "alpaca")
    train = [
        {"path": sources["long"], "weight": 25},
        {"path": sources["code"], "kind": "code", "weight": 15},
        {"path": sources["short"], "kind": "short", "length": 128, "weight": 20},
        {"path": sources["instruct"], "kind": "instruct", "weight": 10},
        {"kind": "retrieval", "weight": 30},
    ]
    mixture = open_mixture(recipe_of(train), tokenizer, VOCABULARY, 100)
    described = mixture.describe()
    assert [each["kind"] for each in described] == ["long", "code", "short", "instruct", "retrieval"]
    for each, share in zip(described, (0.25, 0.15, 0.2, 0.1, 0.3), strict=True):
        assert abs(each["tokens"] - share * mixture.tokens) <= 512
    assert sum(each["tokens"] for each in described) == mixture.tokens == sum(map(len, mixture))
    assert mixture.packed
    for index, block in enumerate(mixture):
        kind = described[mixture.source_of(index)]["kind"]
        assert (block.loss_weights is not None) == (kind == "retrieval")
        assert (block.trained is not None) == (kind in ("retrieval", "instruct"))
        assert kind != "short" or max(block.segments) <= 128
    assert "long 25% (3 documents, " in mixture.summary()
    assert "code 15% (1 repository, " in mixture.summary()
    again = open_mixture(recipe_of(train), tokenizer, VOCABULARY, 100)
    np.testing.assert_array_equal(again[57].input_ids, mixture[57].input_ids)


def test_skip_wise_for_all_or_for_one(sources, tokenizer):
    train = [sources["long"], {"path": sources["short"], "kind": "short"}, {"kind": "retrieval"}]
    mixture = open_mixture(recipe_of(train, data={"skip_wise": True}), tokenizer, VOCABULARY, 12)
    jumps = {mixture.describe()[mixture.source_of(i)]["kind"]: mixture[i].positions is not None for i in range(12)}
    assert jumps == {"long": True, "short": False, "retrieval": True}  # replay keeps the positions of short text
    for block in mixture:
        batch = collate([block], 0)
        assert ("attention_mask" in batch) == (block.positions is not None)
    train[2]["skip_wise"] = False
    only = open_mixture(recipe_of(train, data={"skip_wise": True}), tokenizer, VOCABULARY, 12)
    assert all(only[i].positions is None for i in range(12) if only.source_of(i) == 2)


def test_what_stands_beside_documents_leaves_them_the_rest(sources, tokenizer):
    beside = [{"kind": "retrieval", "weight": 0.5}, {"path": sources["short"], "kind": "short", "weight": 0.25}]
    plain = [sources["long"], sources["code"]]
    recipe = recipe_of(plain, data={"beside": beside})
    assert [source.weight for source in recipe.data.sources] == [0.25, 0.5, 0.25]  # plain paths are one source
    mixture = open_mixture(recipe, tokenizer, VOCABULARY, 40)
    assert [each["kind"] for each in mixture.describe()] == ["long", "retrieval", "short"]
    assert [each["source"].split(" ")[0] for each in mixture.describe()] == [
        "data.train", "data.beside[0]", "data.beside[1]",
    ]  # fmt: skip
    for each, share in zip(mixture.describe(), (0.25, 0.5, 0.25), strict=True):
        assert abs(each["tokens"] - share * mixture.tokens) <= 512
    mixed = [{"path": sources["long"], "weight": 3}, {"path": sources["code"], "kind": "code", "weight": 1}]
    shares = [source.weight for source in recipe_of(mixed, data={"beside": beside}).data.sources]
    assert shares == pytest.approx([0.1875, 0.0625, 0.5, 0.25])


@pytest.mark.parametrize(
    ("beside", "problem"),
    [
        ([{"kind": "retrieval"}], "of 1 sources in beside 0 have a weight"),
        (
            [{"kind": "retrieval", "weight": 0.6}, {"kind": "short", "path": "x", "weight": 0.4}],
            "1 in all.*has the rest",
        ),
        ([{"kind": "retrieval", "wieght": 0.6}], r"'data.beside.0.wieght'; did you mean 'data.beside.0.weight'"),
        ([{"kind": "retrieval", "weight": "much"}], r"data.beside.0.weight: .*\(it is 'much'\)"),
        (["books/"], "data.beside.0: .*it is 'books/'"),
    ],
)
def test_what_can_not_stand_beside_is_refused(beside, problem):
    with pytest.raises(RecipeError, match=problem):
        recipe_of(["books/"], data={"beside": beside})


def test_longer_documents_more_often(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setenv("LENGTHEN_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "texts"
    folder.mkdir()
    for index in range(10):
        (folder / f"{index}.txt").write_text("short" * 20)
        (folder / f"{index}l.txt").write_text("long!" * 100)
    source = {"path": str(folder), "length_weights": {1: 0.5, 400: 3}}
    mixture = open_mixture(recipe_of([source], target=1024), tokenizer, VOCABULARY, 30)
    blocks = mixture.sources[0]._blocks
    segments = [length for block in blocks for length in block.segments]
    assert segments.count(501) == 30
    assert 0 < segments.count(101) < 10


def test_haystacks_are_the_long_sources_or_named_ones(sources, tokenizer):
    own = open_mixture(recipe_of([sources["long"], {"kind": "retrieval", "bare": 0}]), tokenizer, VOCABULARY, 4)
    retrieval = own.sources[1]
    assert "goes on and on" in tokenizer.decode(retrieval.block(0).input_ids)
    named = open_mixture(
        recipe_of([sources["long"], {"kind": "retrieval", "bare": 0, "haystack": sources["short"]}]),
        tokenizer, VOCABULARY, 4,
    )  # fmt: skip
    text = tokenizer.decode(named.sources[1].block(0).input_ids)
    assert "a short text" in text
    assert "goes on and on" not in text


@pytest.mark.parametrize(
    ("train", "match"),
    [
        ([{"path": "a", "weight": 0.5}, {"kind": "retrieval"}], "of 2 sources in data.train 1 have a weight"),
        ([{"path": "a", "weight": 0}, {"kind": "retrieval", "weight": 0}], "0 in all"),
        ([{"path": "a", "weight": -1}], "data.train.0.weight"),
        ([{"path": "a", "kind": "longer"}], "data.train.0.kind"),
        ([{"path": "a", "wieght": 1}], "did you mean 'data.train.0.weight'"),
        ([{"kind": "short"}], "needs a path"),
        ([{"path": "a", "facts": 3}], "facts is for kind retrieval; this source's kind is long"),
        ([{"kind": "retrieval", "length": 600}], "length 600, beyond the run's 512"),
        ([{"kind": "retrieval", "length": [400, 300]}], "longest first"),
        ([{"kind": "short", "path": "a", "length": [100, 300]}], "short windows have one length"),
    ],
)
def test_what_a_recipe_may_not_say(train, match):
    with pytest.raises(RecipeError, match=match):
        recipe_of(train)


def test_what_goes_with_a_mixture():
    mixed = [{"path": "a"}, {"kind": "retrieval"}]
    with pytest.raises(RecipeError, match="give training"):
        recipe_of(mixed, steps=None, epochs=1)
    with pytest.raises(RecipeError, match="leave out data"):
        recipe_of(mixed, data={"kind": "instruct"})
    with pytest.raises(RecipeError, match="can't be in one batch"):
        recipe_of([{"path": "a", "skip_wise": True}, {"path": "b", "kind": "short"}], batch_size=2)
    with pytest.raises(RecipeError, match="leave out its length"):
        recipe_of([{"kind": "retrieval", "length": 300, "skip_wise": True}])


def test_a_source_without_a_usable_document(sources, tokenizer):
    for source, match in (
        ({"path": sources["short"], "min_tokens": 5000}, r"data.train\[0\] \(long .*no document that can be used"),
        ({"path": sources["short"], "kind": "short", "max_tokens": 3}, "no document that can be used"),
        ({"path": sources["long"] + "er"}, "does not exist"),
        ({"kind": "retrieval", "length": 200}, r"data.train\[0\] \(retrieval\): retrieval sequences of 200"),
        ({"kind": "retrieval", "tasks": {"needles": 1}}, "needles can't be made; choose from single"),
    ):
        with pytest.raises(DataError, match=match):
            open_mixture(recipe_of([source]), tokenizer, VOCABULARY, 4)


def test_a_recipe_with_a_mixture_is_written_and_read_back(sources):
    import yaml

    recipe = recipe_of([sources["long"], {"kind": "retrieval", "length": [256, 512], "tasks": {"lookup": 2}}])
    assert parse_recipe(yaml.safe_load(recipe.to_yaml()), "again") == recipe
