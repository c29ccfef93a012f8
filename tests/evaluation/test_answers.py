"""Prompts have exactly the tokens asked for, haystacks lose nothing when cut, answers are the likeliest tokens."""

import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_kinds import KINDS, make
from transformers import MistralConfig, MistralForCausalLM

import lengthen
from lengthen.errors import DataError, ModelError
from lengthen.evaluation.answers import ScoredAnswer, ask, greedy_generate, numbers
from lengthen.evaluation.haystack import Haystack, documentation, read_haystack
from lengthen.evaluation.prompts import encode, make_prompt, prompt_of_length

PROSE = (
    "It rained. The cat slept on the old chair, and 12 mice danced!\n\n"
    "Does caf\u00e9 taste of 3.5 na\u00efve \u201cbeans\u201d? "
    'Nobody knew... "Quite so," said the owl.\n    def f(x): return x\nThe end was near. '
)


@pytest.fixture(scope="module")
def tokenizers():
    return {kind: make(kind) for kind in KINDS}


@pytest.fixture(scope="module")
def haystacks(tokenizers):
    return {kind: Haystack(tokenizer, PROSE) for kind, tokenizer in tokenizers.items()}


@given(kind=st.sampled_from(KINDS), start=st.integers(0, 300), first=st.integers(0, 300), second=st.integers(0, 300))
def test_cutting_a_haystack_loses_nothing(haystacks, kind, start, first, second):
    haystack = haystacks[kind]
    whole = haystack.take(start, first + second)
    assert haystack.take(start, first) + haystack.take(start + first, second) == whole
    assert haystack.take(start + haystack.tokens, first + second) == whole, "it goes on from its beginning"


@pytest.mark.parametrize("kind", KINDS)
def test_one_lap_of_a_haystack_is_its_text(haystacks, kind):
    haystack = haystacks[kind]
    assert haystack.take(0, haystack.tokens).strip() == PROSE.strip()
    assert haystack.take(0, 0) == ""


@pytest.mark.parametrize("kind", ["tiny", "llama"])
def test_sentences_begin_where_one_ended(haystacks, kind):
    haystack = haystacks[kind]
    assert len(haystack.sentences) >= 6
    for place in haystack.sentences[1:]:
        before = haystack.take(0, place)
        assert before.rstrip()[-1] in ".!?\u3002" or before.endswith("\n"), before[-20:]


@given(place=st.integers(0, 400), reach=st.integers(0, 30))
def test_a_place_moves_to_the_nearest_sentence_within_reach(haystacks, place, reach):
    haystack = haystacks["tiny"]
    starts = [lap * haystack.tokens + each for lap in range(9) for each in haystack.sentences]
    nearest = min(abs(start - place) for start in starts)
    moved = haystack.near_sentence(place, reach)
    assert abs(moved - place) == (nearest if nearest <= reach else 0)
    assert moved in starts or moved == place


@given(kind=st.sampled_from(KINDS), tokens=st.integers(120, 700), start=st.integers(0, 200), room=st.integers(0, 20))
def test_a_prompt_has_exactly_the_tokens_asked_for(tokenizers, haystacks, kind, tokens, start, room):
    """But where a character is several tokens and the last of them would be cut: then the nearest length is told."""
    tokenizer, haystack = tokenizers[kind], haystacks[kind]

    def build(size):
        return f"Read this:\n{haystack.take(start, size)}\nThe key is"

    try:
        ids = encode(tokenizer, prompt_of_length(tokenizer, [build], tokens, room))
    except DataError as error:
        assert "exactly" in str(error)  # noqa: PT017
        sizes = {len(encode(tokenizer, build(size))) for size in range(tokens)}
        assert tokens - room not in sizes
        return
    assert len(ids) == tokens - room
    assert ids == encode(tokenizer, tokenizer.decode(ids, skip_special_tokens=True))
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert text.startswith("Read this:")
    assert text.endswith("The key is")


def test_the_least_possible_length_is_told_and_possible(tokenizer):
    def build(size):
        return "abc" + "d" * size

    with pytest.raises(DataError, match="at least 9"):
        prompt_of_length(tokenizer, [build], 8, 5)
    assert len(encode(tokenizer, prompt_of_length(tokenizer, [build], 9, 5))) == 4


def test_how_near_is_told_where_no_size_fits(tokenizer):
    def build(size):
        return "ab" + "cd" * size

    nine_pairs = prompt_of_length(tokenizer, [build], 21, 0)
    assert len(encode(tokenizer, nine_pairs)) == 21, "BOS, two bytes and nine times two"
    with pytest.raises(DataError, match=r"exactly 20 .* the nearest has (19|21)"):
        prompt_of_length(tokenizer, [build], 20, 0)


def test_a_prompt_keeps_its_bos_and_gets_no_end(tokenizer, tokenizers):
    assert encode(tokenizer, "a")[0] == tokenizer.bos_token_id
    slow = tokenizers["bytes"]
    assert slow("a")["input_ids"][-1] == slow.eos_token_id
    assert encode(slow, "a") == slow("a", add_special_tokens=False)["input_ids"]


@pytest.fixture(scope="module")
def loaded(make_base):
    model, tokenizer = lengthen.load(str(make_base("answers")), "float32")
    return model.eval(), tokenizer


def by_hand(model, tokenizer, ids, count):
    """Greedy, without a cache."""
    new = []
    with torch.no_grad():
        while len(new) < count:
            new.append(int(model(torch.tensor([ids + new])).logits[0, -1].argmax()))
            if new[-1] == tokenizer.eos_token_id:
                break
    return tokenizer.decode(new, skip_special_tokens=True)


def test_answers_are_the_likeliest_tokens_alone_or_in_a_batch(loaded):
    model, tokenizer = loaded
    prompts = [encode(tokenizer, text) for text in ("one two thr", "abcabcabcab", "0 1 2 3 4 5")]
    expected = [by_hand(model, tokenizer, ids, 12) for ids in prompts]
    assert greedy_generate(model, tokenizer, prompts, 12) == expected
    assert [greedy_generate(model, tokenizer, [ids], 12)[0] for ids in prompts] == expected
    assert len(set(expected)) > 1


def prompts_of(tokenizer):
    text = "The key of Oslo is 17. The key of Rome is 4. "
    asked = [("What is the key of Oslo? It is", "17"), ("Rome? It is", "4"), ("And Oslo? It is", "17")]
    return [make_prompt(tokenizer, extra + text, asked) for extra in ("", "abc ", "x")]


def after_its_own_prefill(model, prompt, question):
    """Losses and likeliest tokens of one forward pass over everything, without a cache."""
    ids, scored = prompt.context + question.ids + question.answer, question.answer[question.items[0][0] :]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -len(scored) - 1 : -1]
    target = torch.tensor(scored)
    return torch.nn.functional.cross_entropy(logits, target, reduction="none"), logits.argmax(-1) == target


@pytest.mark.parametrize("kind", ["full", "sliding", "longrope"])
@pytest.mark.parametrize("batch", [1, 3])
def test_one_prefill_answers_as_a_prefill_for_each_question(make_base, tokenizer, kind, batch):
    """Also where the cache can't be cropped, and where nothing that was read can be kept."""
    if kind == "sliding":
        torch.manual_seed(0)
        settings = MistralConfig(
            vocab_size=257, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=512, sliding_window=24, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        model = MistralForCausalLM(settings).eval()
    else:
        rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
        more = {"rope_parameters": {**rope, "original_max_position_embeddings": 32}} if kind == "longrope" else {}
        model, _ = lengthen.load(str(make_base(f"ask-{kind}", **more)), "float32")
        model.eval()
    prompts = prompts_of(tokenizer)
    found = [each for start in range(0, 3, batch) for each in ask(model, tokenizer, prompts[start : start + batch], 6)]
    for prompt, found_here in zip(prompts, found, strict=True):
        for question, answer in zip(prompt.questions, found_here, strict=True):
            losses, likeliest = after_its_own_prefill(model, prompt, question)
            assert answer.losses == pytest.approx(losses.tolist(), abs=1e-4)
            assert list(answer.likeliest) == likeliest.tolist()
            assert answer.nats == pytest.approx(losses.mean().item(), abs=1e-4)
            if kind != "longrope":  # generation has another length, and so another rotation, at each step
                assert answer.text == by_hand(model, tokenizer, prompt.context + question.ids, 6)
    assert len({answer.losses for found_here in found for answer in found_here}) > 2


@given(
    kind=st.sampled_from(KINDS),
    text=st.text("ab 12.\n", max_size=30),
    asked=st.lists(
        st.tuples(st.text("ab 1?", min_size=1, max_size=9), st.text("x1 9", min_size=1)), min_size=1, max_size=4
    ),
)
def test_a_prompt_s_pieces_are_the_tokens_of_its_texts(tokenizers, kind, text, asked):
    tokenizer = tokenizers[kind]
    text, asked = "Read " + text, [(f"Q{question}", f"9{answer}0") for question, answer in asked]
    prompt = make_prompt(tokenizer, text, asked)
    assert prompt.context
    for (question, answer), found in zip(asked, prompt.questions, strict=True):
        assert found.ids
        assert found.answer
        assert prompt.context + found.ids + found.answer == encode(tokenizer, f"{text}{question} {answer}")
        assert answer == found.expected
        scored = [found.answer[place] for place in found.items[0]]
        assert "".join(tokenizer.decode(scored).split()).endswith("".join(answer.split()))
        assert found.accepted == [[token] for token in scored]


@pytest.mark.parametrize("kind", KINDS)
def test_several_things_may_come_in_any_order(tokenizers, kind):
    tokenizer = tokenizers[kind]
    wanted = ["48213", "48907", "17"]
    (question,) = make_prompt(tokenizer, "Read. ", [("Which? They are", wanted)]).questions
    scored = [[question.answer[place] for place in item] for item in question.items]
    assert [tokenizer.decode(item).strip(" ,") for item in scored] == wanted
    accepted = iter(question.accepted)
    for i, own in enumerate(scored):
        for at, token in enumerate(own):
            rest = {other[at] for other in scored[i:] if other[:at] == own[:at] and at < len(other)}
            assert set(next(accepted)) == rest
            assert token in rest
    assert [len(each) for each in question.accepted][-len(scored[-1]) :] == [1] * len(scored[-1])


def test_an_answer_says_how_far_it_is_right():
    answer = ScoredAnswer((0.5, 1.5, 1.0, 1.0), (True, False, True, True), (2, 2))
    assert (answer.nats, answer.right, answer.exact, answer.first_wrong) == (1.0, 0.75, False, 1)
    assert answer.found == 0.5
    assert ScoredAnswer((0.1,), (True,), (1,)).exact
    assert ScoredAnswer((0.1,), (True,), (1,)).first_wrong is None


def test_a_penalty_in_the_generation_config_does_not_forbid_repeating(loaded, monkeypatch):
    model, tokenizer = loaded
    prompt = encode(tokenizer, "abcabcabcab")
    expected = greedy_generate(model, tokenizer, [prompt], 12)
    monkeypatch.setattr(model.generation_config, "repetition_penalty", 5.0)
    assert greedy_generate(model, tokenizer, [prompt], 12) == expected


def test_an_end_token_ends_an_answer(make_base):
    model, tokenizer = lengthen.load(str(make_base("ends", seed=1)), "float32")
    model.eval()
    prompt = encode(tokenizer, "abc abc")
    with torch.no_grad():
        first = int(model(torch.tensor([prompt])).logits[0, -1].argmax())
    assert greedy_generate(model, tokenizer, [prompt], 5)[0]
    model.generation_config.eos_token_id = [0, first]
    assert greedy_generate(model, tokenizer, [prompt], 5) == [""]


def test_logits_that_are_no_numbers_are_refused(make_base):
    model, tokenizer = lengthen.load(str(make_base("broken")), "float32")
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="not numbers"):
        greedy_generate(model.eval(), tokenizer, [encode(tokenizer, "abc")], 2)


def test_numbers_are_compared_as_digits(tokenizers):
    for tokenizer in tokenizers.values():
        ids = tokenizer(" 90817, then 12345.", add_special_tokens=False)["input_ids"]
        assert numbers(tokenizer.decode(ids)) == ["90817", "12345"]


def test_documentation_is_long_with_or_without_the_help_topics(monkeypatch):
    source, text = documentation()
    assert len(text) > 300_000
    assert "pydoc_data" in source
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)  # as if a distribution had left it out
    source, text = documentation()
    assert len(text) > 50_000
    assert "docstrings" in source


def test_haystacks_from_files(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("One.\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("Two.", encoding="utf-8")
    assert read_haystack(tmp_path)[1] == "One.\n\nTwo."
    with pytest.raises(DataError, match="does not exist"):
        read_haystack(tmp_path / "c.txt")
    with pytest.raises(DataError, match="empty"):
        Haystack(tokenizer, " \n")
