"""The engine: any mix of requests gets what each would get alone, whatever comes, goes or fails beside it."""

import shutil

import pytest
import torch
from adapter_files import CPU, greedy, is_decided, make_adapter, with_adapter
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from transformers import (
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
    RepetitionPenaltyLogitsProcessor,
    StableLmConfig,
)

from lengthen.adapters.load import load_apart
from lengthen.context import extend
from lengthen.decoding.sampling import Sampler, SamplingParams, pick_tokens
from lengthen.decoding.stop import StopText
from lengthen.errors import BusyError, ContextError, DataError, ModelError
from lengthen.serving.engine import Engine, GenerationRequest, Limits, LoadedBase, adapter_pool
from lengthen.serving.engine.fair_queue import FairQueue

pytestmark = pytest.mark.invariants

CONTEXT, VOCABULARY = 64, 257
PLAIN = {"embeddings": False, "norms": False}
ADAPTERS = {
    "attention": PLAIN | {"rank": 3},
    "everywhere": PLAIN | {"targets": "all", "rank": 5, "variant": "rslora"},
    "some": PLAIN | {"targets": ["q_proj", "up_proj"], "rank": 2},
    "norms": {"embeddings": False},
    "whole": {"targets": "all"},
    "few": {"few_tokens": True},
}


def load_engine(base, adapters, quantize=None, **limits):
    """An engine over a base folder with adapters from folders by name."""
    apart = load_apart(base, "float32", quantize, CPU)
    plenty = {"cache_bytes": 2**24, "adapter_bytes": 2**24, "batch_size": 6, "chunk": 16}
    engine = Engine(LoadedBase.of(apart), apart.tokenizer, Limits(**(plenty | limits)))
    for name, folder in adapters.items():
        engine.load_adapter(name, folder)
    return engine


@pytest.fixture(scope="module", params=["untied", "tied"])
def world(request, make_base, tmp_path_factory):
    """A base, adapters of every kind over it, an engine with all of them, and the same models computed by peft."""
    base = make_base(request.param, tie_word_embeddings=request.param == "tied", max_position_embeddings=CONTEXT)
    folder = tmp_path_factory.mktemp("adapters")
    folders = {
        name: make_adapter(base, folder / name, seed, **kind) for seed, (name, kind) in enumerate(ADAPTERS.items())
    }
    models = {name: with_adapter(base, folders.get(name)) for name in (None, *folders)}
    return base, folders, load_engine(base, folders), models


@pytest.fixture(scope="module")
def plain(make_base, tmp_path_factory):
    """A base and eight adapters of one kind over it."""
    base = make_base("plain", max_position_embeddings=CONTEXT)
    folder = tmp_path_factory.mktemp("eight")
    return base, {f"a{seed}": make_adapter(base, folder / f"a{seed}", seed, **PLAIN, rank=4) for seed in range(8)}


def prompt(seed, length=9):
    """Printable characters, one token each, so that the prompt ends with a whole one."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 95, (length,), generator=generator).tolist()


def ask(adapter, of=0, count=12, **more):
    return GenerationRequest(prompt(of), adapter, count, ignore_end=True, **more)


requests = st.lists(
    st.builds(
        lambda adapter, seed, length, count: GenerationRequest(prompt(seed, length), adapter, count, ignore_end=True),
        st.sampled_from([None, *ADAPTERS]),
        st.integers(0, 1000),
        st.integers(1, 40),
        st.integers(1, 14),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=requests)
def test_a_mix_gives_each_request_what_it_gets_alone(world, batch):
    _base, _folders, engine, models = world
    alone = [greedy(models[request.adapter], request.prompt, request.max_new_tokens) for request in batch]
    # Between two tokens that tie, greedy decoding is not defined.
    assume(all(is_decided(models[one.adapter], one.prompt, own) for one, own in zip(batch, alone, strict=True)))
    for request, completion, expected in zip(batch, engine.complete(batch), alone, strict=True):
        assert completion.tokens == expected
        assert completion.text == tail_text(engine.tokenizer, request.prompt, expected)
        assert completion.finish == "length"
    assert not engine.step()
    assert (engine.running, engine.waiting, engine.cached_tokens) == (0, 0, 0)


def tail_text(tokenizer, prompt, tokens):
    before = tokenizer.decode(prompt[-8:], skip_special_tokens=True)
    return tokenizer.decode([*prompt[-8:], *tokens], skip_special_tokens=True)[len(before) :]


def test_requests_join_and_leave_at_any_token(world):
    _base, _folders, engine, models = world
    batch = [ask(adapter, seed, 3 + 5 * (seed % 3)) for seed, adapter in enumerate([None, *ADAPTERS] * 2)]
    events = [[] for _ in batch]
    for request, own in zip(batch, events, strict=True):
        engine.submit(request, own.append)
        engine.step()
    while engine.step():
        pass
    for request, own in zip(batch, events, strict=True):
        assert tuple(event.token for event in own) == greedy(
            models[request.adapter], request.prompt, request.max_new_tokens
        )


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cases=st.lists(
        st.tuples(st.sampled_from([None, *ADAPTERS]), st.integers(1, 40), st.integers(0, 5), st.integers(0, 3)),
        min_size=1,
        max_size=6,
    )
)
def test_log_probabilities_are_those_of_each_alone(world, cases):
    """Of prompts in chunks and of new tokens, whatever is computed beside them."""
    _base, _folders, engine, models = world
    batch = [
        GenerationRequest(
            prompt(seed, length), adapter, new, ignore_end=True, logprobs=top, prompt_logprobs=top,
            frequency_penalty=0.5, temperature=0.5,
        )
        for seed, (adapter, length, new, top) in enumerate(cases)
    ]  # fmt: skip
    events = [[] for _ in batch]
    for request, own in zip(batch, events, strict=True):
        engine.submit(request, own.append)
    while engine.step():
        pass
    for request, own in zip(batch, events, strict=True):
        new = [event.token for event in own if event.token is not None]
        assert len(new) == request.max_new_tokens
        assert own[-1].finish == "length"
        found = [*own[0].prompt_logprobs, *(event.logprob for event in own if event.logprob is not None)]
        ids = [*request.prompt, *new]
        assert [each.token for each in found] == ids[1:]
        with torch.no_grad():
            logits = models[request.adapter](torch.tensor([ids]), use_cache=False).logits[0, :-1]
        expected = logits.log_softmax(-1)
        values = expected.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor([each.value for each in found]), values, atol=1e-4, rtol=1e-4)
        for each, row in zip(found, expected, strict=True):
            assert len(each.top) == request.logprobs
            likeliest = torch.tensor([value for _, value in each.top])
            torch.testing.assert_close(likeliest, row.topk(request.logprobs).values, atol=1e-4, rtol=1e-4)
    assert (engine.running, engine.waiting, engine.cached_tokens) == (0, 0, 0)


SMALL = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT,
         "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}  # fmt: skip
ARCHITECTURES = {
    "gemma": (GemmaConfig, {"head_dim": 8}),  # gains of 1 + weight, scaled and tied embeddings
    "qwen3": (Qwen3Config, {"head_dim": 8}),  # norms on queries and keys
    "qwen2": (Qwen2Config, {}),  # biases
    "phi": (PhiConfig, {"partial_rotary_factor": 0.5}),  # layer norms, attention and MLP read the same input
    "phi3": (Phi3Config, {}),  # fused layers
    "stablelm": (StableLmConfig, {}),  # layer norms, untied
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures(name, tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM

    kind, more = ARCHITECTURES[name]
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(kind(**(SMALL | more))).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    recipe = {"targets": "all", "norms": "with_qk" if name == "qwen3" else True}
    folder = make_adapter(tmp_path / "base", tmp_path / "adapter", 1, amount=0.2, **recipe)
    engine = load_engine(tmp_path / "base", {"a": folder})
    models = {name: with_adapter(tmp_path / "base", path) for name, path in ((None, None), ("a", folder))}
    batch = [ask(["a", None][seed % 2], seed) for seed in range(4)]
    for request, completion in zip(batch, engine.complete(batch), strict=True):
        assert completion.tokens == greedy(models[request.adapter], request.prompt, 12)


def test_a_4_bit_base(make_base, tmp_path):
    base = make_base("packed", hidden_size=64, intermediate_size=64, max_position_embeddings=CONTEXT)
    kinds = {"all": {"targets": "all"}, "attention": PLAIN}
    folders = {
        name: make_adapter(base, tmp_path / name, seed, quantize="nf4", **kind)
        for seed, (name, kind) in enumerate(kinds.items())
    }
    engine = load_engine(base, folders, quantize="nf4")
    models = {name: with_adapter(base, folders.get(name), "nf4") for name in (None, *folders)}
    batch = [ask(adapter, seed) for seed, adapter in enumerate([None, *folders] * 2)]
    for request, completion in zip(batch, engine.complete(batch), strict=True):
        assert completion.tokens == greedy(models[request.adapter], request.prompt, 12)


def test_bfloat16_stays_near_float32(plain):
    """Decoding in bfloat16 goes other ways after a few tokens; the first one's logits are compared."""
    base, folders = plain
    apart = load_apart(base, "bfloat16", None, CPU)
    engine = Engine(LoadedBase.of(apart), apart.tokenizer, Limits(cache_bytes=2**24, adapter_bytes=2**24))
    seen = []
    apart.model.get_output_embeddings().register_forward_hook(lambda _module, _inputs, out: seen.append(out))
    for name, folder in folders.items():
        engine.load_adapter(name, folder)
    engine.complete([ask(name, count=1) for name in folders])
    with torch.no_grad():
        expected = [with_adapter(base, folder)(torch.tensor([prompt(0)])).logits[0, -1] for folder in folders.values()]
    for row, logits in enumerate(seen[-1][:, 0].float()):
        errors = [float((logits - each).norm() / each.norm()) for each in expected]
        assert errors[row] < 0.1
        assert all(error > 0.3 for other, error in enumerate(errors) if other != row)


def test_a_seed_repeats_a_sample_in_any_company(plain):
    base, folders = plain
    engine = load_engine(base, folders)
    one = ask("a0", temperature=1.0, seed=7, count=20)
    alone = engine.complete([one])[0]
    others = [ask(name, index) for index, name in enumerate(folders)]
    assert engine.complete([*others[:3], one, *others[3:]])[3] == alone
    assert engine.complete([ask("a0", temperature=1.0, seed=8, count=20)])[0] != alone
    unseeded = {engine.complete([ask("a0", temperature=1.0, seed=None, count=20)])[0].tokens for _ in range(3)}
    assert len(unseeded) == 3


def test_grouped_products_serve_a_mix_as_the_other_ways(plain, monkeypatch):
    """On CPU torch has them too, only slowly; GPUs that take them are asked for by name."""
    base, folders = plain
    asked = [ask(name, index, temperature=index % 2) for index, name in enumerate([*folders, None, "a3", "a3"])]
    expected = load_engine(base, folders, batch_size=12).complete(asked)
    monkeypatch.setattr(adapter_pool, "has_grouped_products", lambda device, dtype: True)
    engine = load_engine(base, folders, batch_size=12)
    ways = []
    own = adapter_pool.Routing.of
    monkeypatch.setattr(adapter_pool.Routing, "of", lambda *arguments: ways.append(own(*arguments)) or ways[-1])
    assert engine.complete(asked) == expected
    assert any(way.ends is not None for way in ways)


def test_the_routing_of_an_unchanged_batch_is_made_once(plain, monkeypatch):
    base, folders = plain
    engine = load_engine(base, folders)
    made = []
    own = adapter_pool.Routing.of
    monkeypatch.setattr(adapter_pool.Routing, "of", lambda *arguments: made.append(arguments) or own(*arguments))
    engine.complete([ask("a0", 0, 20), ask("a1", 1, 20)])
    assert len(made) == 5, "one for each prompt, one for writing alone before and after, and one for all of it together"
    assert engine.stats.steps > 20


def drawn(logits, count, **settings):
    """Tokens that a request with these settings gets in `count` steps."""
    sampler = Sampler(SamplingParams(**settings), [1])
    return [pick_tokens(logits[None], [sampler])[0] for _ in range(count)]


def test_top_p_draws_from_the_likeliest_only():
    logits = torch.tensor([0.1, 0.2, 0.5, 0.2]).log()
    assert set(drawn(logits, 200, temperature=1.0, top_p=0.6)) in ({2, 1}, {2, 3})
    for top_p in (1e-6, 0):
        assert set(drawn(logits, 50, temperature=1.0, top_p=top_p)) == {2}


def test_draws_follow_the_probabilities():
    logits = torch.randn(30, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(torch.tensor(drawn(logits, 4000, temperature=0.7)), minlength=30)
    expected = 4000 * (logits / 0.7).softmax(-1)
    assert ((counts - expected) ** 2 / expected).sum() < 60, "chi squared with 29 degrees of freedom: p = 0.0006"


def test_rows_are_drawn_together_as_alone():
    logits = torch.randn(5, 300, generator=torch.Generator().manual_seed(0))
    logits[3] = torch.nan
    settings = [{"temperature": 0.0}, {"temperature": 1.0}, {"temperature": 2.0, "top_p": 0.4},
                {"temperature": 1.0}, {"temperature": 0.5, "seed": 3}]  # fmt: skip
    samplers = [Sampler(SamplingParams(**each), [1]) for each in settings]
    together = [pick_tokens(logits, samplers) for _ in range(20)]
    for row, each in enumerate(settings):
        assert [step[row] for step in together] == drawn(logits[row], 20, **each)
    assert {step[0] for step in together} == {int(logits[0].argmax())}
    assert {step[3] for step in together} == {None}


LOGITS = torch.tensor([0.5, 0.2, 0.16, 0.14]).log()


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"top_k": 1}, {0}),
        ({"top_k": 2}, {0, 1}),
        ({"top_k": 9}, {0, 1, 2, 3}),
        ({"min_p": 0.3}, {0, 1, 2}),
        ({"min_p": 1.0}, {0}),
        ({"min_p": 0.3, "top_k": 3, "top_p": 0.8}, {0, 1}),  # 0.5 and 0.2 are 0.81 of what min_p leaves
        ({"min_p": 0.3, "top_p": 0.85}, {0, 1, 2}),
    ],
)
def test_what_is_drawn_from(settings, kept):
    sampler = Sampler(SamplingParams(temperature=1.0, seed=0, **settings), [1])
    assert {pick_tokens(LOGITS[None], [sampler])[0] for _ in range(400)} == kept


def test_penalties():
    def picks(count, prompt=(1,), **settings):
        sampler, found = Sampler(SamplingParams(**settings), prompt, {3}), []
        for _ in range(count):
            found += pick_tokens(LOGITS[None], [sampler])
            sampler.took(found[-1])
        return found

    assert picks(4) == [0, 0, 0, 0]
    gap = (LOGITS[0] - LOGITS[1]).item()
    assert picks(4, presence_penalty=gap + 0.01) == [0, 1, 0, 0]  # each once, and then the first again
    assert picks(4, frequency_penalty=gap * 0.6) == [0, 0, 1, 0]
    assert picks(2, prompt=(0,), frequency_penalty=1.0) == [0, 1]  # a prompt's tokens don't count
    assert picks(2, prompt=(0,), repetition_penalty=3.0) == [1, 2]  # and here they do
    assert picks(2, prompt=(3,), repetition_penalty=0.1) == [3, 3]
    # Transformers' own, which has one for repetitions.
    ids = torch.tensor([[0, 2]])
    theirs = RepetitionPenaltyLogitsProcessor(1.7)(ids, LOGITS[None].clone())[0]
    ours = LOGITS.clone()
    Sampler(SamplingParams(repetition_penalty=1.7), [0, 2]).penalize_(ours)
    torch.testing.assert_close(ours, theirs)


def test_least_tokens_and_stop_tokens(plain):
    base, folders = plain
    engine = load_engine(base, folders)
    whole = engine.complete([ask("a1", 3)])[0]
    stop = whole.tokens[4]
    first = whole.tokens.index(stop)
    ended = engine.complete([ask("a1", 3, stop_tokens=(stop,))])[0]
    assert ended.tokens == whole.tokens[: first + 1]
    assert ended.text == engine.complete([ask("a1", 3, count=first)])[0].text if first else ended.text == ""
    assert ended.finish == "stop"
    late = engine.complete([ask("a1", 3, stop_tokens=(stop,), min_new_tokens=first + 3)])[0]
    assert stop not in late.tokens[: first + 3]
    with pytest.raises(DataError, match="min_tokens is 99, which is more than max_tokens, 12"):
        engine.submit(ask("a1", 3, min_new_tokens=99), lambda _event: None)


@given(
    text=st.text("abc", max_size=30), stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), data=st.data()
)
def test_text_ends_before_the_first_stop_however_it_comes(text, stops, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    stop, shown = StopText(stops), ""
    for piece in pieces:
        shown += stop.push(piece)
        if stop.is_over:
            break
        assert text.startswith(shown)
    shown += stop.end()
    # What is over earliest counts: pieces show no more than what has come.
    come = next((end for end in range(len(text) + 1) if any(text[:end].endswith(each) for each in stops)), None)
    if come is None:
        assert shown == text
    else:
        assert stop.is_over
        assert not any(each in shown for each in stops)
        assert text.startswith(shown)
        assert any(text[len(shown) :].startswith(each) for each in stops)


def test_stop_texts_and_end_tokens_end_a_request(plain):
    base, folders = plain
    engine = load_engine(base, folders)
    whole = engine.complete([ask("a1", 3)])[0]
    stop = whole.text[4:6]
    ended = engine.complete([ask("a1", 3, stop=(stop, "nowhere"))])[0]
    assert ended.finish == "stop"
    assert ended.text == whole.text[: whole.text.index(stop)]
    with torch.no_grad():
        engine.base.model.lm_head.weight.zero_()  # all logits equal: the likeliest is id 0, the end
    assert engine.complete([GenerationRequest(prompt(0), "a1", 9)])[0] == type(whole)((0,), "", "stop")


def test_cancelled_requests_leave_and_the_others_stay(plain):
    base, folders = plain
    engine, (model, other) = (
        load_engine(base, folders, batch_size=2),
        [with_adapter(base, folders[a]) for a in ("a2", "a3")],
    )
    events = [[] for _ in range(4)]
    running = [
        engine.submit(ask(name, seed, 15), own.append)
        for seed, (name, own) in enumerate(zip(["a2", "a3", "a3", "a2"], events, strict=True))
    ]
    for _ in range(5):
        engine.step()
    running[0].cancel()  # in the batch
    running[2].cancel()  # in the queue
    while engine.step():
        pass
    running[1].cancel()  # finished long ago
    assert [own[-1].finish for own in events] == ["cancelled", "length", "cancelled", "length"]
    assert len(events[0]) > 1
    assert len(events[2]) == 1
    assert tuple(event.token for event in events[1]) == greedy(other, prompt(1), 15)
    assert tuple(event.token for event in events[3]) == greedy(model, prompt(3), 15)
    assert all(adapter.users == adapter.running == 0 for adapter in map(engine.registry.get, folders))


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=40))
def test_the_queue_is_fair_between_keys_and_in_order_within_each(pushes):
    queue, items = FairQueue(), []
    for number, (key, _) in enumerate(pushes):
        queue.push(key, (key, number))
        items.append((key, number))
    for (key, removed), item in zip(pushes, list(items), strict=True):
        if removed:
            queue.remove(key, item)
            items.remove(item)
    assert len(queue) == len(items) == len(list(queue))
    order = []
    while (first := queue.first()) is not None:
        assert queue.pop() == first
        order.append(first)
    assert sorted(order) == sorted(items)
    for key in range(4):
        own = [item for item in order if item[0] == key]
        assert own == sorted(own, key=lambda item: item[1])
    counts = [0] * 4
    for key, _ in order:  # nobody gets two turns while another waits for the first
        counts[key] += 1
        waiting = [k for k in range(4) if counts[k] < sum(item[0] == k for item in items)]
        assert all(counts[key] - counts[k] <= 1 for k in waiting)


def test_what_is_beyond_the_limits_is_refused_at_once(plain):
    base, folders = plain
    engine = load_engine(base, folders, queue=3)
    for _ in range(3):
        engine.submit(ask("a0"), lambda _event: None)
    with pytest.raises(BusyError, match="3 requests are waiting already"):
        engine.submit(ask("a0"), lambda _event: None)
    while engine.step():
        pass
    for request, message in (
        (GenerationRequest([]), "the prompt is empty"),
        (GenerationRequest([1, 300]), "has the token 300, and there are tokens 0 to 256"),
        (
            GenerationRequest([1] * 60, max_new_tokens=5),
            "has 60 tokens and 5 more are asked for, but the context is 64",
        ),
        (GenerationRequest([1], max_new_tokens=0), "max_tokens is 0"),
        (GenerationRequest([1], max_new_tokens=9, temperature=-1), "`temperature` is -1"),
        (GenerationRequest([1], max_new_tokens=9, top_p=-0.1), "`top_p` is -0.1"),
        (GenerationRequest([1], max_new_tokens=9, stop=("",)), "a stop text is empty"),
    ):
        with pytest.raises(DataError, match=message):
            engine.submit(request, lambda _event: None)
    with pytest.raises(ModelError, match=r"no adapter 'b'; there are a0, a1"):
        engine.submit(ask("b"), lambda _event: None)
    small = load_engine(base, {}, cache_bytes=10 * engine.base.cache_bytes_per_token)
    with pytest.raises(DataError, match="memory for 64 tokens, and there is some for 10"):
        small.submit(ask(None), lambda _event: None)
    engine.close()
    with pytest.raises(BusyError, match="closing"):
        engine.submit(ask("a0"), lambda _event: None)


def test_cache_memory_bounds_the_batch_and_delays_nobody_for_ever(plain):
    base, folders = plain
    per_token = load_engine(base, {}).base.cache_bytes_per_token
    engine = load_engine(base, folders, cache_bytes=3 * CONTEXT * per_token)
    batch = [ask(name, seed) for seed, name in enumerate(folders)]
    events = [[] for _ in batch]
    for request, own in zip(batch, events, strict=True):
        engine.submit(request, own.append)
    most = 0
    while engine.step():
        most = max(most, engine.running)
        layers = engine.batch.cache.layers
        assert sum(layer.keys.nbytes + layer.values.nbytes for layer in layers) <= 3 * CONTEXT * per_token
    assert most == 3
    assert all(own[-1].finish == "length" for own in events)


def test_adapters_make_room_for_each_other(plain):
    """The least recently used leaves, is read again when it is asked for, and nothing goes beyond the memory."""
    base, folders = plain
    one = load_engine(base, {"a0": folders["a0"]}).registry.pool.nbytes
    engine = load_engine(base, folders, adapter_bytes=3 * one)
    pool = engine.registry.pool
    assert len(pool) == 3
    events = {name: [] for name in folders}
    for seed, name in enumerate(folders):
        engine.submit(ask(name, seed), events[name].append)
    while engine.step():
        assert pool.nbytes <= pool.max_bytes
    for seed, name in enumerate(folders):
        expected = greedy(with_adapter(base, folders[name]), prompt(seed), 12)
        assert tuple(event.token for event in events[name]) == expected
    engine.complete([ask("a0"), ask("a1")])
    before = engine.registry.evicted
    engine.complete([ask("a0"), ask("a1")])
    assert engine.registry.evicted == before, "what is in memory is not read again"
    with pytest.raises(ModelError, match="MiB for adapters; give the engine more for them"):
        load_engine(base, folders, adapter_bytes=one // 2)


def test_memory_is_that_of_the_adapters(plain):
    base, folders = plain
    engine = load_engine(base, folders)
    size = (folders["a0"] / "adapter_model.safetensors").stat().st_size
    assert engine.registry.pool.nbytes <= 1.25 * 8 * size
    for name in folders:
        engine.unload_adapter(name)
    assert engine.registry.pool.nbytes == 0


def test_a_larger_rank_and_other_layers_come_later(plain, tmp_path):
    """Stacks are laid out anew under adapters that are in use."""
    base, folders = plain
    larger = make_adapter(base, tmp_path / "larger", 50, **PLAIN, targets="all", rank=9)
    engine = load_engine(base, {"a0": folders["a0"]})
    events = []
    engine.submit(ask("a0", count=30), events.append)
    for _ in range(4):
        engine.step()
    engine.load_adapter("larger", larger)
    engine.load_adapter("a1", folders["a1"])
    completions = engine.complete([ask("larger"), ask("a1")])
    assert tuple(event.token for event in events) == greedy(with_adapter(base, folders["a0"]), prompt(0), 30)
    assert completions[0].tokens == greedy(with_adapter(base, larger), prompt(0), 12)
    assert completions[1].tokens == greedy(with_adapter(base, folders["a1"]), prompt(0), 12)


def test_an_adapter_leaves_when_its_requests_are_finished(plain):
    base, folders = plain
    engine = load_engine(base, {"a0": folders["a0"], "a1": folders["a1"]})
    events = []
    engine.submit(ask("a0", count=20), events.append)
    engine.step()
    engine.unload_adapter("a0")
    with pytest.raises(ModelError, match="no adapter 'a0'; there are a1"):
        engine.submit(ask("a0"), lambda _event: None)
    with pytest.raises(ModelError, match="no adapter 'a0'"):
        engine.unload_adapter("a0")
    engine.load_adapter("a0", folders["a5"])  # another one under the old name
    new = engine.complete([ask("a0")])[0]
    assert tuple(event.token for event in events) == greedy(with_adapter(base, folders["a0"]), prompt(0), 20)
    assert new.tokens == greedy(with_adapter(base, folders["a5"]), prompt(0), 12)
    assert len(engine.registry.pool) == 2
    with pytest.raises(ModelError, match="'a1' already"):
        engine.load_adapter("a1", folders["a2"])


def test_an_adapter_that_changed_on_disk_is_not_mixed_up(plain, tmp_path):
    base, folders = plain
    one = load_engine(base, {"a0": folders["a0"]}).registry.pool.nbytes
    moving = shutil.copytree(folders["a1"], tmp_path / "moving")
    engine = load_engine(base, {"moving": moving, "a0": folders["a0"]}, adapter_bytes=one)
    shutil.copy(folders["a2"] / "adapter_model.safetensors", moving)
    events = [[], []]
    engine.submit(ask("moving"), events[0].append)
    engine.submit(ask("a0"), events[1].append)
    while engine.step():
        pass
    assert [event.finish for event in events[0]] == ["failed"]
    assert "its files have changed since" in events[0][0].error
    assert events[1][-1].finish == "length"


def test_numbers_that_overflow_fail_their_own_request_only(plain, tmp_path):
    base, folders = plain
    wild = make_adapter(base, tmp_path / "wild", 1, amount=1e30, **PLAIN)
    engine = load_engine(base, {"wild": wild, "a0": folders["a0"]}, batch_size=3)
    events = [[] for _ in range(6)]
    names = ["a0", "wild", None, "wild", "a0", None]
    for seed, (name, own) in enumerate(zip(names, events, strict=True)):
        engine.submit(ask(name, seed), own.append)
    while engine.step():
        pass
    models = {None: with_adapter(base, None), "a0": with_adapter(base, folders["a0"])}
    for seed, (name, own) in enumerate(zip(names, events, strict=True)):
        if name == "wild":
            assert own[-1].finish == "failed"
            assert "computed no numbers" in own[-1].error
        else:
            assert tuple(event.token for event in own) == greedy(models[name], prompt(seed), 12)


def test_the_engine_outlives_a_step_that_fails(plain):
    base, folders = plain
    engine = load_engine(base, {"a0": folders["a0"]})
    broken = engine.base.model.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(MemoryError("no memory")))
    engine.start()
    try:
        from queue import SimpleQueue

        events = SimpleQueue()
        engine.submit(ask("a0"), events.put)
        failed = events.get(timeout=30)
        assert (failed.finish, failed.error) == ("failed", "the engine failed: no memory")
        broken.remove()
        engine.submit(ask("a0"), events.put)
        tokens = [events.get(timeout=30).token for _ in range(12)]
        assert tuple(tokens) == greedy(with_adapter(base, folders["a0"]), prompt(0), 12)
    finally:
        engine.close()


def test_closing_finishes_within_the_grace_and_cancels_after_it(plain):
    base, folders = plain
    for grace, finish in ((60.0, "length"), (0.0, "cancelled")):
        engine, events = load_engine(base, {"a0": folders["a0"]}), []
        for _ in range(9):
            engine.submit(ask("a0", count=40), events.append)
        engine.start()
        engine.close(grace)
        assert [event.finish for event in events if event.finish] == [finish] * 9


# What can't be mixed is refused when it is loaded.


@pytest.fixture(scope="module")
def bare(plain):
    return load_engine(plain[0], {})


def test_an_adapter_of_other_weights_is_refused(bare, make_base, tmp_path):
    other = make_base("other", seed=1, max_position_embeddings=CONTEXT)
    with pytest.raises(ModelError, match="the weights of plain are others"):
        bare.load_adapter("x", make_adapter(other, tmp_path / "x", 0, **PLAIN))
    assert bare.registry.names == []


def test_an_adapter_of_other_positions_is_refused(bare, plain, run, tmp_path):
    base, _ = plain
    folder = make_adapter(base, tmp_path / "x", 0, **PLAIN)
    extend(bare.base.model.config, 128, "yarn").save_pretrained(folder)
    with pytest.raises(ModelError, match=r"trained with other positions.*rope_type yarn.*against.*rope_type default"):
        bare.load_adapter("x", folder)
    apart = load_apart(
        run, "float32", None, CPU
    )  # its base is scaled, and the folder does not say for what it was made
    engine = Engine(LoadedBase.of(apart), apart.tokenizer, Limits(cache_bytes=2**24, adapter_bytes=2**24))
    with pytest.raises(ModelError, match=r"trained with its base's own positions, but this base is served with.*yarn"):
        engine.load_adapter("x", make_adapter(apart.source.location, tmp_path / "y", 0, **PLAIN, alone=True))
    engine.load_adapter("run", run)
    assert engine.complete([ask("run", count=40)])[0].tokens == greedy(with_run(run), prompt(0), 40)


def with_run(run):
    import lengthen

    return lengthen.load(run, "float32")[0]


def test_adapters_from_elsewhere(bare, plain, tmp_path):
    """Without base.json and config.json, shapes decide."""
    base, _ = plain
    folder = make_adapter(base, tmp_path / "x", 0, alone=True)
    bare.load_adapter("elsewhere", folder)
    assert bare.complete([ask("elsewhere")])[0].tokens == greedy(with_adapter(base, folder), prompt(0), 12)
    bare.unload_adapter("elsewhere")


def test_what_a_batch_has_no_place_for_is_refused(bare, plain, make_base, tmp_path):
    base, _ = plain
    wide = make_base("wide", vocab_size=300, max_position_embeddings=CONTEXT)
    deep = make_base("deep", hidden_size=48, max_position_embeddings=CONTEXT)
    cases = {
        "DoRA": (base, PLAIN | {"variant": "dora"}, "it uses use_dora"),
        "PiSSA": (base, PLAIN | {"variant": "pissa"}, r"its initialization \(pissa\) changed the base's weights"),
        "IA3": (base, PLAIN | {"kind": "ia3"}, "of the kind .*IA3, and only LoRA can be batched"),
        "vocabulary": (wide, {"alone": True}, r"has \(300, 32\) weights, the base \(257, 32\)"),
        "sizes": (deep, PLAIN | {"alone": True}, "takes 32 and gives 16 at rank 8"),
    }
    for name, (made_for, recipe, message) in cases.items():
        folder = make_adapter(made_for, tmp_path / name, 0, **recipe)
        with pytest.raises(ModelError, match=message):
            bare.load_adapter(name, folder)
    with pytest.raises(ModelError, match=r"has no adapter_config\.json"):
        bare.load_adapter("nothing", tmp_path)
    folder = make_adapter(base, tmp_path / "cut", 0, **PLAIN)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="are damaged"):
        bare.load_adapter("cut", folder)
    weights.unlink()
    with pytest.raises(ModelError, match="is the copy complete"):
        bare.load_adapter("cut", folder)
    with pytest.raises(ModelError, match="infinite or NaN"):
        bare.load_adapter("nan", make_adapter(base, tmp_path / "nan", 0, amount=float("nan"), **PLAIN))
    assert bare.registry.names == []
    assert bare.registry.pool.nbytes == 0


def test_bases_that_can_t_be_batched_are_refused(tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM

    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    cases = (
        (LlamaConfig(**SMALL, rope_parameters=rope), ContextError, "changes with the length of its input"),
        (MistralConfig(**SMALL, sliding_window=8), ModelError, "don't see everything before a token"),
    )
    for config, error, message in cases:
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / config.model_type)
        tokenizer.save_pretrained(tmp_path / config.model_type)
        with pytest.raises(error, match=message):
            load_engine(tmp_path / config.model_type, {})
