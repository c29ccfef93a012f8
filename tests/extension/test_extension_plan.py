"""Plans for devices that are not here: what fits, what is refused, and the numbers that are said."""

import re

import pytest
import torch
from transformers import LlamaConfig

from lengthen.errors import ContextError, LengthenError
from lengthen.extension import plan, plan_extension
from lengthen.planning import DEVICES, Device
from lengthen.planning.measure import model_shape
from lengthen.planning.reading_memory import reading_memory
from lengthen.recipe import AdapterRecipe

LLAMA_8B = {
    "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 512,
}  # fmt: skip


@pytest.fixture(scope="module")
def large(tokenizer, tmp_path_factory):
    """A base of 8 billion parameters, without its weights, which a plan needs not."""
    folder = tmp_path_factory.mktemp("large") / "8b"
    LlamaConfig(**LLAMA_8B, architectures=["LlamaForCausalLM"]).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").touch()
    return str(folder)


@pytest.fixture
def plan_for(monkeypatch, tmp_path):
    """A function that plans for a GPU with so many GB, and returns the plan and the lines that were said."""

    def plan_one(base, to, data, gb, *overrides, hours=2.0):
        monkeypatch.setitem(DEVICES, "some", Device("some", int(gb * 1e9), 1e14, 5e13))
        said = []
        found = plan_extension(
            base, to, data, out=tmp_path / "run", device="some", hours=hours, overrides=overrides,
            on_event=lambda event: said.append(event.text),
        )  # fmt: skip
        return found, said

    return plan_one


def refusal(plan_for, *arguments, **options):
    with pytest.raises(LengthenError) as raised:
        plan_for(*arguments, **options)
    return str(raised.value)


def test_a_small_gpu_gets_a_base_in_4_bits(plan_for, large, books):
    pytest.importorskip("bitsandbytes")
    found, said = plan_for(large, 8192, books, 15.7)
    assert any("4-bit base" in line for line in said)
    assert 5e9 < found.peak_bytes < 15.7e9
    again, _ = plan_for(large, 8192, books, 15.7, "quantize=nf4")
    assert again.peak_bytes == found.peak_bytes
    _, said = plan_for(large, 8192, books, 40)
    assert not any("4-bit base" in line for line in said)


def test_what_can_not_be_read_says_the_longest_that_can(plan_for, large, books):
    pytest.importorskip("bitsandbytes")
    said = refusal(plan_for, large, 131_072, books, 15.7)
    assert re.search(
        r"131,072 tokens can't be read by 8b on some: their keys and values take 19\.3 GB beside 5\.7 of weights in "
        r"4 bits and 0\.8 to compute with, and it has 15\.7; the longest that can is ([\d,]+); a device with more",
        said,
    ), said
    longest = int(re.search(r"that can is ([\d,]+)", said).group(1).replace(",", ""))
    assert longest % 1024 == 0
    plan_for(large, longest, books, 15.7)
    assert "can't be read" in refusal(plan_for, large, longest + 1024, books, 15.7)


def test_a_base_that_is_to_stay_in_16_bits_is_refused_with_what_would_help(plan_for, large, books):
    said = refusal(plan_for, large, 8192, books, 15.7, "quantize=null")
    assert "beside 16.1 of weights and" in said
    assert "the longest that can is 0; quantize=nf4, with bitsandbytes, takes less for the weights" in said


def test_a_step_that_does_not_fit_says_the_longest_that_does(plan_for, large, books):
    pytest.importorskip("bitsandbytes")
    whole = ("data.sequence_length=null", "data.skip_wise=false", "memory.preset=balanced")
    said = refusal(plan_for, large, 32_768, books, 15.7, *whole)
    assert "can't be extended to 32,768 tokens on some: with the settings that need least, a step takes" in said
    longest = int(re.search(r"the longest context that fits is ([\d,]+) tokens", said)[1].replace(",", ""))
    assert plan_for(large, longest, books, 15.7, *whole)[0].peak_bytes <= 15.7e9
    assert "can't be extended" in refusal(plan_for, large, longest + 1024, books, 15.7, *whole)


def test_the_hours_that_are_asked_for_suffice(plan_for, large, books):
    said = refusal(plan_for, large, 8192, books, 40, hours=0.001)
    found = re.search(r"give at least ([\d.]+) hours for 20 steps, ([\d.]+) for the (\d+) that suffice", said)
    least, enough, wanted = float(found[1]), float(found[2]), int(found[3])
    steps = [plan_for(large, 8192, books, 40, hours=hours)[0].steps for hours in (least - 0.02, least, enough)]
    assert steps[0] < 20 <= steps[1] < steps[2] == wanted


def test_where_reading_takes_more_than_a_step_the_plan_says_so(plan_for, large, books):
    short, long = (plan_for(large, to, books, 141)[0].peak_bytes for to in (8192, 262_144))
    cache = 262_144 * 2 * 32 * 8 * 128 * 2  # keys and values in bfloat16
    assert short < 40e9, "a step's, of sequences of 3,072 tokens"
    assert long > 16e9 + cache, "and not a step's, which is the same for both"


def test_reading_counts_the_weights_and_the_caches_that_there_are():
    sizes = {**LLAMA_8B, "vocab_size": 1000, "hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
    shape = model_shape(LlamaConfig(**sizes), AdapterRecipe())
    device = Device("some", 10**9, None, None)
    half, packed = (reading_memory(shape, quantize, "bfloat16", device) for quantize in (None, "nf4"))
    assert half.weights == 2 * shape.parameters
    assert packed.weights < half.weights / 2
    assert half.cache(1000) == 1000 * 32 * 2 * 8 * 32 * 2 * 9 // 8
    longest = half.longest(device.memory)
    assert half.peak(longest) <= device.memory < half.peak(longest + 1024)
    assert half.longest(half.weights) == 0


def test_memory_that_ends_in_the_measured_steps_is_said(small, books, tmp_path, monkeypatch):
    def ends(*_arguments):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(plan, "_probe", ends)
    with pytest.raises(ContextError, match="its memory ended in a measured step with the settings that need least"):
        plan_extension(small, 1024, books, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
