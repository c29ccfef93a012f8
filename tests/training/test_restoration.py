"""Restoration: the base is in the model, its divergence is exact, and windows come at their share."""

import copy
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import kl_div, log_softmax
from transformers import AutoModelForCausalLM

from lengthen.adapters.build import add_adapter
from lengthen.attention import set_group_size
from lengthen.context import extend
from lengthen.data.blocks import Block
from lengthen.data.mixture import FiniteSource
from lengthen.errors import DataError, RecipeError
from lengthen.head import decoder_of
from lengthen.models.load import load_base, load_config
from lengthen.models.resolve import resolve_model
from lengthen.models.rotary import BasePositions
from lengthen.recipe import AdapterRecipe, TrainingRecipe, parse_recipe
from lengthen.run_folder import RunFolder
from lengthen.training import loss as loss_module
from lengthen.training.objective import CausalLMObjective
from lengthen.training.restoration import Windows
from lengthen.training.run import train

pytestmark = pytest.mark.invariants


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LENGTHEN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def tied_base(make_base, request):
    # Weights large enough that positions matter for what is predicted.
    return make_base(f"tied{request.param}", tie_word_embeddings=request.param, initializer_range=0.3)


def objective_over(base, method="yarn", attention="sdpa", moved=True, **adapter):
    """A run over a base of 32 tokens; with every trained tensor moved away from where it began."""
    source = resolve_model(str(base))
    base_config = load_config(source)
    config = base_config if method is None else extend(base_config, 128, method)
    model = load_base(source, config, torch.float32, attention)
    if attention == "s2":
        set_group_size(model, 64)
    positions = BasePositions(model, base_config)
    model = add_adapter(model, AdapterRecipe(rank=4, embeddings=True, **adapter))
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if moved and parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return CausalLMObjective(model, base_positions=positions).train()


def window(length=24):
    ids = torch.randint(0, 257, (1, length), generator=torch.Generator().manual_seed(2))
    return {"input_ids": ids, "labels": ids, "position_ids": torch.arange(length)[None]}


@pytest.mark.parametrize("adapter", [{}, {"targets": "all", "variant": "dora", "dropout": 0.5}], ids=["lora", "dora"])
@pytest.mark.parametrize("method", ["linear", "yarn"])
def test_with_the_adapter_off_it_is_the_base(tied_base, method, adapter):
    """Bit for bit, whatever was trained, embeddings, norms and a tied head included; and then it is the run again."""
    objective = objective_over(tied_base, method, **adapter)
    original = AutoModelForCausalLM.from_pretrained(tied_base).eval()
    batch = window()
    objective.eval()
    before = objective(**batch)
    with torch.no_grad(), objective._as_base():
        ours = objective.model(input_ids=batch["input_ids"], position_ids=batch["position_ids"]).logits
        hidden = objective._hidden_states(batch["input_ids"], position_ids=batch["position_ids"])
        head, _ = objective._head()
        assert torch.equal(head, original.get_output_embeddings().weight)
    with torch.no_grad():
        assert torch.equal(ours, original(batch["input_ids"]).logits)
        assert torch.equal(hidden, decoder_of(original)(batch["input_ids"])[0][0])
    assert torch.equal(objective(**batch), before)
    assert not torch.equal(objective.model(input_ids=batch["input_ids"]).logits, ours)


def test_divergence_is_zero_at_the_start_with_identical_positions(tied_base):
    objective = objective_over(tied_base, method=None, moved=False)
    assert objective(**window(), restore=True).item() == 0.0
    assert objective_over(tied_base, moved=False)(**window(), restore=True).item() > 1e-3  # YaRN's are others
    assert abs(objective_over(tied_base, None, "s2", moved=False)(**window(), restore=True).item()) < 1e-4


@pytest.mark.parametrize("method", ["yarn", None])
def test_gradient_equals_that_of_two_models(tied_base, monkeypatch, method):
    monkeypatch.setattr(loss_module, "tokens_per_chunk", lambda vocabulary, on_gpu=False: 7)
    objective = objective_over(tied_base, method)
    plain = copy.deepcopy(objective.model)
    original = AutoModelForCausalLM.from_pretrained(tied_base).eval()
    batch = window()
    ours = objective(**batch, restore=True)
    ours.backward()
    with torch.no_grad():
        base = log_softmax(original(batch["input_ids"]).logits, dim=-1)
    run = log_softmax(plain(input_ids=batch["input_ids"]).logits, dim=-1)
    theirs = kl_div(run, base, reduction="sum", log_target=True)
    theirs.backward()
    torch.testing.assert_close(ours, theirs)
    gradients = {name: parameter.grad for name, parameter in objective.model.named_parameters()}
    assert any(gradient is not None for gradient in gradients.values())
    for name, parameter in plain.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(gradients[name], parameter.grad, msg=name)
        else:
            assert gradients[name] is None


@pytest.mark.parametrize(("share", "accumulation"), [(0.5, 1), (0.25, 3), (1 / 3, 1), (0.1, 4), (0.7, 2)])
def test_windows_come_at_their_share(share, accumulation):
    blocks = [Block(torch.arange(8).numpy() + 100 * number, (8,)) for number in range(7)]
    source = FiniteSource("restoration", "test", "", blocks, (3,))
    training = TrainingRecipe(steps=60, accumulation=accumulation, restoration={"share": share})
    processes = [Windows(source, training, process, 2) for process in range(2)]
    counts = [len(processes[0].of_step(step)) for step in range(1, 61)]
    total = sum(counts) / (sum(counts) + 60 * accumulation)
    assert total == pytest.approx(share, abs=0.5 / 60)
    assert max(counts) - min(counts) <= 1
    # Each pass over the windows has each of them once, over both processes, whatever was asked for before.
    seen = [
        int(block.input_ids[0]) // 100
        for step in range(1, 61)
        for batches in zip(*(windows.of_step(step) for windows in processes), strict=True)
        for batch in batches
        for block in batch
    ]
    for start in range(0, len(seen) - 6, 7):
        assert sorted(seen[start : start + 7]) == list(range(7))
    again = Windows(source, training, 1, 2)
    assert [b.input_ids.tolist() for batch in again.of_step(40) for b in batch] == [
        b.input_ids.tolist() for batch in processes[1].of_step(40) for b in batch
    ]


def recipe_of(base, documents, out, restoration, **sections):
    content = {
        "model": str(base),
        "out": str(out),
        "context": {"target": 128, "method": "linear"},
        "adapter": {"dropout": 0.1, "embeddings": True},
        "attention": {"group_size": 16},
        "data": {"train": [str(documents)]},
        "training": {
            "steps": 4, "learning_rate": 1e-2, "warmup_steps": 0, "dtype": "float32", "save_every": 2,
            "restoration": restoration,
        },
    }  # fmt: skip
    for name, values in sections.items():
        content[name] = {**content.get(name, {}), **values}
    return parse_recipe(content, "test")


def test_a_run_is_drawn_to_its_base_and_resumes_bit_for_bit(base, documents, tmp_path):
    """With S2 in groups shorter than a window, which still is read at full attention."""
    restoration = {"share": 0.6, "length": 32, "weight": 3.0}
    recipe = recipe_of(base, documents, tmp_path / "run", restoration)
    run = train(recipe)
    records = RunFolder(run).read_metrics()
    assert records[0]["kl"] < 1e-6 < records[-1]["kl"]  # a random base hardly looks at positions
    adapter = run / "adapter" / "adapter_model.safetensors"
    expected = load_file(adapter)
    shutil.rmtree(adapter.parent)
    shutil.rmtree(run / "checkpoints" / "checkpoint-4")
    train(recipe, resume=True)
    again = RunFolder(run).read_metrics()
    assert [(r["loss"], r["kl"]) for r in again] == [(r["loss"], r["kl"]) for r in records]
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load_file(adapter).items())


def test_restoration_restores(base, documents, tmp_path):
    """The divergence at the end is below that of a run in which it has almost no weight."""
    last = []
    for name, weight in (("held", 20.0), ("free", 1e-9)):
        restoration = {"share": 0.5, "length": 32, "weight": weight, "data": [str(documents)]}
        run = train(recipe_of(base, documents, tmp_path / name, restoration))
        last.append(RunFolder(run).read_metrics()[-1]["kl"])
    assert last[0] < last[1]


def test_losses_by_source(base, documents, tmp_path):
    """Of a mixture each source's own mean; together they are the loss."""
    data = {"train": [{"path": [str(documents)], "weight": 0.5}, {"kind": "short", "path": [str(documents)],
            "weight": 0.5, "length": 32}]}  # fmt: skip
    run = train(recipe_of(base, documents, tmp_path / "run", {}, data=data))
    for record in RunFolder(run).read_metrics():
        assert set(record["losses"]) <= {"long", "short"}
        assert min(record["losses"].values()) <= record["loss"] * (1 + 1e-6)
        assert max(record["losses"].values()) >= record["loss"] * (1 - 1e-6)
        assert "kl" not in record


@pytest.mark.parametrize(
    ("sections", "part"),
    [
        ({"adapter": {"kind": "full", "dropout": 0.0}}, "second copy of all weights"),
        ({"adapter": {"variant": "pissa"}}, "variant=pissa does not leave as it is"),
        ({"parallel": "zero2"}, "ddp and fsdp2, not zero2"),
        ({"data": {"train": [{"kind": "retrieval"}]}}, r"training\.restoration\.data"),
    ],
)
def test_what_can_not_be_restored_is_refused(base, documents, tmp_path, sections, part):
    content = recipe_of(base, documents, tmp_path / "run", {}).model_dump()
    content["training"]["restoration"] = {"share": 0.5, "length": 32}
    for name, values in sections.items():
        content[name] = {**content[name], **values} if isinstance(values, dict) else values
    with pytest.raises(RecipeError, match=part) as caught:
        parse_recipe(content, "test")
    assert "\n" not in str(caught.value)


def test_windows_that_can_not_be_had(base, documents, tmp_path):
    with pytest.raises(RecipeError, match="beyond the base's context of 32"):
        train(recipe_of(base, documents, tmp_path / "run", {"share": 0.5, "length": 33}))
    short = tmp_path / "short.txt"
    short.write_text("too short", encoding="utf-8")
    with pytest.raises(DataError, match=r"no document for restoration has 32 tokens, the longest 10; lower"):
        train(recipe_of(base, documents, tmp_path / "run", {"share": 0.5, "length": 32, "data": [str(short)]}))
    with pytest.raises(RecipeError, match=r"unknown key 'training.restoration.lenght'; did you mean .*length"):
        recipe_of(base, documents, tmp_path / "run", {"lenght": 32})
    assert not (tmp_path / "run").exists()
