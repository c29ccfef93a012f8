"""The server as a process of its own, through OpenAI's client, over the shipped base and two adapters."""

import asyncio
import json
import re
import signal
import socket
import threading
import time
from itertools import cycle, islice

import httpx
import openai
import pytest
from adapter_files import CPU, greedy, make_adapter, with_adapter

from lengthen.adapters.load import load_apart
from lengthen.adapters.scale import scale_adapter
from lengthen.errors import DataError
from lengthen.models.load import load_tokenizer
from lengthen.serving.api.metrics import _escaped
from lengthen.serving.api.schemas import ChatRequest
from lengthen.serving.api.service import ApiError, Service
from lengthen.serving.engine import Engine, GenerationRequest, Limits, LoadedBase
from server_process import TOKEN, Server, serving

pytestmark = pytest.mark.invariants

PROMPTS = ["def add(a, b):\n", "import os\n\n", "class Queue:\n    def __init__(self"]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    folder = tmp_path_factory.mktemp("allowed")
    plain = {"embeddings": False, "norms": False}
    return {
        "one": make_adapter("tiny", folder / "one", 1, amount=0.1, **plain),
        "two": make_adapter("tiny", folder / "two", 2, amount=0.05, few_tokens=True),
        "three": make_adapter("tiny", folder / "three", 3, amount=0.1, **plain, targets="all", rank=4),
    }


@pytest.fixture(scope="module")
def server(adapters):
    arguments = [f"--adapter={name}={adapters[name]}" for name in ("one", "two")]
    folder = adapters["one"].parent
    with serving(*arguments, "--allow", folder, "--template", "vicuna", "--max-body", "0.1") as running:
        yield running


@pytest.fixture(scope="module")
def expected(adapters):
    """A function that gives a model's greedy continuation of a prompt, by peft."""
    models = {
        "tiny": with_adapter("tiny", None),
        **{name: with_adapter("tiny", path) for name, path in adapters.items()},
    }
    tokenizer, known = load_tokenizer("tiny"), {}

    def text(name, prompt, count=20):
        if (name, prompt, count) not in known:
            ids = tokenizer(prompt)["input_ids"]
            new = list(greedy(models[name], ids, count))
            new = new[: new.index(0)] if 0 in new else new
            whole = tokenizer.decode([*ids, *new], skip_special_tokens=True)
            known[name, prompt, count] = whole[len(prompt) :]
        return known[name, prompt, count]

    return text


def test_models(server):
    assert server.names == ["tiny", "one", "two"]
    listed = list(server.client.models.list())
    assert [model.id for model in listed] == server.names
    assert server.client.models.retrieve("two").parent == "tiny"
    assert listed[0].max_model_len == 256


def test_completions_are_the_models_own(server, expected):
    for name in server.names:
        for prompt in PROMPTS:
            answer = server.complete(name, prompt)
            assert answer.choices[0].text == expected(name, prompt)
            assert answer.model == name
            assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
            assert answer.usage.completion_tokens == 20
            assert answer.choices[0].finish_reason == "length"
    assert len({expected(name, PROMPTS[0]) for name in server.names}) == 3


def test_a_stream_joins_to_the_answer(server, expected):
    parts = list(server.complete("one", PROMPTS[0], stream=True, stream_options={"include_usage": True}))
    assert "".join(part.choices[0].text for part in parts[:-1]) == expected("one", PROMPTS[0])
    assert len(parts) > 5
    assert [part.choices[0].finish_reason for part in parts[:-1]] == [None] * (len(parts) - 2) + ["length"]
    assert parts[-1].choices == []
    assert parts[-1].usage.completion_tokens == 20


def test_several_prompts_and_prompts_of_tokens(server, expected):
    answer = server.complete("two", PROMPTS)
    assert [choice.text for choice in answer.choices] == [expected("two", prompt) for prompt in PROMPTS]
    assert answer.usage.completion_tokens == 60
    texts = {0: "", 1: "", 2: ""}
    for part in server.complete("two", PROMPTS, stream=True):
        texts[part.choices[0].index] += part.choices[0].text
    assert list(texts.values()) == [expected("two", prompt) for prompt in PROMPTS]
    ids = load_tokenizer("tiny")(PROMPTS[1])["input_ids"]
    assert server.complete("two", ids).choices[0].text == expected("two", PROMPTS[1])


def test_chat(server, expected):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Sort "}, {"type": "text", "text": "a list."}]},
    ]
    arguments = {"model": "one", "messages": messages, "temperature": 0, "max_completion_tokens": 12}
    answer = server.client.chat.completions.create(**arguments)
    assert answer.choices[0].message.content == expected("one", "Be brief. USER: Sort a list. ASSISTANT:", 12)
    assert answer.choices[0].message.role == "assistant"
    parts = list(server.client.chat.completions.create(**arguments, stream=True))
    assert "".join(part.choices[0].delta.content or "" for part in parts) == answer.choices[0].message.content
    assert parts[0].choices[0].delta.role == "assistant"
    assert parts[-1].choices[0].finish_reason == answer.choices[0].finish_reason == "length"
    # Without a limit, an answer may fill the context.
    del arguments["max_completion_tokens"]
    assert server.client.chat.completions.create(**arguments).usage.total_tokens <= 256


def test_seeds_and_stop_texts(server, expected):
    def sample(seed):
        return (
            server.client.completions.create(model="one", prompt=PROMPTS[0], max_tokens=30, seed=seed).choices[0].text
        )

    assert sample(1) == sample(1) != sample(2)
    whole = expected("two", PROMPTS[0])
    stop = whole[8:11]
    answer = server.complete("two", PROMPTS[0], stop=[stop])
    assert answer.choices[0].text == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_log_probabilities_of_prompts_and_answers(server):
    tokenizer = load_tokenizer("tiny")
    ids = tokenizer(PROMPTS[0])["input_ids"]
    answer = server.complete("two", [ids, ids[:4]], 6, echo=True, logprobs=2)
    first, _ = answer.choices
    assert first.text.startswith(PROMPTS[0])
    assert answer.usage.prompt_tokens == len(ids) + 4
    logprobs = first.logprobs
    assert len(logprobs.tokens) == len(ids) + 6
    assert logprobs.token_logprobs[0] is logprobs.top_logprobs[0] is None
    assert "".join(logprobs.tokens[1:]) == first.text
    for token, value, top, offset in zip(
        logprobs.tokens[1:], logprobs.token_logprobs[1:], logprobs.top_logprobs[1:], logprobs.text_offset[1:],
        strict=True,
    ):  # fmt: skip
        assert top[token] == value <= max(top.values()) <= 0
        assert first.text[offset:].startswith(token)
    # The same text and numbers without tokens, as a stream, and without anything new.
    parts = list(server.complete("two", PROMPTS[0], 6, echo=True, logprobs=2, stream=True))
    assert "".join(part.choices[0].text for part in parts) == first.text
    streamed = [value for part in parts for value in part.choices[0].logprobs.token_logprobs]
    assert streamed[1:] == pytest.approx(logprobs.token_logprobs[1:], abs=1e-4)
    (only,) = server.complete("two", PROMPTS[0], 0, echo=True, logprobs=0).choices
    assert only.text == PROMPTS[0]
    assert only.logprobs.token_logprobs[1:] == pytest.approx(logprobs.token_logprobs[1 : len(ids)], abs=1e-4)
    assert server.complete("two", PROMPTS[0], 0, echo=True).choices[0].logprobs is None
    # Of chats.
    chat = server.client.chat.completions.create(
        model="two", messages=[{"role": "user", "content": "Hi"}], max_tokens=5, logprobs=True, top_logprobs=3, n=2
    )
    assert len(chat.choices) == 2
    for choice in chat.choices:
        assert len(choice.logprobs.content) == 5
        for token in choice.logprobs.content:
            assert len(token.top_logprobs) == 3
            assert token.logprob <= token.top_logprobs[0].logprob
            assert token.bytes is None or bytes(token.bytes).decode() == token.token


def test_several_answers_and_ways_to_sample(server):
    def texts(**more):
        answer = server.client.completions.create(
            model="one", prompt=PROMPTS[:2], max_tokens=12, temperature=1.0, n=3, extra_body=more
        )
        assert [choice.index for choice in answer.choices] == list(range(6))
        assert answer.usage.prompt_tokens == sum(len(load_tokenizer("tiny")(each)["input_ids"]) for each in PROMPTS[:2])
        return [choice.text for choice in answer.choices]

    drawn = texts(seed=1)
    assert len(set(drawn)) == 6
    assert texts(seed=1) == drawn != texts(seed=2)
    assert len(set(texts(top_k=1))) == 2
    assert len(set(texts(min_p=1.0))) == 2
    greedy = server.complete("one", PROMPTS[0], 20, extra_body={"repetition_penalty": 1.5, "top_k": -1})
    assert greedy.choices[0].text != server.complete("one", PROMPTS[0], 20).choices[0].text
    parts = list(
        server.client.chat.completions.create(
            model="one", messages=[{"role": "user", "content": "Hi"}], max_tokens=4, n=2, stream=True,
            stream_options={"include_usage": True, "continuous_usage_stats": True},
        )
    )  # fmt: skip
    assert [part.choices[0].index for part in parts[:2]] == [0, 1]
    assert all(part.usage.prompt_tokens > 0 for part in parts)


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("completions", {"max_tokens": 8.0, "n": 1.0, "logprobs": 1.0, "top_k": -1.0, "min_tokens": 0.0}),
        ("completions", {"max_tokens": 8, "stop": ""}),
        ("completions", {"max_tokens": 8, "stop": [""]}),
        ("completions", {"max_tokens": 8, "temperature": 2, "top_p": 0}),
        ("chat/completions", {"max_completion_tokens": 8.0, "seed": 3.0, "stop": ["", ""]}),
        ("chat/completions", {"max_tokens": 8, "temperature": 1, "top_p": 0.0}),
    ],
)
def test_numbers_and_empty_fields_as_clients_write_them(server, path, more):
    def post(body):
        prompt = {"prompt": PROMPTS[0]} if path == "completions" else {"messages": [{"role": "user", "content": "Hi"}]}
        answer = server.http.post(f"/v1/{path}", json={"model": "one", "temperature": 0, **prompt, **body})
        assert answer.status_code == 200, answer.text
        choice = answer.json()["choices"][0]
        return choice.get("text") or choice["message"]["content"]

    assert post(more) == post({"max_tokens": 8}) != ""


def test_a_conversation_goes_on_with_what_the_client_got(server):
    messages = [{"role": "user", "content": "one"}]
    for _ in range(3):
        answer = server.client.chat.completions.create(model="one", messages=messages, max_tokens=4, temperature=0)
        messages += [answer.choices[0].message, {"role": "user", "content": "more"}]
    dumped = [each if isinstance(each, dict) else each.model_dump() for each in messages]
    for more in (
        {},
        {"tools": [], "tool_choice": "none", "parallel_tool_calls": True, "response_format": {"type": "text"}},
        {"logit_bias": {}, "n": 1, "presence_penalty": 0, "store": False, "service_tier": "auto", "stop": []},
        {"chat_template_kwargs": {"enable_thinking": False}, "modalities": ["text"], "user": "x", "seed": None},
    ):
        again = server.http.post(
            "/v1/chat/completions", json={"model": "one", "messages": dumped, "max_tokens": 4, "temperature": 0} | more
        )
        assert again.status_code == 200, again.text


def test_a_started_answer_is_continued(server):
    def content(messages, **more):
        answer = server.client.chat.completions.create(
            model="one", messages=messages, max_tokens=8, temperature=0, extra_body=more
        )
        return answer.choices[0].message.content

    asked = [{"role": "user", "content": "Sort a list."}]
    whole = content(asked)
    begun = [*asked, {"role": "assistant", "content": whole[:4]}]
    continued = content(begun, continue_final_message=True, add_generation_prompt=False)
    assert continued != content(begun)
    with pytest.raises(openai.BadRequestError, match="can't be true with add_generation_prompt"):
        content(begun, continue_final_message=True, add_generation_prompt=True)
    with pytest.raises(openai.BadRequestError, match="tokenize is no variable of a template"):
        content(asked, chat_template_kwargs={"tokenize": False})
    with pytest.raises(openai.BadRequestError, match="tools: has no place here; leave it out"):
        content(asked, tools=[{"type": "function", "function": {"name": "f"}}])


def test_control_tokens_in_messages_are_text(server):
    """The end token written in a message is as many tokens as it has to be as text, and ends nothing."""
    tokenizer = load_tokenizer("tiny")
    counts = [
        server.client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": text}], max_tokens=1
        ).usage.prompt_tokens
        for text in ("a b", f"a {tokenizer.eos_token} b")
    ]
    spelled = tokenizer(f"a {tokenizer.eos_token} b", add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert counts[1] - counts[0] == len(spelled) - len(tokenizer("a b", add_special_tokens=False)["input_ids"]) > 1


def test_two_adapters_stream_at_the_same_time(server, expected):
    streams = {name: server.complete(name, PROMPTS[2], 100, stream=True) for name in ("one", "two")}
    order, texts = [], dict.fromkeys(streams, "")

    def follow(name):
        for part in streams[name]:
            order.append(name)
            texts[name] += part.choices[0].text

    threads = [threading.Thread(target=follow, args=(name,)) for name in streams]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {name: expected(name, PROMPTS[2], 100) for name in streams}
    last_of_first = max(index for index, name in enumerate(order) if name == order[0])
    assert any(name != order[0] for name in order[:last_of_first]), "one came after the other"


def test_adapters_come_and_go(server, adapters, expected, tmp_path):
    def post(action, **body):
        return server.http.post(f"/v1/{action}_lora_adapter", json=body)

    assert post("load", lora_name="three", lora_path="three").status_code == 200  # relative to an allowed folder
    assert server.complete("three", PROMPTS[0]).choices[0].text == expected("three", PROMPTS[0])
    again = post("load", lora_name="three", lora_path=str(adapters["three"]))
    assert again.status_code == 400
    assert "there is an adapter 'three' already" in again.json()["error"]["message"]
    assert post("unload", lora_name="three").status_code == 200
    gone = post("unload", lora_name="three")
    assert gone.status_code == 404
    assert "there is no adapter 'three'; there are one, two" in gone.json()["error"]["message"]
    with pytest.raises(openai.NotFoundError, match="there is no model 'three'; there are tiny, one, two"):
        server.complete("three", PROMPTS[0])
    link = adapters["one"].parent / "link"
    link.symlink_to(make_adapter("tiny", tmp_path / "outside", 1, embeddings=False, norms=False))
    for path in (tmp_path / "outside", "../x", link, "/etc"):
        refused = post("load", lora_name="x", lora_path=str(path))
        assert refused.status_code == 403
        assert "outside of the folders" in refused.json()["error"]["message"]
    assert post("load", lora_name="x", lora_path="nothing").status_code == 400
    assert post("load", lora_name="x", lora_path="a\0b").status_code == 400
    assert post("load", lora_name="tiny", lora_path="three").status_code == 400
    assert post("load", lora_name="a\nb", lora_path="three").status_code == 400
    assert [model.id for model in server.client.models.list()] == ["tiny", "one", "two"]


def test_a_share_of_every_adapter_is_served(adapters, expected):
    half = with_adapter("tiny", adapters["one"])
    scale_adapter(half, 0.5, adapters["one"])
    ids, tokenizer = load_tokenizer("tiny")(PROMPTS[0])["input_ids"], load_tokenizer("tiny")
    wanted = tokenizer.decode([*ids, *greedy(half, ids, 20)], skip_special_tokens=True)[len(PROMPTS[0]) :]
    with serving(f"--adapter=one={adapters['one']}", "--adapter-scale", "0.5") as running:
        assert running.complete("one", PROMPTS[0]).choices[0].text == wanted
        assert running.complete("tiny", PROMPTS[0]).choices[0].text == expected("tiny", PROMPTS[0])
    assert len({wanted, expected("tiny", PROMPTS[0]), expected("one", PROMPTS[0])}) == 3


def test_wrong_and_missing_tokens(server):
    stranger = openai.OpenAI(base_url=f"{server.url}/v1", api_key="a guess", max_retries=0)
    with pytest.raises(openai.AuthenticationError, match="the bearer token is missing or wrong"):
        stranger.models.list()
    assert httpx.get(f"{server.url}/metrics").status_code == 401
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}


BAD_BODIES = {
    "no JSON": (b"{", 400, "the body: is no JSON"),
    "not UTF-8": (b'{"model": "\xff"}', 400, "parsing the body"),
    "a list": (b"[]", 400, "the body: Input should be a valid dictionary"),
    "no prompt": ({}, 400, "prompt: Field required"),
    "empty prompt": ({"prompt": ""}, 400, "the prompt is empty"),
    "no prompts": ({"prompt": []}, 400, "prompt: List should have at least 1 item|the prompt is empty"),
    "unknown model": ({"model": "four", "prompt": "a"}, 404, "there is no model 'four'; there are tiny, one, two"),
    "wrong type": ({"prompt": "a", "max_tokens": "ten"}, 400, "max_tokens: Input should be a valid integer"),
    "unknown field": ({"prompt": "a", "beam_width": 4}, 400, "beam_width: is not known here; leave it out"),
    "half a token": ({"prompt": "a", "max_tokens": 8.5}, 400, "max_tokens: Input should be a valid integer"),
    "no stop text": ({"prompt": "a", "stop": [1]}, 400, "stop.*: Input should be a valid string"),
    "several": ({"prompt": "a", "n": 0, "top_p": 3}, 400, "top_p: .*; n: Input should be greater"),
    "penalty": ({"prompt": "a", "presence_penalty": 2.5}, 400, "presence_penalty: "),
    "log probabilities": ({"prompt": "a", "logprobs": 30}, 400, "logprobs: Input should be less"),
    "mixed prompts": ({"prompt": ["a", [1]]}, 400, "prompt: should be a text, a list of tokens"),
    "best of more": ({"prompt": "a", "n": 2, "best_of": 3}, 400, "best_of: should be n"),
    "nothing asked for": ({"prompt": "a", "max_tokens": 0}, 400, "max_tokens is 0"),
    "too few": ({"prompt": "a", "min_tokens": 20}, 400, "min_tokens is 20, which is more than max_tokens, 16"),
    "JSON": ({"prompt": "a", "response_format": {"type": "json_object"}}, 400, "response_format.type: .*'text'"),
    "wrong token": ({"prompt": [6000]}, 400, "the prompt has the token 6000, and there are tokens 0 to 5119"),
    "too long": ({"prompt": "a = 1\n" * 200}, 400, r"the prompt has \d+ tokens and 16 more are asked for.*is 256"),
    "too many": ({"prompt": "a", "max_tokens": 256}, 400, "and 256 more are asked for, but the context is 256"),
    "too large": ({"prompt": "a" * 200_000}, 413, "the body is larger than 104857 bytes"),
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_bad_bodies(server, name):
    body, status, message = BAD_BODIES[name]
    content = body if isinstance(body, bytes) else json.dumps({"model": "one", **body}).encode()
    answer = server.http.post("/v1/completions", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    error = answer.json()["error"]
    assert re.search(message, error["message"])
    assert set(error) == {"message", "type", "param", "code"}


def test_bad_chats_and_paths(server):
    for messages, message in (
        ([], "messages: List should have at least 1 item"),
        ([{"role": "critic", "content": "x"}], "messages.0.role: Input should be 'system'"),
        ([{"role": "tool", "content": "x"}], "it has no place for messages of role tool"),
        ([{"role": "user"}], "messages: 0.content is missing"),
        (
            [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "mood": 1}],
            "messages.1.mood: is not known here",
        ),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}],
            "messages.0.content: part 0 should be of type text, with its text, and is of type 'image_url'",
        ),
    ):
        answer = server.http.post("/v1/chat/completions", json={"model": "one", "messages": messages})
        assert answer.status_code == 400
        assert message in answer.json()["error"]["message"]
    assert server.http.get("/v1/nothing").json()["error"]["message"] == "GET /v1/nothing: Not Found"
    assert server.http.get("/v1/completions").status_code == 405


def test_a_client_that_leaves_is_cancelled(server):
    body = {"model": "one", "prompt": "x", "max_tokens": 250, "temperature": 0.0}
    before = server.metric("requests_total")
    with server.http.stream("POST", "/v1/completions", json=body | {"stream": True}) as answer:
        next(answer.iter_lines())
    with pytest.raises(httpx.ReadTimeout):
        server.http.post("/v1/completions", json=body | {"prompt": ["x"] * 9}, timeout=0.2)
    deadline = time.monotonic() + 60
    while server.metric("requests_running") + server.metric("requests_waiting") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert server.metric("requests_running") == server.metric("cached_tokens") == 0
    text = server.http.get("/metrics").text
    assert server.metric("requests_total") == before + 10
    assert int(re.search(r'adapter="one",finish="cancelled"} (\d+)', text)[1]) >= 1


def test_200_clients_at_once(server, expected):
    cases = list(islice(cycle([(name, prompt) for name in server.names for prompt in PROMPTS]), 200))

    async def ask_all():
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key=TOKEN, max_retries=0, timeout=300,
            http_client=httpx.AsyncClient(limits=limits, timeout=300),
        ) as client:  # fmt: skip

            async def ask(name, prompt):
                answer = await client.completions.create(model=name, prompt=prompt, max_tokens=20, temperature=0)
                return answer.choices[0].text

            return await asyncio.gather(*(ask(*case) for case in cases))

    assert asyncio.run(ask_all()) == [expected(*case) for case in cases]


def test_limits_of_the_queue_and_of_time(adapters, expected):
    """Who finds the queue full is told so at once; who waits too long, then; the others are not touched."""
    one = f"--adapter=one={adapters['one']}"
    with serving(one, "--batch-size", "1", "--queue", "2", "--max-tokens", "200", "--timeout", "20") as server:

        async def ask_all():
            async with server.openai(openai.AsyncOpenAI) as client:

                async def ask():
                    return await client.completions.create(model="one", prompt=PROMPTS[0], max_tokens=60, temperature=0)

                return await asyncio.gather(*(ask() for _ in range(12)), return_exceptions=True)

        answers = asyncio.run(ask_all())
        refused = [each for each in answers if isinstance(each, openai.RateLimitError)]
        served = [each for each in answers if not isinstance(each, Exception)]
        assert len(refused) + len(served) == 12
        assert refused
        assert served
        assert "2 requests are waiting already" in str(refused[0])
        assert all(each.choices[0].text == expected("one", PROMPTS[0], 60) for each in served)
        with pytest.raises(openai.BadRequestError, match="max_tokens is 201, and this server gives at most 200"):
            server.complete("one", PROMPTS[0], 201)
        assert server.http.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": "y"}).status_code == 403
        chat = {"model": "one", "messages": [{"role": "user", "content": "x"}]}
        assert "no chat template" in server.http.post("/v1/chat/completions", json=chat).json()["error"]["message"]


@pytest.mark.slow  # two servers are started
def test_shutdown_restart_and_kill_while_streaming(adapters, expected):
    one = f"--adapter=one={adapters['one']}"
    with serving(one) as server:
        stream = server.complete("one", PROMPTS[0], 100, stream=True)
        text = next(stream).choices[0].text
        server.process.send_signal(signal.SIGTERM)
        text += "".join(part.choices[0].text for part in stream)
        assert text == expected("one", PROMPTS[0], 100), "what was begun is finished"
        assert server.process.wait(30) == 0
        with pytest.raises(openai.APIConnectionError):
            server.complete("one", PROMPTS[0])
        port = server.url.rsplit(":", 1)[1]
    again = Server("--port", port, one)
    try:
        assert again.complete("one", PROMPTS[0]).choices[0].text == expected("one", PROMPTS[0])
        stream = again.complete("one", PROMPTS[0], 200, stream=True)
        next(stream)
        again.process.kill()
        with pytest.raises((httpx.RemoteProtocolError, openai.APIConnectionError)):
            list(stream)
    finally:
        again.close()


def test_what_takes_too_long_is_told_and_cancelled():
    apart = load_apart("tiny", "float32", None, CPU)
    engine = Engine(LoadedBase.of(apart), apart.tokenizer, Limits(cache_bytes=2**26, adapter_bytes=2**20))

    async def ask():
        (call,) = Service(engine, "tiny").submit([GenerationRequest([1, 2, 3])])
        with pytest.raises(ApiError, match="the answer took too long") as refused:
            await anext(call.events(until=time.monotonic() + 0.05))  # nobody works
        call.cancel()
        return refused.value.status

    assert asyncio.run(ask()) == 504
    assert not engine.step()
    assert engine.stats.finished == {(None, "cancelled"): 1}


def test_bad_options_are_refused_in_one_line(adapters, lengthen_cli, tmp_path):
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    cases = {
        ("--adapter", "one"): "is no NAME=PATH",
        ("--adapter", "a=x", "--adapter", "a=y"): "is given twice",
        ("--port", "0", "--adapter", f"one={tmp_path}"): "has no adapter_config.json",
        ("--port", "0", "--adapter", f"tiny={adapters['one']}"): "has the name of the model",
        ("--port", "0", "--allow", tmp_path / "x"): "is no folder",
        ("--port", "0", "--template", "gpt"): "'gpt' is not one of",
        ("--port", port): f"can't listen at 127.0.0.1:{port}",
        ("--host", "nowhere.invalid", "--token", "t"): "can't listen at nowhere.invalid",
        ("--token", ""): "the token is empty",
    }
    for arguments, message in cases.items():
        code, _, err = lengthen_cli("serve", "tiny", *arguments)
        assert code == 2
        assert message in " ".join(re.sub("[│╭╮╰╯─]", " ", err).split())
    taken.close()


def test_names_in_metrics_are_escaped():
    assert _escaped('a"b\\c\nd') == r"a\"b\\c\nd"


@pytest.fixture(scope="module")
def with_own_texts(tmp_path_factory):
    """Adapters with a tokenizer of their own, with a chat template alone, and a run with the one of its run folder."""
    folder = tmp_path_factory.mktemp("texts")
    plain = {"embeddings": False, "norms": False, "amount": 0.1}
    own = make_adapter("tiny", folder / "own", 1, **plain)
    tokenizer = load_tokenizer("tiny")
    tokenizer.chat_template = "own {% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(own)
    template = make_adapter("tiny", folder / "template", 2, **plain)
    (template / "chat_template.jinja").write_text("template {% for m in messages %}{{ m.content }}{% endfor %}")
    run = folder / "run"
    make_adapter("tiny", run / "adapter", 3, **plain)
    tokenizer = load_tokenizer("tiny")
    tokenizer.chat_template = "run {% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(run)
    same = make_adapter("tiny", folder / "same", 4, **plain)
    load_tokenizer("tiny").save_pretrained(same)
    return {"own": own, "template": template, "run": run, "same": same}


def _with_engine(adapters, template=None):
    apart = load_apart("tiny", "float32", None, CPU)
    limits = Limits(cache_bytes=2**26, adapter_bytes=2**24)
    engine = Engine(LoadedBase.of(apart), apart.tokenizer, limits, template=template)
    for name, path in adapters.items():
        engine.load_adapter(name, path)
    return engine, Service(engine, "tiny")


def _prompt_of(service, name):
    chat = ChatRequest(model=name, messages=[{"role": "user", "content": "hi"}], max_tokens=4)
    (request,) = service.requests(chat)
    return service.engine.tokenizer.decode(request.prompt)


def test_an_adapter_is_asked_in_its_own_template(with_own_texts):
    engine, service = _with_engine(with_own_texts)
    for name in ("own", "template", "run"):
        assert _prompt_of(service, name) == f"{name} hi"
    with pytest.raises(DataError, match="no chat template"):
        _prompt_of(service, "same")
    assert engine.tokenizer_of("same") is engine.tokenizer_of(None) is engine.tokenizer


def test_a_template_by_name_is_every_adapters(with_own_texts):
    _, service = _with_engine(with_own_texts, "vicuna")
    prompts = {_prompt_of(service, name) for name in ("tiny", *with_own_texts)}
    assert len(prompts) == 1
    assert "USER: hi ASSISTANT:" in prompts.pop()


def test_an_adapter_ends_where_its_own_tokenizer_says(tmp_path):
    """Peft's continuation, up to the token that the tokenizer beside the adapter ends texts with."""
    folder = make_adapter("tiny", tmp_path / "own", 1, amount=0.1, embeddings=False, norms=False)
    tokenizer = load_tokenizer("tiny")
    prompt = tokenizer(PROMPTS[0])["input_ids"]
    new = greedy(with_adapter("tiny", folder), prompt, 12)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(new[6])
    tokenizer.save_pretrained(folder)
    engine, _ = _with_engine({"own": folder})
    (answer,) = engine.complete([GenerationRequest(tuple(prompt), adapter="own", max_new_tokens=12)])
    assert answer.finish == "stop"
    assert answer.tokens == new[: new.index(new[6]) + 1]
