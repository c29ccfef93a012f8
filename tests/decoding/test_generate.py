"""Continuing a text: the model's own tokens, streamed without losing a character."""

import json
import random
from contextlib import contextmanager
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

import lengthen
from lengthen.decoding.detokenize import IncrementalDetokenizer
from lengthen.decoding.generate import Reader, generate
from lengthen.errors import DataError, LengthenError

pytestmark = pytest.mark.invariants

PROMPT = "abc abc abc"


@pytest.fixture(scope="module")
def loaded(run):
    return lengthen.load(str(run), "float32")


def test_greedy_equals_picking_the_likeliest_by_hand(loaded):
    model, tokenizer = loaded
    ids = tokenizer(PROMPT)["input_ids"]
    expected = list(ids)
    with torch.no_grad():
        for _ in range(40):  # beyond the base's 32
            expected.append(int(model(torch.tensor([expected])).logits[0, -1].argmax()))
            if expected[-1] == tokenizer.eos_token_id:
                break
    result = generate(model, tokenizer, PROMPT, 40)
    assert result.prompt_tokens == len(ids)
    assert result.new_tokens == len(expected) - len(ids)
    assert result.text == tokenizer.decode(expected[len(ids) :], skip_special_tokens=True)
    out = model.generate(torch.tensor([ids]), max_new_tokens=40, do_sample=False)
    assert out[0].tolist() == expected


def test_pieces_join_to_the_text(loaded):
    model, tokenizer = loaded
    pieces = []
    result = generate(model, tokenizer, PROMPT, 30, temperature=1.5, on_text=pieces.append)
    assert "".join(pieces) == result.text
    assert len(pieces) > 5
    assert json.loads(json.dumps(result.to_json())) == result.to_json()


def test_a_seed_repeats_a_sample(loaded):
    model, tokenizer = loaded
    first, again, other = (generate(model, tokenizer, PROMPT, 20, temperature=1.0, seed=seed) for seed in (1, 1, 2))
    assert first.text == again.text
    assert first.text != other.text


def test_generation_stops_at_the_end_token(base):
    model, tokenizer = lengthen.load(str(base), "float32")
    with torch.no_grad():
        model.lm_head.weight.zero_()  # all logits equal: the likeliest is id 0, the end
    result = generate(model, tokenizer, PROMPT, 10)
    assert (result.text, result.new_tokens) == ("", 1)


def test_a_prompt_that_does_not_fit_is_refused_with_the_numbers(loaded):
    model, tokenizer = loaded
    with pytest.raises(DataError, match=r"the prompt has 121 tokens and 8 more are asked for, but the context is 128"):
        generate(model, tokenizer, "x" * 120, 8)
    assert generate(model, tokenizer, "x" * 120, 7).prompt_tokens == 121


def test_what_makes_no_sense_is_refused(loaded):
    with pytest.raises(DataError, match="the prompt is empty"):
        generate(*loaded, "")
    with pytest.raises(LengthenError, match="`temperature` is -1"):
        generate(*loaded, PROMPT, temperature=-1)
    with pytest.raises(LengthenError, match="`max_new_tokens` is 0"):
        generate(*loaded, PROMPT, 0)


def stream(tokenizer, prompt, new):
    texts = IncrementalDetokenizer(tokenizer, prompt)
    pieces = [piece for piece in [*map(texts.push, new), texts.end()] if piece]
    assert "".join(pieces) == texts.text
    return pieces


@pytest.fixture(scope="module")
def llama2_like():
    """Words carry their space in front, a leading one is dropped in decoding, and rare characters are bytes."""
    words = ["<s>", "\u2581", "\u2581the", "cat", "\u2581sat", "\n", "s", "<0xC3>", "<0xA9>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="<s>")
    return lambda *text: [vocabulary[word] for word in text], tokenizer


def test_spaces_survive_after_the_prompt_and_after_line_ends(llama2_like):
    ids, tokenizer = llama2_like
    new = ids("\u2581sat", "\n", "\u2581", "\u2581the", "cat", "\n", "\u2581sat", "<s>")
    assert stream(tokenizer, ids("<s>", "cat"), new) == [" sat", "\n", " ", " the", "cat", "\n", " sat"]


def test_a_character_of_several_tokens_comes_whole(llama2_like):
    ids, tokenizer = llama2_like
    assert stream(tokenizer, ids("cat"), ids("<0xC3>", "<0xA9>", "s")) == ["\u00e9", "s"]
    assert stream(tokenizer, ids("cat"), ids("s", "<0xC3>")) == ["s", "\ufffd"]


def test_any_tokens_stream_to_their_text(llama2_like, tokenizer):
    generator = random.Random(0)
    # Bytes of the first one come in whole characters: a run of bytes with a wrong one in it decodes to nothing else.
    for each, units in (
        (llama2_like[1], [[1], [2], [3], [4], [5], [6], [7, 8]]),
        (tokenizer, [[i] for i in range(257)]),
    ):
        for _ in range(200):
            # Ends with a whole word, as a prompt of text does.
            prompt = [3, *generator.choices([2, 3, 4, 5, 6], k=10), 3]
            new = [token for unit in generator.choices(units, k=12) for token in unit]
            whole = each.decode(prompt + new, skip_special_tokens=True)
            start = each.decode(prompt, skip_special_tokens=True)
            assert start + "".join(stream(each, prompt, new)) == whole


@contextmanager
def tokens_fed(model):
    """Counts the tokens that go through the model."""
    fed = []
    hook = model.get_input_embeddings().register_forward_pre_hook(lambda _module, inputs: fed.append(inputs[0].numel()))
    yield fed
    hook.remove()


@settings(max_examples=15)
@given(texts=st.lists(st.text("ab", min_size=1, max_size=12), min_size=2, max_size=4))
def test_only_what_differs_from_the_last_text_is_read(loaded, texts):
    model, tokenizer = loaded
    reader, before = Reader(model), []
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        common = next((i for i, (a, b) in enumerate(zip(before, ids[:-1], strict=False)) if a != b), None)
        common = min(len(before), len(ids) - 1) if common is None else common
        with tokens_fed(model) as fed:
            assert reader.prefill(ids)
            new = list(islice(reader.decode(ids[-1]), 3))
        assert sum(fed) == len(ids) - common - 1 + 3
        fresh = Reader(model)
        fresh.prefill(ids)
        assert new == list(islice(fresh.decode(ids[-1]), 3))
        before = ids + new[:-1]
        assert reader.tokens == before


def test_a_forward_pass_that_breaks_off_leaves_no_torn_cache(loaded):
    model, _ = loaded
    reader, ids = Reader(model), list(range(1, 40))
    reader.prefill(ids[:20])

    def break_off(*_arguments):
        raise KeyboardInterrupt

    hook = model.get_base_model().model.layers[1].register_forward_pre_hook(break_off)
    with pytest.raises(KeyboardInterrupt):
        reader.prefill(ids)
    hook.remove()
    assert (reader.tokens, reader.cached) == ([], 0)
    fresh = Reader(model)
    assert reader.prefill(ids)
    assert fresh.prefill(ids)
    assert next(reader.decode(ids[-1])) == next(fresh.decode(ids[-1]))


def test_frequencies_that_change_with_the_length_change_for_all_tokens(make_base):
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 32}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, **factors}
    folder = make_base(
        "longrope", max_position_embeddings=128, original_max_position_embeddings=32, rope_parameters=rope
    )
    model, _ = lengthen.load(str(folder), "float32")
    expected = list(range(1, 21))
    reader = Reader(model)
    reader.prefill(expected)
    new = list(islice(reader.decode(expected[-1]), 24))  # from 20 tokens to 44
    with torch.no_grad():
        for token in new:
            assert token == int(model(torch.tensor([expected]), use_cache=False).logits[0, -1].argmax())
            expected.append(token)
    assert reader.shared(expected) == 0
