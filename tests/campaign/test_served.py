"""A server in a process of its own: paths that lead elsewhere, what logs and metrics hold, load, kills and restarts."""

import asyncio
import json
import os
import random
import socket
import time
from collections import Counter
from urllib.parse import quote

import psutil
import pytest
from adapter_files import make_adapter
from load import alone, run
from mutations import change_json, generator_of

from server_process import TOKEN, serving

SECRET_PROMPT = "the-secret-of-the-prompt"
CLIENTS = int(os.environ.get("LENGTHEN_CLIENTS", 200))
SECONDS = float(os.environ.get("LENGTHEN_LOAD_SECONDS", 600))
RESTARTS = int(os.environ.get("LENGTHEN_RESTARTS", 10))
SEED = 22
MOST_SLOPE = 64  # MiB an hour, of the second half


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Adapters: five that are allowed, one that is not, and links that lead to it."""
    folder = tmp_path_factory.mktemp("adapters")
    (folder / "allowed").mkdir()
    for number in range(5):
        make_adapter(
            "tiny", folder / "allowed" / f"a{number}", number, amount=0.1, embeddings=False, norms=False, rank=16
        )
    make_adapter("tiny", folder / "outside", 9, amount=0.1, embeddings=False, norms=False)
    (folder / "allowed" / "link").symlink_to(folder / "outside")
    (folder / "allowed" / "deep").mkdir()
    (folder / "allowed" / "deep" / "adapter").symlink_to(folder / "outside")
    return folder


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    arguments = [f"--adapter=a{number}={folder / 'allowed' / f'a{number}'}" for number in range(4)]
    limits = ["--max-body", "0.1", "--adapter-memory", "0.001", "--queue", "64"]  # two adapters in memory
    training = tmp_path_factory.mktemp("trained")
    with serving(*arguments, "--allow", folder / "allowed", "--template", "vicuna", *limits,
                 "--allow-training", training) as running:  # fmt: skip
        yield running


def ways_out(folder):
    """Paths that lead to the adapter outside, written in every way."""
    outside = folder / "outside"
    relative = "../outside"
    yield from (outside, relative, "./../outside", "a0/../../outside", "link", "deep", "link/.", "a0/../link")
    yield from (quote(relative, safe=""), quote(quote(relative, safe=""), safe=""), "..\\outside", "..%c0%afoutside")
    yield from ("%2e%2e/outside", "..;/outside", "....//outside", "\uff0e\uff0e/outside", f"file://{outside}")
    yield from (
        f"//{outside}",
        f"{outside}\0",
        "a0\0/../../outside",
        "~/outside",
        f"/proc/self/cwd/{outside}",
        "/dev/fd/0",
    )
    yield from ("", ".", "..", "/", "a" * 5000, "a0/" * 2000, "$HOME", "`id`", "| id", "\n../outside")


def test_no_path_leads_out_of_the_allowed_folders(server, folder):
    before = server.http.get("/v1/models").json()["data"]
    for path in ways_out(folder):
        answer = server.http.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": str(path)})
        assert answer.status_code in (400, 403), (path, answer.text)
    for path in (
        "../../../etc/passwd",
        "..%2f..%2fetc%2fpasswd",
        "%2e%2e/etc/passwd",
        "....//etc/passwd",
        "/etc/passwd",
    ):
        for route in ("/v1/models/", "/v1/fine_tuning/jobs/", "/", "/static/", "/v1/"):
            assert server.http.get(route + path).status_code in (404, 405), route + path
        body = {"model": "tiny", "suffix": path, "documents": ["a"]}
        assert server.http.post("/v1/fine_tuning/jobs", json=body).status_code == 400
    assert server.http.get("/v1/models").json()["data"] == before


def test_what_logs_and_metrics_hold(server):
    """Neither prompts nor answers nor tokens, whatever a request was answered with."""
    body = {"model": "a0", "prompt": SECRET_PROMPT, "max_tokens": 3, "temperature": 0}
    new = server.http.post("/v1/completions", json=body).json()["choices"][0]["text"]
    for change in ({"model": SECRET_PROMPT}, {"max_tokens": SECRET_PROMPT}, {SECRET_PROMPT: 1}, {"max_tokens": 10**9},
                   {"stop": [SECRET_PROMPT]}, {"prompt": [SECRET_PROMPT, 3]}):  # fmt: skip
        server.http.post("/v1/completions", json={**body, **change})
    server.http.post("/v1/completions", content=b'{"' + SECRET_PROMPT.encode())
    server.http.get(f"/{SECRET_PROMPT}")
    server.http.get("/v1/models", headers={"Authorization": "Bearer wrong-token"})
    job = {"model": "tiny", "suffix": "tiny", "documents": [SECRET_PROMPT]}
    server.http.post("/v1/fine_tuning/jobs", json=job)
    said = server.http.get("/metrics").text + "".join(server.said)
    for secret in (SECRET_PROMPT, TOKEN, "wrong-token", *([new] if len(new) > 4 else [])):
        assert secret not in said
    assert 'adapter="a0"' in said


BODIES = {
    "/v1/completions": {"model": "tiny", "prompt": "x =", "max_tokens": 2, "temperature": 0, "n": 1, "stop": ["a"],
                        "logprobs": 1, "seed": 3, "top_p": 0.5, "stop_token_ids": [5]},
    "/v1/chat/completions": {"model": "a0", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2,
                             "stream": False, "response_format": {"type": "text"}, "top_logprobs": 2, "logprobs": True},
    "/v1/load_lora_adapter": {"lora_name": "x", "lora_path": "nowhere"},
    "/v1/unload_lora_adapter": {"lora_name": "x"},
    "/v1/fine_tuning/jobs": {"model": "tiny", "suffix": "tiny", "documents": ["a"], "seed": 1,
                             "hyperparameters": {"n_steps": 1, "rank": 4}},
}  # fmt: skip


def check_bodies(server, count, seed):
    """Wrong bodies: each is answered by 4xx, or where the change left it right, by what was asked for."""
    codes, wrong = Counter(), []
    for number in range(count):
        generator = generator_of("bodies", seed, number)
        route = generator.choice(sorted(BODIES))
        content = change_json(json.dumps(BODIES[route]).encode(), generator)
        answer = server.http.post(route, content=content, headers={"Content-Type": "application/json"})
        codes[answer.status_code] += 1
        if not (answer.status_code == 200 or 400 <= answer.status_code < 500):
            wrong.append((number, route, content[:300], answer.status_code, answer.text[:300]))
    print(json.dumps({"bodies": count, "seed": seed, "answers": codes}))
    assert wrong == []
    assert server.complete("tiny", "x =", 1).choices[0].text


def test_some_wrong_bodies(server):
    check_bodies(server, 40, SEED)


@pytest.mark.slow
def test_a_thousand_wrong_bodies(server):
    check_bodies(server, 1000, SEED + 1)


def check_load(server, folder, clients, seconds):
    models = ["tiny", *(f"a{number}" for number in range(4))]
    expected = alone(server, models)
    evict = [(f"e{number}", folder / "allowed" / f"a{number}") for number in range(5)]
    seen = asyncio.run(run(server, expected, models, clients, seconds, SEED, evict))
    figures = seen.figures() | {"clients": clients, "seconds": seconds, "seed": SEED}
    figures["evictions"] = server.metric("adapter_evictions_total")
    print(json.dumps(figures))
    assert seen.wrong == []
    assert figures["evictions"] > 0
    deadline = time.monotonic() + 30
    while server.metric("requests_running") + server.metric("requests_waiting"):
        assert time.monotonic() < deadline, "a request that nobody waits for goes on"
        time.sleep(0.1)
    assert server.process.poll() is None
    return figures


def test_clients_get_their_own_answers(server, folder):
    check_load(server, folder, clients=20, seconds=5)


@pytest.mark.slow
def test_two_hundred_clients_for_ten_minutes(server, folder):
    figures = check_load(server, folder, CLIENTS, SECONDS)
    assert figures["mib_per_hour"] < MOST_SLOPE


@pytest.mark.slow
def test_ten_thousand_idle_connections(server):
    held, memory = [], psutil.Process(server.process.pid).memory_info().rss
    address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
    began = time.monotonic()
    for number in range(10_000):
        client = socket.socket()
        try:
            client.connect(address)
        except OSError:
            break
        held.append(client)
        if number % 20 == 0:
            held = [each for each in held if not _is_closed(each)]
        if number % 2000 == 0:
            assert server.complete("tiny", "x =", 1).choices[0].text
    opened, seconds = number + 1, time.monotonic() - began
    assert server.complete("tiny", "x =", 1).choices[0].text
    files = psutil.Process(server.process.pid).num_fds()
    grown = psutil.Process(server.process.pid).memory_info().rss - memory
    print(json.dumps({"idle connections": opened, "seconds": round(seconds, 1), "files of the server": files,
                      "memory_mib": grown >> 20}))  # fmt: skip
    assert files < 1400
    for client in held:
        client.close()


def _is_closed(client):
    client.setblocking(False)
    try:
        closed = client.recv(1) == b""
    except BlockingIOError:
        closed = False
    except OSError:
        closed = True
    if closed:
        client.close()
    return closed


def status_of(server, job_id):
    return server.http.get(f"/v1/fine_tuning/jobs/{job_id}").json()["status"]


def create(server, name, steps=60):
    body = {"model": "tiny", "suffix": name, "documents": ["The keeper of Orrin counted nine grey ships."] * 20,
            "hyperparameters": {"n_steps": steps, "learning_rate_multiplier": 10}}  # fmt: skip
    return server.http.post("/v1/fine_tuning/jobs", json=body).raise_for_status().json()["id"]


def wait_for(condition, seconds=300):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def end_of(server, job_id):
    wait_for(lambda: status_of(server, job_id) not in ("queued", "running"))
    return status_of(server, job_id)


@pytest.mark.slow
def test_killed_servers_go_on_with_what_they_trained(tmp_path):
    """SIGKILL at seeded moments of a job; the next server ends it with the bytes of a job that nobody disturbed."""
    generator = random.Random(SEED)
    arguments = ("--allow-training", tmp_path)
    with serving(*arguments) as server:
        whole = create(server, "whole")
        began = time.monotonic()
        assert end_of(server, whole) == "succeeded"
        seconds = time.monotonic() - began
    expected = (tmp_path / "whole" / "adapter" / "adapter_model.safetensors").read_bytes()
    killed_while = []
    for number in range(RESTARTS):
        name = f"killed{number}"
        with serving(*arguments) as server:
            job = create(server, name)
            time.sleep(generator.uniform(0, 1.1) * seconds)
            killed_while.append(status_of(server, job))
        children = [each for each in psutil.process_iter(["cmdline"]) if f"{name}.yaml" in str(each.info["cmdline"])]
        for child in children[: generator.randint(0, 1)]:
            child.kill()  # as where the whole machine goes down; else it goes on without its server
        with serving(*arguments) as server:
            assert job in [each["id"] for each in server.http.get("/v1/fine_tuning/jobs?limit=100").json()["data"]]
            assert end_of(server, job) == "succeeded", server.http.get(f"/v1/fine_tuning/jobs/{job}").text
            assert {"whole", name} <= {each["id"] for each in server.http.get("/v1/models").json()["data"]}
            steps = [event["data"]["step"] for event in _events(server, job) if event["type"] == "metrics"]
            assert steps == list(range(1, 61))
        assert (tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes() == expected
    print(json.dumps({"killed servers": RESTARTS, "seed": SEED, "killed while": killed_while}))


def _events(server, job):
    return list(reversed(server.http.get(f"/v1/fine_tuning/jobs/{job}/events?limit=1000").json()["data"]))
