"""The recipe: strict keys, overrides, and every shipped recipe."""

from typing import get_args

import pytest
import torch
import yaml
from pydantic import ValidationError
from transformers import AutoConfig

from lengthen.context import METHODS, extend
from lengthen.errors import RecipeError
from lengthen.planning.examine import config_of
from lengthen.recipe import ContextRecipe, Recipe, load_recipe, parse_recipe, shipped_recipes
from lengthen.report.setup import METHOD_NAMES

LEAST = {"model": "tiny", "context": {"target": 64}, "training": {"steps": 1}}


def refused(*overrides, name="tiny-2k"):
    """The recipe is refused, in one line."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(name, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("trainin", "training"),
        ("training.learning_rat", "training.learning_rate"),
        ("training.warmup", "training.warmup_steps"),
        ("adapter.target", "adapter.targets"),
        ("context.targets", "context.target"),
        ("learning_rate", "training.learning_rate"),
        ("training.rank", "adapter.rank"),
        ("data.model", "model"),
    ],
)
def test_an_unknown_key_names_the_nearest(key, nearest):
    assert f"unknown key '{key}'; did you mean '{nearest}'?" in refused(f"{key}=1")


def test_a_key_like_no_other_lists_the_valid_ones():
    message = refused("zzzz=1", "memory.zzzz=1")
    assert "'zzzz'; valid keys: model, out, seed, context" in message
    assert "'memory.zzzz'; valid keys: preset" in message


def test_every_problem_is_in_one_message():
    message = refused("model=", "context.target=0", "training.stepz=1", "adapter.rank=many")
    for part in ("model", "context.target", "'training.stepz'", "'training.steps'", "adapter.rank", "'many'"):
        assert part in message


def test_a_missing_key_is_named():
    with pytest.raises(RecipeError, match=r"recipe mine: context is missing"):
        parse_recipe({"model": "tiny", "training": {"steps": 1}}, "mine")


def test_a_dtype_is_a_name_or_torchs():
    for dtype in ("bfloat16", torch.bfloat16):
        assert parse_recipe(LEAST | {"training": {"steps": 1, "dtype": dtype}}, "mine").training.dtype == "bfloat16"
    with pytest.raises(RecipeError, match="'float64'"):
        parse_recipe(LEAST | {"training": {"steps": 1, "dtype": torch.float64}}, "mine")


def test_overrides_are_yaml():
    recipe = load_recipe(
        "tiny-2k",
        ["training.learning_rate=2e-5", "data.train=[a, b]", "memory.activation_checkpointing=true", "seed=7",
         "adapter.norms=with_qk", "adapter.targets=q_proj", "training.steps=", "training.epochs=0.5", "out=x=y"],
    )  # fmt: skip
    assert recipe.training.learning_rate == 2e-5
    assert recipe.data.train == ["a", "b"]
    assert recipe.memory.activation_checkpointing is True
    assert recipe.seed == 7
    assert recipe.adapter.norms == "with_qk"
    assert recipe.adapter.targets == ["q_proj"]
    assert recipe.training.steps is None
    assert recipe.training.epochs == 0.5
    assert recipe.out == "x=y"
    assert recipe.context == load_recipe("tiny-2k").context


def test_a_later_override_wins_and_a_section_can_be_new(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("model: tiny\ncontext: {target: 64}\n", encoding="utf-8")
    recipe = load_recipe(path, ["training.steps=1", "training.steps=2"])
    assert recipe.training.steps == 2
    assert recipe.out == "runs/mine"


@pytest.mark.parametrize("override", ["training.steps", "=3", "steps 3", "model.x=3"])
def test_an_override_of_another_form_is_refused(override):
    assert repr(override) in refused(override)


def test_an_override_whose_value_is_not_yaml_is_refused():
    assert "'data.train=[a'" in refused("data.train=[a")


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("adapter.targets=5", "(it is 5)"),
        ("adapter.norms=maybe", "(it is 'maybe')"),
        ("context.method=spiral", "'linear', 'ntk', 'yarn'"),
        ("training.learning_rate=.nan", "training.learning_rate"),
        ("training.learning_rate=.inf", "training.learning_rate"),
        ("training.steps=2.5", "training.steps"),
        ("attention.group_size=1", "attention.group_size"),
        ("quantize=int4", "choose nf4"),
        ("training=5", "training"),
        ("training.epochs=1", "one of training.steps and training.epochs"),
        ("training.steps=", "one of training.steps and training.epochs"),
        ("data.sequence_length=2049", "data.sequence_length 2049 is above context.target 2048"),
        ("adapter.options={a: 1}", "adapter.options"),
        ("adapter={kind: ia3, variant: dora}", "adapter.variant"),
    ],
)
def test_a_wrong_value_is_refused(override, part):
    message = refused(override)
    assert part in message
    assert "literal[" not in message, "pydantic's inner names stay inside"
    assert "function-" not in message


def test_an_unknown_recipe_lists_the_shipped():
    message = refused(name="tiny-2kk")
    assert "'tiny-2kk'" in message
    for name in shipped_recipes():
        assert name in message


@pytest.mark.parametrize("content", [b"model: [tiny", b"\xff\xfe\x00", b"- model\n- context\n", b"tiny", b""])
def test_a_file_that_is_no_recipe_is_refused(tmp_path, content):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    assert str(path) in refused(name=str(path))


def test_yaml_and_back_is_equal(tmp_path):
    for name in shipped_recipes():
        length = ["training.steps=7", "training.epochs=null"]
        recipe = load_recipe(name, ["data.train=[b\u00fccher]", "context.factor=64", *length, "seed=3"])
        (tmp_path / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
        assert load_recipe(tmp_path / "recipe.yaml") == recipe


def test_defaults_that_follow_the_target():
    recipe = parse_recipe(LEAST, "least")
    assert recipe.sequence_length == 64
    assert recipe.group_size == 16
    recipe = parse_recipe(LEAST | {"data": {"sequence_length": 48}, "attention": {"group_size": 8}}, "more")
    assert recipe.sequence_length == 48
    assert recipe.group_size == 8


def test_all_weights_learn_slower_than_an_adapter_unless_the_recipe_says_otherwise():
    assert parse_recipe(LEAST, "least").training.learning_rate == 1e-3
    full = LEAST | {"adapter": {"kind": "full"}}
    assert parse_recipe(full, "full").training.learning_rate == 2e-5
    told = full | {"training": {"steps": 1, "learning_rate": 3e-4}}
    assert parse_recipe(told, "told").training.learning_rate == 3e-4


def test_what_a_recipe_does_not_say_is_what_measured_best():
    recipe = parse_recipe(LEAST, "least")
    assert recipe.context.method == "yarn"
    assert (recipe.attention.kind, recipe.attention.sinks) == ("s2", 1)
    adapter = recipe.adapter
    assert (adapter.kind, adapter.rank, adapter.alpha, adapter.targets) == ("lora", 16, 32, "attention")
    assert (adapter.embeddings, adapter.norms) == (False, True)
    assert (recipe.data.packing, recipe.data.beside) == ("documents", [])


PAPERS = [name for name in shipped_recipes() if name.startswith(("llama2", "vicuna", "longalpaca"))]


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_recipes_write_the_papers_settings_out(name):
    content = yaml.safe_load(shipped_recipes()[name].read_text(encoding="utf-8"))
    assert content["context"]["method"] == "linear"
    assert content["attention"] == {"kind": "s2", "sinks": 0}
    assert {"learning_rate", "schedule", "warmup_steps"} <= content["training"].keys()
    settings = {"rank", "alpha", "targets", "embeddings", "norms"}
    assert content["adapter"].get("kind") == "full" or settings <= content["adapter"].keys()
    assert "settings; for a usable context take " in shipped_recipes()[name].read_text(encoding="utf-8")


OWN = [name for name in shipped_recipes() if name not in PAPERS and name != "tiny-2k"]


@pytest.mark.parametrize("name", OWN)
def test_our_own_recipes_keep_embeddings_and_ask_for_facts(name):
    recipe = load_recipe(name)
    assert recipe.context.method == ("llama3" if name.startswith("llama3.1") else "yarn")
    assert recipe.attention.sinks == 1
    adapter = recipe.adapter
    assert (adapter.rank, adapter.alpha, adapter.targets, adapter.embeddings) == (16, 32, "attention", False)
    assert [source.kind for source in recipe.data.beside] == ["retrieval"]


def test_the_teaching_recipe_points_to_a_usable_context():
    assert "for a usable context take `lengthen extend`" in shipped_recipes()["tiny-2k"].read_text(encoding="utf-8")


def test_a_recipe_is_frozen():
    recipe = parse_recipe(LEAST, "least")
    with pytest.raises(ValidationError):
        recipe.seed = 1
    with pytest.raises(ValidationError):
        recipe.training.steps = 2


def test_every_field_is_described():
    fields = list(Recipe.model_fields.values())
    sections = [field.annotation for field in fields if hasattr(field.annotation, "model_fields")]
    assert len(sections) == 7
    undescribed = [
        name for section in sections for name, field in section.model_fields.items() if not field.description
    ]
    assert undescribed == []


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_shipped_recipe_fits_its_base(name, tmp_path):
    content = yaml.safe_load(shipped_recipes()[name].read_text(encoding="utf-8"))
    recipe = parse_recipe(content, name)
    assert recipe == load_recipe(name, ["out="])
    base = config_of(recipe)
    config = extend(base, **recipe.context.scaling)
    assert config.max_position_embeddings == recipe.context.target
    first = base.rope_parameters.get("original_max_position_embeddings", base.max_position_embeddings)
    assert config.original_max_position_embeddings == first
    assert config.rope_parameters["rope_type"] == recipe.context.method
    assert recipe.group_size == (recipe.attention.group_size or recipe.context.target // 4)
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters == config.rope_parameters


def test_position_methods_have_a_key_a_formula_and_a_name():
    methods = set(METHODS)
    assert set(get_args(ContextRecipe.model_fields["method"].annotation)) == methods
    assert set(METHOD_NAMES) == methods
