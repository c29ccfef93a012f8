"""Connections that are held, dribbled into or not read from; requests made to be read in two ways; limits of tokens."""

import asyncio
import socket
import threading
import time
from contextlib import contextmanager

import httpx
import pytest
import uvicorn

from lengthen.serving.api.connections import bounded_protocol
from lengthen.serving.api.middleware import ApiMiddleware, TokenLimits

IDLE, ANSWER, KEPT = 0.6, 2.0, 2.5  # seconds


async def application(scope, receive, send):
    """/large answers with 64 MiB, /last with 32 at once, /slow after a second, all else with the path."""
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    if scope["path"] == "/large":
        for _ in range(64):
            await send({"type": "http.response.body", "body": bytes(2**20), "more_body": True})
    if scope["path"] == "/last":
        await send({"type": "http.response.body", "body": bytes(32 * 2**20)})
        return
    if scope["path"] == "/slow":
        await asyncio.sleep(1)
    await send({"type": "http.response.body", "body": scope["path"].encode()})


class Running:
    def __init__(self, port):
        self.port, self.url = port, f"http://127.0.0.1:{port}"

    def connect(self, *sent, small=False):
        client = socket.socket()
        if small:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", self.port))
        client.settimeout(5)
        for each in sent:
            client.sendall(each)
        return client


@contextmanager
def running(tokens=(), most=20, limits=None):
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    config = uvicorn.Config(
        ApiMiddleware(application, tokens, 10_000, limits or TokenLimits()),
        http=bounded_protocol(most, IDLE, ANSWER, KEPT),
        ws="none",
        log_level="critical",
        lifespan="off",
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        yield Running(listener.getsockname()[1])
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)
        listener.close()


def rest(client):
    """All that comes until the other side closes."""
    received = b""
    try:
        while piece := client.recv(65536):
            received += piece
    except ConnectionResetError:
        pass
    return received


def ends_within(client, seconds, dribble=b""):
    """Whether the server ends the connection; meanwhile a byte is sent every tenth of a second."""
    deadline = time.monotonic() + seconds
    client.settimeout(0.1)
    while time.monotonic() < deadline:
        try:
            if client.recv(65536) == b"":
                return True
        except TimeoutError:
            pass
        except OSError:
            return True
        if dribble:
            try:
                client.sendall(dribble)
            except OSError:
                return True
    return False


def test_who_sends_no_request_is_closed():
    with running() as server:
        assert ends_within(server.connect(), IDLE + 1)


def test_who_sends_the_head_of_a_request_byte_by_byte_is_closed():
    with running() as server:
        head = b"GET / HTTP/1.1\r\nHost: a\r\n"
        assert ends_within(server.connect(head), IDLE + 1, b"X")
        second = server.connect(head + b"\r\n")
        assert second.recv(65536).startswith(b"HTTP/1.1 200")
        second.sendall(head)
        assert ends_within(second, IDLE + 1, b"X"), "after an answer"


def test_a_connection_that_was_answered_is_kept_for_the_next_request():
    request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    with running() as server:
        client = server.connect()
        for _ in range(3):
            client.sendall(request)
            answer = b""
            while not answer.endswith(b"0\r\n\r\n"):
                answer += client.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200")
            time.sleep(2 * IDLE)


def test_who_is_answered_before_all_of_the_request_came_is_closed():
    with running(tokens=["secret"]) as server:
        client = server.connect(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 401")
        assert ends_within(client, KEPT + 1, b"X")


def test_who_does_not_take_the_last_of_the_answer_is_closed():
    """The server has written all of it, into a buffer."""
    with running() as server:
        reader = server.connect(b"GET /last HTTP/1.0\r\nHost: a\r\n\r\n", small=True)
        time.sleep(ANSWER + 1)
        assert len(rest(reader)) < 32 * 2**20


def test_who_does_not_take_the_answer_is_closed():
    with running() as server:
        reader = server.connect(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n", small=True)
        time.sleep(ANSWER + 0.7)
        assert len(rest(reader)) < 64 * 2**20


def test_a_request_in_time_is_answered_whole():
    with running() as server, httpx.Client(base_url=server.url) as client:
        assert client.get("/slow").text == "/slow", "longer than a connection may be idle"
        assert len(client.get("/large").content) == 64 * 2**20 + len("/large")


def test_idle_connections_lock_nobody_out():
    with running(most=20) as server:
        held = [server.connect() for _ in range(100)]
        began = time.monotonic()
        with httpx.Client(base_url=server.url, timeout=5) as client:
            assert client.get("/x").text == "/x"
        assert time.monotonic() - began < IDLE, "before their time was over"
        assert sum(ends_within(client, 0.05) for client in held) >= 80
        for client in held:
            client.close()


POST = b"POST / HTTP/1.1\r\nHost: a\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
TWO_WAYS = {
    "length and chunks": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": POST + b"Content-Length: 0\r\nContent-Length: 36\r\n\r\n",
    "lengths in one": POST + b"Content-Length: 0, 36\r\n\r\n",
    "a signed length": POST + b"Content-Length: +0\r\n\r\n",
    "a length of letters": POST + b"Content-Length: 0x0\r\n\r\n",
    "other chunks": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunks twice": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "a space before the colon": POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "a folded line": POST + b"X: a\r\n Content-Length: 36\r\nTransfer-Encoding:\r\n chunked\r\n\r\n",
    "a bad chunk": POST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
    "a huge chunk": POST + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffffffffff\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "a null byte": b"GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n",
    "a line end in a value": b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rX-Y: b\r\n\r\n",
    "another protocol": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 10,
    "a head without end": b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 200_000,
    "many headers": b"GET / HTTP/1.1\r\nHost: a\r\n" + b"".join(b"X%d: y\r\n" % i for i in range(20_000)),
}  # fmt: skip


@pytest.fixture(scope="module")
def server():
    with running() as server:
        yield server


@pytest.mark.parametrize("name", TWO_WAYS)
def test_what_could_be_read_in_two_ways_is_refused_and_ends_the_connection(server, name):
    client = server.connect()
    try:
        client.sendall(TWO_WAYS[name] + SMUGGLED)
        received = rest(client)
    except ConnectionError:
        received = b""
    client.close()
    assert b"/smuggled" not in received
    assert received.count(b"HTTP/1.1 ") <= 1
    assert not received or received.startswith((b"HTTP/1.1 400", b"HTTP/1.1 501", b"HTTP/1.1 431")), received[:200]


def test_bodies_too_large_or_without_end(server):
    with httpx.Client(base_url=server.url) as client:
        assert client.post("/", content=b"x" * 10_001).status_code == 413
        assert client.post("/", content=(b"x" * 5000 for _ in range(3))).status_code == 413
        assert client.post("/", content=b"x" * 10_000).status_code == 200


def test_each_token_has_limits_of_its_own():
    def ask(client, token, path="/x"):
        return client.get(path, headers={"Authorization": f"Bearer {token}"})

    with (
        running(("one", "two"), limits=TokenLimits(per_minute=3)) as server,
        httpx.Client(base_url=server.url) as client,
    ):
        assert [ask(client, "one").status_code for _ in range(5)] == [200, 200, 200, 429, 429]
        refused = ask(client, "one")
        assert 1 <= int(refused.headers["Retry-After"]) <= 20
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert "more than 3 requests in a minute with this token" in refused.json()["error"]["message"]
        assert ask(client, "two").status_code == 200
        for wrong in ("three", "on", "one one", "ONE", "one\t2", "-"):
            assert ask(client, wrong).status_code == 401
        assert client.get("/health").status_code == 200
        assert client.get("/%68ealth/../x").status_code == 401


def test_requests_at_a_time_are_limited():
    with running(limits=TokenLimits(concurrent=2)) as server:
        codes = []
        threads = [
            threading.Thread(target=lambda: codes.append(httpx.get(f"{server.url}/slow").status_code)) for _ in range(5)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(codes) == [200, 200, 429, 429, 429]
        assert httpx.get(f"{server.url}/x").status_code == 200, "as soon as one is answered"
